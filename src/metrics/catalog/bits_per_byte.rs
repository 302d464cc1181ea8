//! How well a model predicts a text.
use anyhow::Result;
use serde_json::{Value, json};

use crate::metrics::metric::{About, Evidence, Metric, MetricOptions, Needs, OpenMetric, Segment, Unit};

/// Bits per UTF-8 byte of the texts together.
pub struct BitsPerByte;

impl Metric for BitsPerByte {
    fn about(&self) -> About {
        About {
            name: "bits-per-byte",
            key: "bits_per_byte",
            label: "bits per byte",
            heading: "bits per byte",
            help: "Negative log-likelihood of the texts in bits, per UTF-8 byte: lower is better",
            unit: Unit::Bits,
            decimals: 3,
            higher_is_better: false,
            evidence: Evidence::LogLikelihood,
            needs: Needs::default(),
        }
    }

    fn open(&self, _options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        Ok(Box::new(Open))
    }
}

struct Open;

impl OpenMetric for Open {
    fn signature(&self) -> String {
        format!("bpb|bytes:utf8|context:cut|version:{}", env!("CARGO_PKG_VERSION"))
    }

    fn width(&self) -> usize {
        2
    }

    fn rows(&self, segments: &[Segment]) -> Result<Vec<Vec<f64>>> {
        // Nats to bits; the first length is the text's bytes.
        let row = |s: &Segment| {
            let bits = -s.log_likelihoods.iter().sum::<f64>() / std::f64::consts::LN_2;
            vec![bits, s.lengths.first().copied().unwrap_or(0) as f64]
        };
        Ok(segments.iter().map(row).collect())
    }

    fn value(&self, sums: &[f64], _rows: usize) -> f64 {
        let at = |i: usize| sums.get(i).copied().unwrap_or(0.0);
        at(0) / at(1).max(1e-300)
    }

    fn shown(&self, segment: &Segment, _row: &[f64]) -> Value {
        json!([segment.log_likelihoods.iter().sum::<f64>(), segment.lengths.first()])
    }
}
