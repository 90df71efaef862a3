//! Every figure that is exported, and how it gets out.
//!
//! Nothing is pushed here: whoever has figures keeps them where it works (relaxed atomics, or a
//! snapshot that can be asked for), and registers a function that puts them into [`Samples`]
//! when somebody scrapes. Families are declared once, in [`families`], with names as they appear at
//! `/metrics`. So nothing of this is on the path of records but a relaxed addition.
#![forbid(unsafe_code)]

pub mod families;
pub mod histogram;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use histogram::{Counted, Histogram};

/// What a family's samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while lcapd lives; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution, in seconds.
    Histogram,
}

/// One family, as it appears at `/metrics`.
#[derive(Debug)]
pub struct Family {
    /// Its name: `lcap_`, what it is of, what it counts, its unit.
    pub name: &'static str,
    /// What its samples are.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

/// A sample's value.
#[derive(Clone, Debug)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// Seconds, mostly.
    Real(f64),
    /// Of a histogram.
    Distribution(Counted),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl From<&Histogram> for Value {
    fn from(histogram: &Histogram) -> Self {
        Self::Distribution(histogram.counted())
    }
}

#[derive(Debug)]
struct Sample {
    labels: Vec<(&'static str, String)>,
    value: Value,
}

/// What one scrape brings together.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<&'static str, (Option<&'static Family>, Vec<Sample>)>);

impl Samples {
    /// Adds a sample, with values for the family's labels in their order.
    ///
    /// # Panics
    /// In tests, if there are not as many values as labels.
    pub fn put(&mut self, family: &'static Family, labels: &[&str], value: impl Into<Value>) {
        debug_assert_eq!(labels.len(), family.labels.len(), "labels of {}", family.name);
        let labels = family.labels.iter().copied().zip(labels.iter().map(|&l| l.to_owned()));
        let sample = Sample { labels: labels.collect(), value: value.into() };
        let entry = self.0.entry(family.name).or_default();
        entry.0 = Some(family);
        entry.1.push(sample);
    }
}

type Source = Box<dyn Fn(&mut Samples) + Send + Sync>;

/// Where figures are registered, and rendered.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Vec<Source>>>);

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// `source` is called at every scrape. It must not wait for long: whoever scrapes waits for it.
    pub fn register(&self, source: impl Fn(&mut Samples) + Send + Sync + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(source));
    }

    /// Everything, in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut samples = Samples::default();
        for source in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            source(&mut samples);
        }
        let mut registry = Registry::default();
        registry.register_collector(Box::new(samples));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_text::encode(&mut text, &registry);
        text
    }
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (family, samples) in self.0.values() {
            let Some(family) = family else { continue };
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            // The encoder adds it again to a counter's.
            let name = family.name.strip_suffix("_total").unwrap_or(family.name);
            let mut metric = encoder.encode_descriptor(name, family.help, None, kind)?;
            for sample in samples {
                encode_value(
                    &mut metric.encode_family(&sample.labels)?,
                    family.kind,
                    &sample.value,
                )?;
            }
        }
        Ok(())
    }
}

fn encode_value(metric: &mut MetricEncoder<'_>, kind: Kind, value: &Value) -> fmt::Result {
    type NoLabels = [(&'static str, &'static str); 0];
    match (kind, value) {
        (_, Value::Distribution(counted)) => metric.encode_histogram::<NoLabels>(
            counted.sum_seconds,
            counted.count,
            &counted.buckets,
            None,
        ),
        (Kind::Counter, Value::Whole(n)) => metric.encode_counter::<NoLabels, _, f64>(n, None),
        (Kind::Counter, Value::Real(x)) => metric.encode_counter::<NoLabels, _, f64>(x, None),
        (_, Value::Whole(n)) => metric.encode_gauge(n),
        (_, Value::Real(x)) => metric.encode_gauge(x),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn samples_appear_by_family_with_their_labels() {
        let metrics = Metrics::default();
        metrics.register(|samples| {
            samples.put(&families::MDT_READ_RECORDS, &["a-MDT0001"], 7_u64);
        });
        metrics.register(|samples| {
            samples.put(&families::MDT_LAG_SECONDS, &["a-MDT0001"], 0.5);
            samples.put(&families::MDT_READ_RECORDS, &["b\"-MDT0001"], u64::MAX);
        });
        let text = metrics.render();
        let counter = "# TYPE lcap_mdt_read_records_total counter\n\
             lcap_mdt_read_records_total{mdt=\"a-MDT0001\"} 7\n\
             lcap_mdt_read_records_total{mdt=\"b\\\"-MDT0001\"} 18446744073709551615\n";
        assert!(text.contains(counter), "{text}");
        assert!(text.contains("\nlcap_mdt_lag_seconds{mdt=\"a-MDT0001\"} 0.5\n"), "{text}");
        assert_eq!(text.matches("# HELP lcap_mdt_read_records_total ").count(), 1, "{text}");
    }

    #[test]
    fn a_histogram_has_cumulative_buckets() {
        let (metrics, histogram) = (Metrics::default(), Arc::new(Histogram::default()));
        for micros in [3, 90, 900_000, 500_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let own = Arc::clone(&histogram);
        metrics.register(move |samples| {
            samples.put(&families::STREAM_LATENCY, &["s"], &*own);
        });
        let text = metrics.render();
        for line in [
            "lcap_stream_latency_seconds_bucket{stream=\"s\",le=\"0.0001\"} 2",
            "lcap_stream_latency_seconds_bucket{stream=\"s\",le=\"1\"} 3",
            "lcap_stream_latency_seconds_bucket{stream=\"s\",le=\"+Inf\"} 4",
            "lcap_stream_latency_seconds_count{stream=\"s\"} 4",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
