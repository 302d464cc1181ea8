//! How well a model predicts a text.
use anyhow::Result;
use serde_json::{Value, json};

use crate::metrics::metric::{About, Evidence, Metric, MetricOptions, Needs, OpenMetric, Segment, Unit};

/// Bits per UTF-8 byte of the texts together; `rolling` as lm-eval has it.
pub struct BitsPerByte {
    rolling: bool,
}

/// Tokens behind the first one (the begin token, where the tokenizer writes one), by all bytes of the text.
pub const BITS_PER_BYTE: BitsPerByte = BitsPerByte { rolling: false };
/// lm-eval's `bits_per_byte`: every token behind a begin (or end) token, in windows.
pub const BITS_PER_BYTE_ROLLING: BitsPerByte = BitsPerByte { rolling: true };

impl Metric for BitsPerByte {
    fn about(&self) -> About {
        let own = About {
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
        };
        if !self.rolling {
            return own;
        }
        About {
            name: "bits-per-byte-rolling",
            key: "bits_per_byte_rolling",
            label: "bits per byte (lm-eval)",
            heading: "bits per byte (lm-eval)",
            help: "The same as lm-eval has it: every token, the first behind a begin or end token, in windows",
            ..own
        }
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        Ok(Box::new(Open { rolling: self.rolling, protocol: options.protocol.into() }))
    }
}

struct Open {
    rolling: bool,
    /// What happens to the first token.
    protocol: String,
}

impl Open {
    /// The log-likelihood in nats and the bytes that it is divided by.
    fn of(&self, s: &Segment) -> (f64, usize) {
        let (kind, bytes) = if self.rolling { (1, 2) } else { (0, 0) };
        let at = |i: usize| s.lengths.get(i).copied().unwrap_or(0);
        (s.log_likelihoods.get(kind).copied().unwrap_or(0.0), at(bytes))
    }
}

impl OpenMetric for Open {
    fn signature(&self) -> String {
        let how = match self.rolling {
            true => "first-token:behind-prefix|context:windows",
            false => &format!("{}|context:cut", self.protocol),
        };
        format!("bpb|bytes:utf8|{how}|version:{}", env!("CARGO_PKG_VERSION"))
    }

    fn width(&self) -> usize {
        2
    }

    fn rows(&self, segments: &[Segment]) -> Result<Vec<Vec<f64>>> {
        let row = |s: &Segment| {
            let (nats, bytes) = self.of(s);
            vec![-nats / std::f64::consts::LN_2, bytes as f64]
        };
        Ok(segments.iter().map(row).collect())
    }

    fn value(&self, sums: &[f64], _rows: usize) -> f64 {
        let at = |i: usize| sums.get(i).copied().unwrap_or(0.0);
        at(0) / at(1).max(1e-300)
    }

    fn shown(&self, segment: &Segment, _row: &[f64]) -> Value {
        json!(self.of(segment))
    }
}
