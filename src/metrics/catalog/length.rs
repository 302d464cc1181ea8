//! How far the length of a reply is from what was expected.
use anyhow::Result;

use crate::{
    data::words::words,
    metrics::metric::{About, Evidence, MeanMetric, Metric, MetricOptions, Needs, OpenMetric, Segment, Unit},
};

/// The mean of |ln((r + 1) / (a + 1))| for a reply of r words and its first reference of a: 0 where replies are as long as they should be, 0.69 where they have
/// half or twice the words.
pub struct LengthDistance;

impl Metric for LengthDistance {
    fn about(&self) -> About {
        About {
            name: "length-distance",
            key: "length_distance",
            label: "length distance",
            heading: "length distance",
            help: "How far replies are from the reference's length: mean |ln| of the ratio of words; 0.69 is half or twice: lower is better",
            unit: Unit::Fraction,
            decimals: 3,
            higher_is_better: false,
            evidence: Evidence::Reply,
            needs: Needs { references: true, ..Default::default() },
        }
    }

    fn open(&self, _options: &MetricOptions) -> Result<Box<dyn OpenMetric>> {
        let signature = format!("length-distance|words:unicode|version:{}", env!("CARGO_PKG_VERSION"));
        let count = |text: &str| (words(text).len() + 1) as f64;
        let of = move |s: &Segment| (count(s.reply) / count(s.reference())).ln().abs();
        Ok(Box::new(MeanMetric::new(signature, 1.0, of)))
    }
}

#[test]
fn lengths_are_compared_in_words_of_any_script() {
    let metric = LengthDistance.open(&MetricOptions::default()).unwrap();
    let of = |reply: &str, answer: &str| {
        let references = [answer.to_string()];
        metric.rows(&[Segment { reply, references: &references, ..Default::default() }]).unwrap()[0][0]
    };
    assert_eq!(of("one two three", "uno, dos, tres."), 0.0);
    assert!((of("one", "one two three") - 2.0f64.ln()).abs() < 1e-12);
    assert_eq!(of("one two three", "one"), of("one", "one two three"));
    assert_eq!(of("", ""), 0.0);
    assert!(of("这是我的学校。", "这是我的学校。这是我的学校。") > 0.4);
}
