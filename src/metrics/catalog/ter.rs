//! Translation edit rate.
use anyhow::Result;

use crate::metrics::{
    corpus::CorpusMetric,
    metric::{About, Evidence, Metric, MetricOptions, Needs, OpenMetric, Unit},
};

/// TER of a corpus.
pub struct Ter;

impl Metric for Ter {
    fn about(&self) -> About {
        About {
            name: "ter",
            key: "ter",
            label: "TER",
            heading: "TER",
            help: "Translation edit rate: lower is better",
            unit: Unit::Points,
            decimals: 2,
            higher_is_better: false,
            evidence: Evidence::Reply,
            needs: Needs { references: true, ..Default::default() },
        }
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        Ok(Box::new(CorpusMetric::Ter(options.ter)))
    }
}
