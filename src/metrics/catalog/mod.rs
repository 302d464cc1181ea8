//! Every metric that there is: `eval`, `metric`, comparisons, results.json, reports, help texts and the checks of task files take them from here.
mod alignment;
mod answers;
mod bits_per_byte;
mod bleu;
mod choices;
mod chrf;
mod contains_answer;
mod learned;
mod length;
mod off_target;
mod rouge_l;
mod ter;

pub use choices::letter;

use std::sync::LazyLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::metric::{About, Evidence, Metric};

/// All of them, in the order in which lists have them.
static METRICS: &[&dyn Metric] = &[
    &answers::ExactMatch,
    &answers::F1,
    &contains_answer::ContainsAnswer,
    &bleu::Bleu,
    &chrf::CHRF,
    &chrf::CHRF_WORDS,
    &ter::Ter,
    &rouge_l::RougeL,
    &off_target::OffTarget,
    &learned::COMETKIWI,
    &learned::SIMILARITY,
    &learned::REFERENCE_SIMILARITY,
    &length::LengthDistance,
    &choices::ACCURACY,
    &choices::ACCURACY_BY_LENGTH,
    &choices::ACCURACY_BY_BYTES,
    &bits_per_byte::BITS_PER_BYTE,
    &bits_per_byte::BITS_PER_BYTE_ROLLING,
    &alignment::COSINE,
    &alignment::Cka,
    &alignment::RETRIEVAL_FORWARD,
    &alignment::RETRIEVAL_BACKWARD,
];

/// Metrics of generated replies: those that settings may name.
static NAMES: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| of_replies().map(|metric| metric.about().name).collect());

/// All metrics.
pub fn all() -> impl Iterator<Item = &'static dyn Metric> {
    METRICS.iter().copied()
}

/// Metrics of generated replies.
pub fn of_replies() -> impl Iterator<Item = &'static dyn Metric> {
    all().filter(|metric| metric.about().evidence == Evidence::Reply)
}

/// A metric of the catalog, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricName(&'static str);

impl MetricName {
    /// The metric of this name (see [`About::name`]), of any evidence.
    pub fn find(name: &str) -> Option<MetricName> {
        all().map(|metric| metric.about().name).find(|own| *own == name).map(MetricName)
    }

    /// As settings have it.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// The metric.
    pub fn metric(self) -> &'static dyn Metric {
        // There is no name without a metric; the first stands in so that nothing can panic.
        all().find(|metric| metric.about().name == self.0).unwrap_or(METRICS[0])
    }

    /// What is fixed about the metric.
    pub fn about(self) -> About {
        self.metric().about()
    }
}

impl Serialize for MetricName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for MetricName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MetricName, D::Error> {
        let name = String::deserialize(deserializer)?;
        let known = NAMES.iter().copied().find(|own| *own == name);
        known.map(MetricName).ok_or_else(|| D::Error::unknown_variant(&name, &NAMES))
    }
}

/// The metrics of replies with their help, a line each, for help texts.
pub fn help() -> String {
    let line = |metric: &dyn Metric| {
        let about = metric.about();
        let model = if about.needs.model { ", by a model of its own (see `scorers`)" } else { "" };
        format!("  {:<16} {}{model}\n", about.name, about.help)
    };
    of_replies().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_keys_and_headings_are_unique_and_found_again() {
        let mut seen = HashSet::new();
        for metric in all() {
            let about = metric.about();
            assert_eq!(MetricName::find(about.name).unwrap().about().key, about.key);
            for what in [format!("name {}", about.name), format!("key {}", about.key)] {
                assert!(seen.insert(what), "{} occurs twice", about.name);
            }
            assert!(about.evidence == Evidence::Reply || !about.needs.model, "{}", about.name);
        }
        assert!(MetricName::find("no-such-metric").is_none());
    }

    #[test]
    fn settings_name_metrics_of_replies_only() {
        let read = |name: &str| serde_json::from_value::<MetricName>(name.into());
        assert_eq!(read("chrf++").unwrap().about().key, "chrf++");
        for bad in ["acc", "cka", "bleuu"] {
            assert!(read(bad).unwrap_err().to_string().contains("expected one of `exact-match`"), "{bad}");
        }
    }
}
