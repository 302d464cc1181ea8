//! Batched generation: independent of the batch, equal to transformers.
use std::path::Path;

use sdrrl::{
    data::random::RowRandom,
    infer::{
        engine::{Engine, EngineOptions, Finish, Generated, Request},
        sampler::SamplingParams,
        scoring::ScoreRequest,
    },
    models::transformer::weights::Transformer,
    ops::gemm::linear_forward,
    tensor::{DType, Tensor},
};

use crate::common::with_threads;

fn tiny(name: &str) -> Transformer {
    Transformer::load(&Path::new("tests/golden/models").join(name), DType::F32).unwrap()
}

fn requests(n: usize) -> Vec<Request> {
    let prompt = |i: usize| {
        let mut random = RowRandom::new(1, "prompt", &i.to_string());
        (0..1 + random.below(20)).map(|_| random.below(96) as u32).collect()
    };
    (0..n).map(|i| Request { id: format!("row-{i}"), tokens: prompt(i) }).collect()
}

fn run(
    model: &Transformer,
    requests: &[Request],
    params: &SamplingParams,
    options: EngineOptions,
) -> Vec<Generated> {
    Engine::new(model, options).unwrap().generate(requests, params, &mut |_, _| {}).unwrap()
}

#[test]
fn a_row_does_not_depend_on_its_batch_order_or_threads() {
    for name in ["llama-tied", "mistral-window", "llama-bias"] {
        let model = tiny(name);
        let all = requests(13);
        for temperature in [0.0, 0.8] {
            let params =
                SamplingParams { max_new_tokens: 24, temperature, eos: vec![2, 5], ..Default::default() };
            let one = EngineOptions { batch_rows: 1, batch_tokens: 1 };
            let alone: Vec<Generated> =
                all.iter().flat_map(|r| run(&model, std::slice::from_ref(r), &params, one)).collect();
            for (batch_rows, batch_tokens) in [(1, 7), (3, 30), (13, 64), (13, 2048)] {
                let got = run(&model, &all, &params, EngineOptions { batch_rows, batch_tokens });
                assert_eq!(got, alone, "{name} {temperature} {batch_rows} {batch_tokens}");
            }
            let backwards: Vec<Request> = all.iter().rev().cloned().collect();
            let mut got = with_threads(3, || run(&model, &backwards, &params, EngineOptions::default()));
            got.reverse();
            assert_eq!(got, alone, "{name} {temperature} backwards");
        }
    }
}

#[test]
fn decoding_with_the_cache_equals_running_the_whole_text() {
    let model = tiny("mistral-window");
    let params = SamplingParams { max_new_tokens: 20, ..Default::default() };
    for request in requests(4) {
        let got = &run(&model, std::slice::from_ref(&request), &params, EngineOptions::default())[0];
        assert_eq!((got.tokens.len(), got.finish), (20, Finish::Length));
        let mut tokens = request.tokens.clone();
        for &next in &got.tokens {
            let mut decoder =
                sdrrl::models::transformer::decode::Decoder::new(&model, tokens.len(), 64).unwrap();
            let hidden = decoder.prompts(&model, &[&tokens], None, &[]).unwrap();
            let mut logits = Tensor::zeros("logits", DType::F32, &[tokens.len(), 96]).unwrap();
            linear_forward(&mut logits, &hidden, model.weights.head(), None).unwrap();
            let last = &logits.to_f32_vec().unwrap()[(tokens.len() - 1) * 96..];
            let best = (0..96).rev().max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
            assert_eq!(best as u32, next);
            tokens.push(next);
        }
    }
}

#[test]
fn log_probs_are_those_of_the_softmax() {
    let model = tiny("llama-tied");
    let scored: Vec<ScoreRequest> =
        requests(9).into_iter().map(|r| ScoreRequest { start: 1, tokens: r.tokens }).collect();
    let run = |batch_tokens: usize| {
        let options = EngineOptions { batch_rows: 4, batch_tokens };
        Engine::new(&model, options).unwrap().log_probs(&scored, &mut |_| {}).unwrap()
    };
    let got = run(2048);
    assert_eq!(got, run(1), "packing must not change a score");
    for (request, got) in scored.iter().zip(&got) {
        assert_eq!(got.len(), request.tokens.len() - 1);
        let n = request.tokens.len();
        let mut decoder = sdrrl::models::transformer::decode::Decoder::new(&model, n, 64).unwrap();
        let hidden = decoder.prompts(&model, &[&request.tokens], None, &[]).unwrap();
        let mut logits = Tensor::zeros("logits", DType::F32, &[n, 96]).unwrap();
        linear_forward(&mut logits, &hidden, model.weights.head(), None).unwrap();
        for i in 1..n {
            let row: Vec<f64> =
                logits.to_f32_vec().unwrap()[(i - 1) * 96..i * 96].iter().map(|&x| x as f64).collect();
            let log_sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
            let want = row[request.tokens[i] as usize] - log_sum;
            assert!((got[i - 1] as f64 - want).abs() < 1e-5, "{} {want}", got[i - 1]);
        }
    }
}

/// What greedy decoding writes scores as greedy; any other last token does not.
#[test]
fn scores_know_what_greedy_decoding_would_write() {
    for name in ["llama-tied", "mistral-window"] {
        let model = tiny(name);
        let mut engine = Engine::new(&model, EngineOptions { batch_rows: 3, batch_tokens: 40 }).unwrap();
        let asked = requests(9);
        let params = SamplingParams { max_new_tokens: 5, temperature: 0.0, ..Default::default() };
        let written = engine.generate(&asked, &params, &mut |_, _| {}).unwrap();
        let scored = |change: u32| -> Vec<ScoreRequest> {
            let rows = asked.iter().zip(&written).filter(|(_, w)| !w.tokens.is_empty());
            rows.map(|(r, w)| {
                let mut tokens = [r.tokens.clone(), w.tokens.clone()].concat();
                let last = tokens.len() - 1;
                tokens[last] = (tokens[last] + change) % 96;
                ScoreRequest { tokens, start: r.tokens.len() }
            })
            .collect()
        };
        let mut greedy = |change: u32| -> Vec<bool> {
            engine.score(&scored(change), &mut |_| {}).unwrap().into_iter().map(|s| s.greedy).collect()
        };
        assert!(greedy(0).len() > 4 && greedy(0).iter().all(|g| *g), "{name}");
        assert!(greedy(1).iter().all(|g| !g), "{name}");
    }
}

#[test]
fn impossible_requests_are_named() {
    let model = tiny("llama-tied");
    let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
    let mut fails = |tokens: Vec<u32>, what: &str| {
        let request = Request { id: "row-7".into(), tokens };
        let error =
            engine.generate(&[request], &SamplingParams::default(), &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains("row-7") && error.contains(what), "{error}");
    };
    fails(vec![], "empty");
    fails(vec![1; 64], "shorten");
    fails(vec![96], "vocabulary");
}

/// 64 greedy tokens of the real model on 10 prompts (scripts/golden_generation.py).
#[test]
#[ignore = "needs SmolLM2: run scripts/get_assets.sh, then cargo test --release -- --ignored smollm2"]
fn smollm2_writes_what_transformers_writes() {
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string("tests/golden/smollm2_greedy.json").unwrap()).unwrap();
    let model =
        Transformer::load(Path::new("assets/downloads/SmolLM2-135M-Instruct.Q4_1.gguf"), DType::F32).unwrap();
    let ids = |v: &serde_json::Value| {
        v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect::<Vec<_>>()
    };
    let cases = golden["cases"].as_array().unwrap();
    let requests: Vec<Request> = cases
        .iter()
        .enumerate()
        .map(|(i, c)| Request { id: i.to_string(), tokens: ids(&c["prompt"]) })
        .collect();
    let params = SamplingParams { max_new_tokens: 64, eos: vec![2], ..Default::default() };
    let got = run(&model, &requests, &params, EngineOptions::default());
    for (case, got) in cases.iter().zip(&got) {
        let mut want = ids(&case["greedy"]);
        want.retain(|&t| t != 2);
        assert_eq!(got.tokens, want, "{}", case["question"]);
    }
}
