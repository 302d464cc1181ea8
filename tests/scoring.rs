//! Log-likelihoods of texts that share work: equal to whole forward passes, and the same whatever else is scored.
use std::path::Path;

use sdrrl::{
    data::random::RowRandom,
    infer::{
        engine::{Engine, EngineOptions},
        scoring::{ScoreRequest, Scored},
    },
    models::{transformer::decode::Decoder, transformer::weights::Transformer},
    ops::gemm::linear_forward,
    tensor::{DType, Tensor},
};

use crate::common::with_threads;

/// Tokens of the tiny models' vocabulary.
const VOCAB: usize = 96;
const MODELS: [&str; 3] = ["llama-tied", "mistral-window", "llama-bias"];

fn tiny(name: &str) -> Transformer {
    Transformer::load(&Path::new("tests/golden/models").join(name), DType::F32).unwrap()
}

fn tokens(name: &str, n: usize) -> Vec<u32> {
    let mut random = RowRandom::new(1, "scoring", name);
    (0..n).map(|_| random.below(VOCAB) as u32).collect()
}

/// Questions with contexts of 1 to 30 tokens, each with choices of 1, 1, 3, 3, 7 and 40 tokens; one is the beginning of another, one is asked
/// twice, and of one nothing is scored.
fn questions() -> Vec<ScoreRequest> {
    let mut out = vec![];
    for n in [1, 2, 5, 11, 20] {
        let context = tokens(&format!("context {n}"), n);
        let choice = |tail: &[u32]| ScoreRequest { tokens: [&context, tail].concat(), start: n };
        let mut tails: Vec<Vec<u32>> = [1, 1, 3, 3, 7, 40]
            .iter()
            .enumerate()
            .map(|(i, &length)| tokens(&format!("choice {n} {i}"), length))
            .collect();
        tails.push(tails[4][..3].to_vec());
        tails.push(tails[2].clone());
        tails.push(vec![]);
        out.extend(tails.iter().map(|t| choice(t)));
    }
    // The whole of a text that also is a choice behind its context.
    out.push(ScoreRequest { start: 1, ..out[38].clone() });
    out
}

/// From a forward pass over the whole text and sums in f64.
fn whole(model: &Transformer, r: &ScoreRequest) -> (Vec<f64>, bool) {
    let n = r.tokens.len();
    let mut decoder = Decoder::new(model, n, 64).unwrap();
    let hidden = decoder.prompts(model, &[&r.tokens], None, &[]).unwrap();
    let mut logits = Tensor::zeros("logits", DType::F32, &[n, VOCAB]).unwrap();
    linear_forward(&mut logits, &hidden, model.weights.head(), None).unwrap();
    let logits = logits.to_f32_vec().unwrap();
    let rows: Vec<&[f32]> = logits.chunks(VOCAB).collect();
    let (mut log_probs, mut greedy) = (vec![], true);
    for i in r.start..n {
        let (row, target) = (rows[i - 1], r.tokens[i] as usize);
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        log_probs.push(f64::from(row[target]) - sum.ln());
        greedy &= row.iter().enumerate().all(|(t, &x)| x < row[target] || (t >= target && x == row[target]));
    }
    (log_probs, greedy)
}

fn score(model: &Transformer, requests: &[ScoreRequest], batch_tokens: usize) -> Vec<Scored> {
    let options = EngineOptions { batch_rows: 4, batch_tokens };
    let mut done = 0;
    let found = Engine::new(model, options).unwrap().score(requests, &mut |n| done += n).unwrap();
    assert_eq!(done, requests.iter().filter(|r| r.start < r.tokens.len()).count());
    found
}

#[test]
fn shared_work_gives_the_scores_of_whole_forward_passes() {
    for name in MODELS {
        let model = tiny(name);
        let requests = questions();
        let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
        let log_probs = engine.log_probs(&requests, &mut |_| {}).unwrap();
        for (i, (r, got)) in requests.iter().zip(score(&model, &requests, 2048)).enumerate() {
            let (want, greedy) = whole(&model, r);
            assert_eq!((got.log_probs.len(), got.greedy), (want.len(), greedy), "{name} text {i}");
            for (got, want) in got.log_probs.iter().zip(want) {
                assert!((f64::from(*got) - want).abs() < 1e-5, "{name} text {i}: {got} for {want}");
            }
            assert_eq!(got.log_probs, log_probs[i], "{name} text {i}");
        }
    }
}

/// To the bit: alone, in batches of any size, in any order, for any number of threads.
#[test]
fn a_texts_score_is_its_own() {
    for name in MODELS {
        let model = tiny(name);
        let requests = questions();
        let alone: Vec<Scored> =
            requests.iter().flat_map(|r| score(&model, std::slice::from_ref(r), 1)).collect();
        for batch_tokens in [1, 30, 100, 2048] {
            assert_eq!(score(&model, &requests, batch_tokens), alone, "{name} {batch_tokens}");
        }
        let backwards: Vec<ScoreRequest> = requests.iter().rev().cloned().collect();
        let mut got = with_threads(3, || score(&model, &backwards, 50));
        got.reverse();
        assert_eq!(got, alone, "{name} backwards");
    }
}

/// The likeliest next tokens of a context, one after the other: the greedy choice and no other.
#[test]
fn one_row_of_logits_serves_many_choices() {
    let model = tiny("llama-tied");
    let context = tokens("context", 9);
    let choices: Vec<ScoreRequest> =
        (0..VOCAB as u32).map(|t| ScoreRequest { tokens: [&context[..], &[t]].concat(), start: 9 }).collect();
    let got = score(&model, &choices, 2048);
    let sum: f64 = got.iter().map(|s| f64::from(s.log_probs[0]).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "the probabilities of all tokens sum to {sum}");
    let best = got.iter().map(|s| s.log_probs[0]).fold(f32::NEG_INFINITY, f32::max);
    assert!(got.iter().all(|s| s.greedy == (s.log_probs[0] == best)));
}

#[test]
fn impossible_texts_are_named() {
    let model = tiny("llama-tied");
    let fails = |tokens: Vec<u32>, start: usize, what: &str| {
        let requests = [ScoreRequest { tokens: vec![1, 2], start: 1 }, ScoreRequest { tokens, start }];
        let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
        let error = engine.score(&requests, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("text 1") && error.contains(what), "{error}");
    };
    fails(vec![], 1, "before");
    fails(vec![1, 2], 0, "before");
    fails(vec![1, 2], 3, "before");
    // The last token is not run, so that one more than the context fits.
    fails(vec![1; 66], 1, "shorten");
    fails(vec![1, 96], 1, "vocabulary");
}
