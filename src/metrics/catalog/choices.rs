//! Multiple choice: the choice that the model finds likeliest.
use anyhow::Result;

use crate::metrics::metric::{
    About, Evidence, MeanMetric, Metric, MetricOptions, Needs, OpenMetric, Segment, Unit,
};

/// What a choice's log-likelihood is divided by.
#[derive(Clone, Copy, PartialEq)]
enum Norm {
    None,
    Characters,
    Bytes,
}

/// Accuracy of the likeliest choices, in one of lm-eval's three ways.
pub struct Accuracy {
    norm: Norm,
}

/// lm-eval's `acc`.
pub const ACCURACY: Accuracy = Accuracy { norm: Norm::None };
/// lm-eval's `acc_norm`: by the choice's characters.
pub const ACCURACY_BY_LENGTH: Accuracy = Accuracy { norm: Norm::Characters };
/// lm-eval's `acc_bytes`: by the choice's UTF-8 bytes.
pub const ACCURACY_BY_BYTES: Accuracy = Accuracy { norm: Norm::Bytes };

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
        match self.norm {
            Norm::None => plain,
            Norm::Characters => About {
                name: "acc-norm",
                key: "acc_norm",
                label: "accuracy (per character)",
                heading: "accuracy (per character) %",
                help: "Questions whose likeliest choice, per character, is the right one",
                ..plain
            },
            Norm::Bytes => About {
                name: "acc-bytes",
                key: "acc_bytes",
                label: "accuracy (per byte)",
                heading: "accuracy (per byte) %",
                help: "Questions whose likeliest choice, per UTF-8 byte, is the right one",
                ..plain
            },
        }
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        let norm = self.norm;
        let name = match norm {
            Norm::None => "none",
            Norm::Characters => "characters",
            Norm::Bytes => "bytes",
        };
        let signature = format!("acc|{}|norm:{name}|version:{}", options.protocol, env!("CARGO_PKG_VERSION"));
        let of = move |s: &Segment| f64::from(u8::from(chosen(s, norm) == s.reference()));
        Ok(Box::new(MeanMetric::new(signature, 100.0, of)))
    }
}

/// The letter of the model's choice.
fn chosen(s: &Segment, norm: Norm) -> String {
    // A reply that was cleaned to a letter has no likelihoods.
    if s.log_likelihoods.is_empty() {
        return s.reply.into();
    }
    let n = s.log_likelihoods.len();
    let score = |i: usize| {
        let length = match norm {
            Norm::None => 1,
            Norm::Characters => s.lengths.get(i).copied().unwrap_or(1),
            Norm::Bytes => s.lengths.get(n + i).copied().unwrap_or(1),
        };
        s.log_likelihoods[i] / length.max(1) as f64
    };
    // The first of equals, as lm-eval's argmax.
    letter((0..n).fold(0, |best, i| if score(i) > score(best) { i } else { best }))
}

/// A, B, C ... for 0, 1, 2 ...
pub fn letter(index: usize) -> String {
    char::from_u32('A' as u32 + index as u32).unwrap_or('?').to_string()
}
