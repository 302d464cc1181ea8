//! Replies in the wrong language.
use anyhow::{Context, Result};

use crate::{
    data::language_id,
    metrics::{
        metric::{About, Evidence, MeanMetric, Metric, MetricOptions, Needs, OpenMetric, Segment, Unit},
        off_target::is_off_target,
    },
};

/// The share of replies that are empty or in another language.
pub struct OffTarget;

impl Metric for OffTarget {
    fn about(&self) -> About {
        About {
            name: "off-target",
            key: "off_target",
            label: "off target",
            heading: "off target %",
            help: "Replies that are empty or reliably in another language (needs the language): lower is better",
            unit: Unit::Percent,
            decimals: 1,
            higher_is_better: false,
            evidence: Evidence::Reply,
            needs: Needs { language: true, ..Default::default() },
        }
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        let language = options.language.context("there is no language to be on target of")?.to_string();
        language_id::require(&language)?;
        let signature = format!("off-target|lang:{language}|version:{}", env!("CARGO_PKG_VERSION"));
        let of = move |s: &Segment| f64::from(u8::from(is_off_target(s.reply, &language)));
        Ok(Box::new(MeanMetric { signature, scale: 100.0, of: Box::new(of) }))
    }
}
