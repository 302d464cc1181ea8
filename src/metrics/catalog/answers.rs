//! Short answers against known ones, normalised as MKQA's official script does.
use anyhow::{Context, Result};

use crate::metrics::{
    metric::{About, Evidence, MeanMetric, Metric, MetricOptions, Needs, OpenMetric, Segment, Unit},
    qa,
};

/// Whether the reply equals one of the answers.
pub struct ExactMatch;
/// Token F1 against the best of the answers.
pub struct F1;

const NEEDS: Needs = Needs { references: true, source: false, language: true, model: false };

impl Metric for ExactMatch {
    fn about(&self) -> About {
        About {
            name: "exact-match",
            key: "exact_match",
            label: "exact match",
            heading: "exact match %",
            help: "Replies that equal a reference, normalised as MKQA does (needs the language)",
            unit: Unit::Percent,
            decimals: 1,
            higher_is_better: true,
            evidence: Evidence::Reply,
            needs: NEEDS,
        }
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        open(options, "em", qa::exact_match)
    }
}

impl Metric for F1 {
    fn about(&self) -> About {
        About {
            name: "f1",
            key: "f1",
            label: "F1",
            heading: "F1 %",
            help: "Token F1 against the nearest reference, normalised as MKQA does (needs the language)",
            ..ExactMatch.about()
        }
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        open(options, "f1", qa::f1)
    }
}

fn open(
    options: &MetricOptions,
    how: &str,
    score: fn(&str, &[&str], &str) -> f64,
) -> Result<Box<dyn OpenMetric>> {
    let language = options.language.context("answers are normalised by language")?.to_string();
    let signature = format!("{how}|norm:mkqa|lang:{language}|version:{}", env!("CARGO_PKG_VERSION"));
    let of = move |s: &Segment| {
        let references: Vec<&str> = s.references.iter().map(String::as_str).collect();
        score(s.reply, &references, &language)
    };
    Ok(Box::new(MeanMetric::new(signature, 100.0, of)))
}
