//! Metrics against sacrebleu's own numbers (scripts/golden_metrics.py).
use proptest::prelude::*;
use sdrrl::metrics::{bleu, chrf, tokenize::BleuTokenizer};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(&std::fs::read_to_string("tests/golden/metrics/sacrebleu.json").unwrap()).unwrap()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|x| x.as_str().unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn same(ours: f64, theirs: f64, what: &str) {
    assert!((ours - theirs).abs() < 1e-9, "{what}: {ours} is not {theirs}");
}

#[test]
fn bleu_equals_sacrebleu() {
    let g = golden();
    let (hyps, refs) = (texts(&g["hypotheses"]), texts(&g["references"]));
    for tok in [BleuTokenizer::V13a, BleuTokenizer::Zh, BleuTokenizer::Char, BleuTokenizer::None] {
        let theirs = &g["bleu"][tok.name()];
        for (hyp, tokens) in hyps.iter().zip(texts(&theirs["tokens"])) {
            assert_eq!(tok.tokenize(hyp), tokens, "{hyp:?} by {}", tok.name());
        }
        let ours = bleu::corpus_bleu(&hyps, &refs, tok).unwrap();
        same(ours.score, theirs["score"].as_f64().unwrap(), tok.name());
        same(ours.brevity_penalty, theirs["bp"].as_f64().unwrap(), tok.name());
        for (a, b) in ours.precisions.iter().zip(numbers(&theirs["precisions"])) {
            same(*a, b, tok.name());
        }
        assert_eq!(ours.signature, theirs["signature"].as_str().unwrap());
        for ((h, r), score) in hyps.iter().zip(&refs).zip(numbers(&theirs["each"])) {
            same(bleu::corpus_bleu(&[h], &[r], tok).unwrap().score, score, h);
        }
    }
}

#[test]
fn chrf_equals_sacrebleu() {
    let g = golden();
    let (hyps, refs) = (texts(&g["hypotheses"]), texts(&g["references"]));
    for order in [0, 2] {
        let theirs = &g["chrf"][order.to_string()];
        let ours = chrf::corpus_chrf(&hyps, &refs, order).unwrap();
        same(ours.score, theirs["score"].as_f64().unwrap(), "corpus");
        assert_eq!(ours.signature, theirs["signature"].as_str().unwrap());
        for ((h, r), score) in hyps.iter().zip(&refs).zip(numbers(&theirs["each"])) {
            same(chrf::corpus_chrf(&[h], &[r], order).unwrap().score, score, h);
        }
    }
}

#[test]
fn different_numbers_of_lines_are_refused() {
    assert!(bleu::corpus_bleu(&["a"], &[], BleuTokenizer::V13a).is_err());
    assert!(chrf::corpus_chrf(&[], &["a"], 0).is_err());
}

proptest! {
    #[test]
    fn scores_lie_in_range_and_equal_texts_score_100(a in "\\PC{0,40}", b in "\\PC{0,40}") {
        for tok in [BleuTokenizer::V13a, BleuTokenizer::Zh, BleuTokenizer::Char] {
            let score = bleu::corpus_bleu(&[&a], &[&b], tok).unwrap().score;
            prop_assert!((0.0..=100.0 + 1e-9).contains(&score), "{score}");
        }
        let text = format!("{a} some more words here");
        prop_assert!((chrf::corpus_chrf(&[&text], &[&text], 2).unwrap().score - 100.0).abs() < 1e-9);
        prop_assert!((bleu::corpus_bleu(&[&text], &[&text], BleuTokenizer::V13a).unwrap().score - 100.0).abs() < 1e-9);
    }
}
