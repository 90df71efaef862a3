//! A module's options: their types, and the schema that lcapd checks the configuration against.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

/// No options at all.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

/// One option, for [`crate::Policy::options`].
#[derive(Clone, Debug)]
pub struct PolicyOption {
    name: &'static str,
    kind: OptionKind,
    help: &'static str,
    default: Option<Value>,
    required: bool,
}

/// What values an option takes.
#[derive(Clone, Copy, Debug)]
pub enum OptionKind {
    /// Any text.
    Text,
    /// A list of texts.
    Texts,
    /// A whole number of at least this and at most that.
    Integer(u64, u64),
    /// A number of at least this and at most that.
    Number(f64, f64),
    /// `true` or `false`.
    Boolean,
    /// `"500ms"`, `"2s"`, `"5m"`: deserialize it as [`Span`].
    Duration,
    /// `"64KiB"`, `"1MiB"`: deserialize it as [`Size`].
    Size,
    /// One of these texts: deserialize it as an enum.
    Choice(&'static [&'static str]),
    /// A list of some of these texts.
    Choices(&'static [&'static str]),
    /// Anything; the module checks it itself in `create`.
    Any,
}

/// Shorthand for [`OptionKind::Choice`].
pub type Choice = &'static [&'static str];

impl PolicyOption {
    /// An option that may be left out.
    pub fn new(name: &'static str, kind: OptionKind, help: &'static str) -> Self {
        Self { name, kind, help, default: None, required: false }
    }

    /// What leaving it out means, for the reader of `lcap policy inspect`.
    #[must_use]
    pub fn default(mut self, value: impl Into<Value>) -> Self {
        self.default = Some(value.into());
        self
    }

    /// It may not be left out.
    #[must_use]
    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }

    fn schema(&self) -> Value {
        let mut schema = match self.kind {
            OptionKind::Text => json!({"type": "string"}),
            OptionKind::Texts => json!({"type": "array", "items": {"type": "string"}}),
            OptionKind::Integer(least, most) => {
                json!({"type": "integer", "minimum": least, "maximum": most})
            }
            OptionKind::Number(least, most) => {
                json!({"type": "number", "minimum": least, "maximum": most})
            }
            OptionKind::Boolean => json!({"type": "boolean"}),
            OptionKind::Duration => json!({"type": "string", "format": "duration"}),
            OptionKind::Size => {
                json!({"type": ["string", "integer"], "minimum": 0, "format": "size"})
            }
            OptionKind::Choice(list) => json!({"enum": list}),
            OptionKind::Choices(list) => json!({"type": "array", "items": {"enum": list}}),
            OptionKind::Any => json!({}),
        };
        schema["description"] = self.help.into();
        if let Some(default) = &self.default {
            schema["default"] = default.clone();
        }
        schema
    }
}

/// The answer of `describe()`.
pub(crate) fn description(summary: &str, options: &[PolicyOption]) -> Value {
    let properties: Map<String, Value> =
        options.iter().map(|option| (option.name.to_owned(), option.schema())).collect();
    let required: Vec<&str> =
        options.iter().filter(|option| option.required).map(|option| option.name).collect();
    json!({
        "summary": summary,
        "options": {
            "type": "object",
            "additionalProperties": false,
            "properties": properties,
            "required": required,
        },
    })
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

/// A time span that is written as `"500ms"`, `"2s"`, `"5m"` or `"1h"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let span = split_unit(&text).and_then(|(number, unit)| {
            let micros = match unit {
                "us" => 1,
                "ms" => 1_000,
                "s" => 1_000_000,
                "m" | "min" => 60_000_000,
                "h" => 3_600_000_000,
                _ => return None,
            };
            number.checked_mul(micros).map(Duration::from_micros).map(Self)
        });
        span.ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is no duration such as \"2s\""))
        })
    }
}

/// A number of bytes that is written as `65536`, `"64KiB"`, `"1MiB"` or `"2GiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"1MiB\"")
            }
            fn visit_u64<E>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                let size = split_unit(text).and_then(|(number, unit)| {
                    let factor = match unit {
                        "" | "B" => 1,
                        "KiB" => 1 << 10,
                        "MiB" => 1 << 20,
                        "GiB" => 1 << 30,
                        _ => return None,
                    };
                    number.checked_mul(factor)
                });
                size.map(Size)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        from.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_read_what_people_write() {
        let span = |text: &str| serde_json::from_value::<Span>(json!(text)).ok().map(|s| s.0);
        assert_eq!(span("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(span("5m"), Some(Duration::from_secs(300)));
        assert_eq!(span("5"), None);
        let size = |value: Value| serde_json::from_value::<Size>(value).ok().map(|s| s.0);
        assert_eq!(size(json!("1MiB")), Some(1 << 20));
        assert_eq!(size(json!(17)), Some(17));
        assert_eq!(size(json!(-1)), None);
        assert_eq!(size(json!("1MB")), None);
    }
}
