//! Hidden states of translations: how near they are at one layer.
use anyhow::{Context, Result};

use crate::metrics::{
    alignment::linear_cka,
    metric::{
        About, Evidence, HiddenPair, MeanMetric, Metric, MetricOptions, Needs, OpenMetric, Segment, Unit,
    },
};

/// A mean over the pairs.
pub struct OfPairs {
    name: &'static str,
    key: &'static str,
    label: &'static str,
    help: &'static str,
    unit: Unit,
    of: fn(&HiddenPair) -> f64,
}

/// Mean cosine.
pub const COSINE: OfPairs = OfPairs {
    name: "cosine",
    key: "cosine",
    label: "cosine of translations",
    help: "Mean cosine of a sentence's and its translation's hidden states",
    unit: Unit::Fraction,
    of: |pair| pair.cosine,
};

/// Share of sentences whose translation is the nearest.
pub const RETRIEVAL_FORWARD: OfPairs = OfPairs {
    name: "retrieval-forward",
    key: "retrieval_forward",
    label: "retrieval@1 of translations",
    help: "Sentences whose translation is the nearest of all",
    unit: Unit::Percent,
    of: |pair| f64::from(u8::from(pair.forward)),
};

/// Share of translations whose source is the nearest.
pub const RETRIEVAL_BACKWARD: OfPairs = OfPairs {
    name: "retrieval-backward",
    key: "retrieval_backward",
    label: "retrieval@1 of sources",
    help: "Translations whose source is the nearest of all",
    unit: Unit::Percent,
    of: |pair| f64::from(u8::from(pair.backward)),
};

/// Linear CKA of all pairs together.
pub struct Cka;

fn about(name: &'static str, label: &'static str, help: &'static str, unit: Unit) -> About {
    About {
        name,
        key: name,
        label,
        heading: label,
        help,
        unit,
        decimals: if unit == Unit::Percent { 1 } else { 3 },
        higher_is_better: true,
        evidence: Evidence::HiddenStates,
        needs: Needs::default(),
    }
}

fn signature(key: &str, options: &MetricOptions) -> String {
    format!("{key}|{}|version:{}", options.protocol, env!("CARGO_PKG_VERSION"))
}

impl Metric for OfPairs {
    fn about(&self) -> About {
        About { key: self.key, ..about(self.name, self.label, self.help, self.unit) }
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        let (signature, of) = (signature(self.key, options), self.of);
        let of = move |s: &Segment| s.hidden.as_ref().map_or(0.0, of);
        // Cosines are given without a standard error; a comparison's interval is by resampling.
        Ok(Box::new(match self.unit {
            Unit::Percent => MeanMetric::new(signature, 100.0, of),
            _ => MeanMetric::new(signature, 1.0, of).without_error(),
        }))
    }
}

impl Metric for Cka {
    fn about(&self) -> About {
        let help = "Linear CKA of the sentences' hidden states with their translations'";
        about("cka", "linear CKA", help, Unit::Fraction)
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        Ok(Box::new(OpenCka { signature: signature("cka", options) }))
    }
}

struct OpenCka {
    signature: String,
}

impl OpenMetric for OpenCka {
    fn signature(&self) -> String {
        self.signature.clone()
    }

    fn width(&self) -> usize {
        3
    }

    fn rows(&self, segments: &[Segment]) -> Result<Vec<Vec<f64>>> {
        segments.iter().map(|s| Ok(s.hidden.context("a row without hidden states")?.cka.to_vec())).collect()
    }

    fn value(&self, sums: &[f64], _rows: usize) -> f64 {
        let at = |k: usize| sums.get(k).copied().unwrap_or(0.0);
        linear_cka(&[[at(0), at(1), at(2)]])
    }

    /// Its centring and its neighbours belong to one set of sentences.
    fn resamples(&self) -> bool {
        false
    }
}
