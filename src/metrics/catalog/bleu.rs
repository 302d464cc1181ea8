//! BLEU.
use anyhow::Result;

use crate::metrics::{
    corpus::CorpusMetric,
    metric::{About, Evidence, Metric, MetricOptions, Needs, OpenMetric, Unit},
    tokenize::BleuTokenizer,
};

/// BLEU of a corpus.
pub struct Bleu;

impl Metric for Bleu {
    fn about(&self) -> About {
        About {
            name: "bleu",
            key: "bleu",
            label: "BLEU",
            heading: "BLEU",
            help: "BLEU of word n-grams; the language chooses the tokenizer unless one is named",
            unit: Unit::Points,
            decimals: 2,
            higher_is_better: true,
            evidence: Evidence::Reply,
            needs: Needs { references: true, ..Default::default() },
        }
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        let language = options.language.unwrap_or_default();
        let tokenizer = BleuTokenizer::choose(language, options.tokenizer, options.dictionary)?;
        Ok(Box::new(CorpusMetric::Bleu(tokenizer.into())))
    }
}
