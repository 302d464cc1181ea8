//! ROUGE-L.
use anyhow::{Context, Result};

use crate::{
    data::languages,
    metrics::{
        metric::{About, Evidence, MeanMetric, Metric, MetricOptions, Needs, OpenMetric, Segment, Unit},
        rouge::Rouge,
    },
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
        Ok(Box::new(MeanMetric::new(signature, 100.0, of).warning_of(warning(language))))
    }
}

/// What to say where there is no rule for words.
fn warning(language: &str) -> Option<String> {
    let name = languages::name(language);
    match languages::without_script(language) {
        "yue_Hant" => Some(format!(
            "ROUGE in {name} compares single ideographs: XL-SUM's authors have no rule for its words"
        )),
        "th" | "ja" | "zh" | "zho_Hant" | "my" => None,
        _ if languages::is_unspaced(language) => Some(format!(
            "{name} has no spaces between words, and ROUGE has no rule for its words: it compares whole phrases and says little; take chrF"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_without_a_rule_for_words_are_warned_of() {
        for language in ["km", "lo", "yue_Hant", "shn_Mymr", "bod_Tibt"] {
            assert!(warning(language).is_some(), "{language}");
        }
        for language in ["en", "ja", "th", "ko", "am", "my", "zh", "zho_Hant", "zh-TW"] {
            assert!(warning(language).is_none(), "{language}");
        }
    }
}
