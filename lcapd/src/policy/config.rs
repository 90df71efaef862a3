//! One entry of a stream's `policies`, e.g. `{ module = "compact", window = "500ms" }`.
#![forbid(unsafe_code)]

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// What becomes of a stream when one of its modules fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// What the module held is emitted unchanged, in order, and the stream goes on without it.
    #[default]
    Bypass,
    /// The stream stops where it is; nothing is cleared past what it had delivered.
    Stop,
}

/// One module of a chain, as the configuration has it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PolicyConfig {
    /// Name of a module on the search path, or a path with a slash.
    pub module: String,
    /// What becomes of the stream when the module fails.
    #[serde(default)]
    pub on_error: OnError,
    /// A module that holds a record for longer is told to flush, and fails if it does not.
    #[serde(default = "default_max_hold", deserialize_with = "duration")]
    pub max_hold: Duration,
    /// The module's own options: every other key.
    #[serde(flatten)]
    pub options: serde_json::Map<String, serde_json::Value>,
}

impl PolicyConfig {
    /// A module without options.
    pub fn of(module: &str) -> Self {
        Self {
            module: module.to_owned(),
            on_error: OnError::default(),
            max_hold: default_max_hold(),
            options: serde_json::Map::new(),
        }
    }

    /// Takes one table of `policies`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_table(table: &toml::Table) -> Result<Self, toml::de::Error> {
        table.clone().try_into()
    }

    /// The same with one more option.
    #[must_use]
    pub fn with(mut self, option: &str, value: impl Into<serde_json::Value>) -> Self {
        self.options.insert(option.to_owned(), value.into());
        self
    }

    /// The same with another rule for failure.
    #[must_use]
    pub fn on_error(mut self, on_error: OnError) -> Self {
        self.on_error = on_error;
        self
    }
}

fn default_max_hold() -> Duration {
    Duration::from_secs(300)
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    parse_duration(&text).ok_or_else(|| {
        serde::de::Error::custom(format!(
            "`{text}` is no duration such as \"500ms\", \"2s\" or \"5m\""
        ))
    })
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

/// `500ms`, `2s`, `5m`, `1h`, `100us`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let micros = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return None,
    };
    number.checked_mul(micros).map(Duration::from_micros)
}

/// `4096`, `64KiB`, `1MiB`, `2GiB`.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_splits_into_the_hosts_keys_and_the_modules() {
        let config: PolicyConfig = toml::from_str(
            "module = 'compact'\nwindow = '500ms'\non_error = 'stop'\nmax_hold = '2m'\nn = 5",
        )
        .unwrap();
        assert_eq!((config.module.as_str(), config.on_error), ("compact", OnError::Stop));
        assert_eq!(config.max_hold, Duration::from_secs(120));
        let options: Vec<_> =
            config.options.iter().map(|(k, v)| (k.as_str(), v.to_string())).collect();
        assert_eq!(options, [("n", "5".to_owned()), ("window", "\"500ms\"".to_owned())]);
        for bad in ["", "module = 'x'\nmax_hold = '2'", "module = 'x'\non_error = 'ignore'"] {
            assert!(toml::from_str::<PolicyConfig>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_and_sizes_need_units_that_exist() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("1h"), Some(Duration::from_secs(3600)));
        assert_eq!(parse_size("64KiB"), Some(65536));
        assert_eq!(parse_size("17"), Some(17));
        for bad in
            ["", "5", "ms", "-5s", "5 parsecs", "99999999999999999999s", "9999999999999999999h"]
        {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
        assert_eq!(parse_size("5kb"), None);
    }
}
