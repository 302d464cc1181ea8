//! chrF and chrF++.
use anyhow::Result;

use crate::metrics::{
    corpus::CorpusMetric,
    metric::{About, Evidence, Metric, MetricOptions, Needs, OpenMetric, Unit},
};

/// chrF with words up to an order.
pub struct Chrf {
    words: usize,
}

/// Characters alone.
pub const CHRF: Chrf = Chrf { words: 0 };
/// With words and pairs of words.
pub const CHRF_WORDS: Chrf = Chrf { words: 2 };

impl Metric for Chrf {
    fn about(&self) -> About {
        let characters = About {
            name: "chrf",
            key: "chrf",
            label: "chrF",
            heading: "chrF2",
            help: "chrF2 of characters",
            unit: Unit::Points,
            decimals: 2,
            higher_is_better: true,
            evidence: Evidence::Reply,
            needs: Needs { references: true, ..Default::default() },
        };
        if self.words == 0 {
            return characters;
        }
        About {
            name: "chrf++",
            key: "chrf++",
            label: "chrF++",
            heading: "chrF2++",
            help: "chrF2++: characters and words",
            ..characters
        }
    }

    fn open(&self, _options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        Ok(Box::new(CorpusMetric::Chrf(self.words)))
    }
}
