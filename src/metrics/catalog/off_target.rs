//! Replies in the wrong language.
use anyhow::{Context, Result};

use crate::{
    data::{
        language_id::{self, Coverage},
        languages,
    },
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
        languages::code(&language)?;
        let identifier = language_id::model_name().map_or(String::new(), |name| format!("|id:{name}"));
        let warning = language_id::warning(&language);
        let checked = if language_id::coverage(&language) == Coverage::Full { "" } else { "|not-checked" };
        let version = env!("CARGO_PKG_VERSION");
        let signature = format!("off-target|lang:{language}{identifier}{checked}|version:{version}");
        let of = move |s: &Segment| f64::from(u8::from(is_off_target(s.reply, &language)));
        let mean = MeanMetric::new(signature, 100.0, of);
        // In a language that no identifier knows there is no rate: 0 would say that all replies were right.
        let unchecked = warning.is_some();
        let mean = mean.warning_of(warning);
        Ok(Box::new(if unchecked { mean.without_value() } else { mean }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_that_no_identifier_knows_has_no_rate() {
        let replies = [
            "Esta respuesta está en español, no en la lengua que se pidió.",
            "Otra respuesta en español aquí.",
        ];
        let segments = replies.map(|reply| Segment { reply, ..Default::default() });
        for (language, checked) in [("en", true), ("Igbo", false), ("yor_Latn", false), ("sr-Latn", true)] {
            let options = MetricOptions { language: Some(language), ..Default::default() };
            let metric = OffTarget.open(&options).unwrap();
            let rows = metric.rows(&segments).unwrap();
            let value = crate::metrics::metric::value_of(metric.as_ref(), rows.iter());
            assert_eq!(
                (value.is_nan(), metric.warning().is_some()),
                (!checked, !checked),
                "{language}: {value}"
            );
            assert_eq!(metric.signature().contains("not-checked"), !checked);
        }
        assert!(OffTarget.open(&MetricOptions { language: Some("Klingon"), ..Default::default() }).is_err());
    }
}
