//! ROUGE-L.
use anyhow::{Context, Result};

use crate::metrics::{
    metric::{About, Evidence, MeanMetric, Metric, MetricOptions, Needs, OpenMetric, Segment, Unit},
    rouge::Rouge,
};

/// ROUGE-L of summaries.
pub struct RougeL;

impl Metric for RougeL {
    fn about(&self) -> About {
        About {
            name: "rouge-l",
            key: "rougeL",
            label: "ROUGE-L F1",
            heading: "ROUGE-L",
            help: "ROUGE-L as XL-SUM's authors compute it (needs the language)",
            unit: Unit::Points,
            decimals: 2,
            higher_is_better: true,
            evidence: Evidence::Reply,
            needs: Needs { references: true, language: true, ..Default::default() },
        }
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        let language = options.language.context("ROUGE has no language")?;
        let rouge = Rouge::new(language, options.dictionary, options.stem)?;
        let signature = rouge.signature();
        let of = move |s: &Segment| rouge.f1(s.reply, s.reference());
        Ok(Box::new(MeanMetric { signature, scale: 100.0, of: Box::new(of) }))
    }
}
