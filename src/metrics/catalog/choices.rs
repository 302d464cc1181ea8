//! Multiple choice: the choice that the model finds likeliest.
use anyhow::Result;

use crate::metrics::metric::{
    About, Evidence, MeanMetric, Metric, MetricOptions, Needs, OpenMetric, Segment, Unit,
};

/// Accuracy; `by_length` divides log-likelihoods by the choice's characters, as lm-eval's `acc_norm` does.
pub struct Accuracy {
    by_length: bool,
}

/// lm-eval's `acc`.
pub const ACCURACY: Accuracy = Accuracy { by_length: false };
/// lm-eval's `acc_norm`.
pub const ACCURACY_BY_LENGTH: Accuracy = Accuracy { by_length: true };

impl Metric for Accuracy {
    fn about(&self) -> About {
        let plain = About {
            name: "acc",
            key: "acc",
            label: "accuracy",
            heading: "accuracy %",
            help: "Questions whose likeliest choice is the right one",
            unit: Unit::Percent,
            decimals: 1,
            higher_is_better: true,
            evidence: Evidence::Choices,
            needs: Needs { references: true, ..Default::default() },
        };
        if !self.by_length {
            return plain;
        }
        About {
            name: "acc-norm",
            key: "acc_norm",
            label: "accuracy (per character)",
            heading: "accuracy (per character) %",
            help: "Questions whose likeliest choice, per character, is the right one",
            ..plain
        }
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        let by_length = self.by_length;
        let norm = if by_length { "characters" } else { "none" };
        let signature = format!("acc|{}|norm:{norm}|version:{}", options.protocol, env!("CARGO_PKG_VERSION"));
        let of = move |s: &Segment| f64::from(u8::from(chosen(s, by_length) == s.reference()));
        Ok(Box::new(MeanMetric::new(signature, 100.0, of)))
    }
}

/// The letter of the model's choice.
fn chosen(s: &Segment, by_length: bool) -> String {
    // A reply that was cleaned to a letter has no likelihoods.
    if s.log_likelihoods.is_empty() {
        return s.reply.into();
    }
    let score = |i: usize| {
        let length = if by_length { s.lengths.get(i).copied().unwrap_or(1).max(1) as f64 } else { 1.0 };
        s.log_likelihoods[i] / length
    };
    // The first of equals, as lm-eval's argmax.
    letter((0..s.log_likelihoods.len()).fold(0, |best, i| if score(i) > score(best) { i } else { best }))
}

/// A, B, C ... for 0, 1, 2 ...
pub fn letter(index: usize) -> String {
    char::from_u32('A' as u32 + index as u32).unwrap_or('?').to_string()
}
