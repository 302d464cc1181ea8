//! Scores that a model gives a translation without a reference.
use std::rc::Rc;

use anyhow::{Context, Result, ensure};

use crate::metrics::metric::{
    About, Evidence, Metric, MetricOptions, Needs, OpenMetric, Scorers, Segment, Unit, mean,
};

/// A metric whose numbers a model computes.
pub struct Learned {
    name: &'static str,
    label: &'static str,
    help: &'static str,
    /// Whether the reply is compared with its reference, and not with its source.
    to_reference: bool,
}

/// CometKiwi (Rei et al. 2022).
pub const COMETKIWI: Learned = Learned {
    name: "cometkiwi",
    label: "CometKiwi",
    help: "Quality of a translation as CometKiwi estimates it from source and reply, about 0..1",
    to_reference: false,
};

/// Cosine of sentence embeddings.
pub const SIMILARITY: Learned = Learned {
    name: "similarity",
    label: "similarity",
    help: "Cosine of source and reply in an XLM-R sentence encoder's embeddings: sees gross errors only",
    to_reference: false,
};

/// The same of an answer and the one that was expected.
pub const REFERENCE_SIMILARITY: Learned = Learned {
    name: "reference-similarity",
    label: "similarity to reference",
    help: "Cosine of reference and reply in an XLM-R sentence encoder's embeddings",
    to_reference: true,
};

impl Metric for Learned {
    fn about(&self) -> About {
        About {
            name: self.name,
            key: if self.to_reference { "reference_similarity" } else { self.name },
            label: self.label,
            heading: self.label,
            help: self.help,
            unit: Unit::Fraction,
            decimals: 4,
            higher_is_better: true,
            evidence: Evidence::Reply,
            needs: Needs {
                references: self.to_reference,
                source: !self.to_reference,
                language: false,
                model: true,
            },
        }
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        let scorers = options
            .scorers
            .clone()
            .with_context(|| format!("metric {} needs a model, and there is none here", self.name))?;
        let identity = scorers.identity(self.name).with_context(|| format!("metric {}", self.name))?;
        let signature = format!("{}|{identity}|version:{}", self.name, env!("CARGO_PKG_VERSION"));
        Ok(Box::new(Open { name: self.name, signature, scorers, to_reference: self.to_reference }))
    }
}

struct Open {
    name: &'static str,
    signature: String,
    scorers: Rc<dyn Scorers>,
    to_reference: bool,
}

impl OpenMetric for Open {
    fn signature(&self) -> String {
        self.signature.clone()
    }

    fn width(&self) -> usize {
        1
    }

    fn rows(&self, segments: &[Segment]) -> Result<Vec<Vec<f64>>> {
        let with = |s: &Segment| if self.to_reference { s.reference().into() } else { s.source.to_string() };
        let pairs: Vec<(String, String)> = segments.iter().map(|s| (with(s), s.reply.to_string())).collect();
        let scores =
            self.scorers.score(self.name, &pairs).with_context(|| format!("metric {}", self.name))?;
        ensure!(scores.len() == pairs.len(), "{}: {} scores for {}", self.name, scores.len(), pairs.len());
        Ok(scores.into_iter().map(|x| vec![x]).collect())
    }

    fn value(&self, sums: &[f64], rows: usize) -> f64 {
        mean(sums, rows, 1.0)
    }

    fn mean_of(&self) -> Option<f64> {
        Some(1.0)
    }
}
