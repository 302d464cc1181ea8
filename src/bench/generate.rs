//! Greedy generation: prefill and decoding of random prompts, by batch.
use std::time::Instant;

use anyhow::{Result, ensure};

use super::{Row, Runs, models, timed};
use crate::{
    data::random::RowRandom,
    infer::{
        engine::{Engine, EngineOptions, Generated, Request},
        sampler::SamplingParams,
    },
    models::transformer::{config::Config, weights::Transformer},
    tensor::DType,
};

/// What is generated.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Prompts at once.
    pub rows: usize,
    /// Tokens of each.
    pub prompt: usize,
    /// New tokens behind each.
    pub new: usize,
}

/// Bytes that a decode step must read: the weights of all products once, and each row's keys and values (of type `cached`) at its mean length.
pub fn step_bytes(config: &Config, weights: DType, cached: DType, case: Case) -> f64 {
    let ((layer, head), layers) = (models::product_parameters(config), config.num_hidden_layers as f64);
    let kept = (case.prompt + case.new / 2) * case.rows * 2 * config.kv_size();
    weights.bytes() as f64 * (layers * layer + head) + cached.bytes() as f64 * layers * kept as f64
}

/// Prefill and decoding in `tokens/s`, summed over the batch, and decoding in `GB/s` against `ceiling`.
///
/// # Errors
/// Too little memory; a reply of another length, a token beyond the vocabulary, equal prompts that go on differently, between rows or runs.
pub fn measure(model: &Transformer, dtype: DType, case: Case, runs: Runs, ceiling: &Row) -> Result<Vec<Row>> {
    let device = model.device();
    let vocabulary = model.config.vocab_size;
    let batch_tokens = if device.gpu().is_some() { 8192 } else { EngineOptions::default().batch_tokens };
    let mut engine = Engine::new(model, EngineOptions { batch_rows: case.rows, batch_tokens })?;
    let mut random = RowRandom::new(1, "bench", "prompts");
    let low = 100.min(vocabulary / 2);
    let mut prompts: Vec<Vec<u32>> = (0..case.rows)
        .map(|_| {
            (0..case.prompt).map(|_| (low + random.below(vocabulary.min(40_100) - low)) as u32).collect()
        })
        .collect();
    // The first and the last are the same.
    prompts[case.rows - 1] = prompts[0].clone();
    let requests: Vec<Request> =
        prompts.into_iter().enumerate().map(|(i, tokens)| Request { id: i.to_string(), tokens }).collect();
    let mut before: Option<Vec<Generated>> = None;
    let mut first = vec![];
    let whole = timed(&device, runs, || {
        let params = |n: usize| SamplingParams {
            max_new_tokens: n,
            min_new_tokens: n,
            eos: vec![],
            ..Default::default()
        };
        let began = Instant::now();
        engine.generate(&requests, &params(1), &mut |_, _| ())?;
        first.push(began.elapsed().as_secs_f64());
        let found = engine.generate(&requests, &params(case.new), &mut |_, _| ())?;
        check(&found, case.new, vocabulary)?;
        ensure!(
            before.as_ref().is_none_or(|b| *b == found),
            "the same prompts go on differently in two runs"
        );
        before = Some(found);
        Ok(())
    })?;
    let first = &first[runs.warmup.min(first.len())..];
    // A run is a prefill of its own, and then a prefill again, here the fastest of all, with all new tokens behind it.
    let prefill = first.iter().copied().fold(f64::INFINITY, f64::min);
    let decode: Vec<f64> = whole.iter().zip(first).map(|(whole, first)| whole - first - prefill).collect();
    ensure!(
        decode.iter().all(|&s| s > 0.0),
        "decoding took no longer than a prefill: too short to be timed; more --new tokens are needed"
    );
    let steps = (case.new - 1) as f64;
    let rows = case.rows;
    let cached = model.activation_dtype();
    let bytes = step_bytes(&model.config, dtype, cached, case) * steps / 1e9;
    let per_token: Vec<f64> = decode.iter().map(|s| s / steps).collect();
    Ok(vec![
        Row::rate(format!("prefill, batch {rows}"), "tokens/s", (rows * case.prompt) as f64, first),
        Row::rate(format!("decode, batch {rows}"), "tokens/s", rows as f64 * steps, &decode),
        Row::time(format!("decode, batch {rows}, per step"), &per_token),
        Row::rate(format!("decode, batch {rows}, bytes"), "GB/s", bytes, &decode).against(ceiling),
    ])
}

fn check(found: &[Generated], new: usize, vocabulary: usize) -> Result<()> {
    for row in found {
        ensure!(row.tokens.len() == new, "a row has {} tokens instead of {new}", row.tokens.len());
        ensure!(row.tokens.iter().all(|&t| (t as usize) < vocabulary), "a token beyond the vocabulary");
    }
    let same = found.first().map(|r| &r.tokens) == found.last().map(|r| &r.tokens);
    ensure!(same, "equal prompts of one batch go on differently");
    Ok(())
}
