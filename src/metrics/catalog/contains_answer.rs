//! Whether a reply contains the answer: what exact match denies to models that answer in sentences.
use anyhow::{Context, Result};

use crate::metrics::{
    metric::{About, Evidence, MeanMetric, Metric, MetricOptions, Needs, OpenMetric, Segment, Unit},
    qa::normalised,
};

/// The share of replies in which one of the answers stands, word for word (Mallen et al. 2023), normalised as MKQA does.
pub struct ContainsAnswer;

impl Metric for ContainsAnswer {
    fn about(&self) -> About {
        About {
            name: "contains-answer",
            key: "contains_answer",
            label: "contains answer",
            heading: "contains answer %",
            help: "Replies in which a reference stands word for word, normalised as MKQA does (needs the language)",
            unit: Unit::Percent,
            decimals: 1,
            higher_is_better: true,
            evidence: Evidence::Reply,
            needs: Needs { references: true, language: true, ..Default::default() },
        }
    }

    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        let language = options.language.context("answers are normalised by language")?.to_string();
        let signature = format!("contains|norm:mkqa|lang:{language}|version:{}", env!("CARGO_PKG_VERSION"));
        let of = move |s: &Segment| {
            let reply = normalised(s.reply, &language);
            let found = s.references.iter().any(|answer| contains(&reply, &normalised(answer, &language)));
            f64::from(u8::from(found))
        };
        Ok(Box::new(MeanMetric::new(signature, 100.0, of)))
    }
}

/// Whether the answer's words follow one another in the reply. Of an answer without words only a reply without words is right.
fn contains(reply: &[String], answer: &[String]) -> bool {
    if answer.is_empty() {
        reply.is_empty()
    } else {
        reply.windows(answer.len()).any(|words| words == answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_as_whole_words() {
        let options = MetricOptions { language: Some("en"), ..Default::default() };
        let metric = ContainsAnswer.open(&options).unwrap();
        let of = |reply: &str, answers: &[&str]| {
            let references: Vec<String> = answers.iter().map(|a| a.to_string()).collect();
            metric.rows(&[Segment { reply, references: &references, ..Default::default() }]).unwrap()[0][0]
        };
        assert_eq!(of("It is the White House, of course.", &["x", "the white house"]), 1.0);
        assert_eq!(of("whitehouse", &["white house"]), 0.0);
        assert_eq!(of("house white", &["white house"]), 0.0);
        assert_eq!(of("partly", &["part"]), 0.0);
        assert_eq!((of("", &[""]), of("x", &["."]), of("", &["x"])), (1.0, 0.0, 0.0));
        assert_eq!(metric.value(&[1.0], 4), 25.0);
    }
}
