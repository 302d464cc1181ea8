//! Training steps: LoRA on all seven linears of packed documents, every token trained, AdamW.
use std::time::Instant;

use anyhow::{Result, ensure};

use super::{Row, Runs, models, timed, wait};
use crate::{
    data::random::RowRandom,
    models::transformer::{
        config::Config,
        lora::{Lora, LoraConfig},
        train_step::{PackedBatch, TrainStep, Trainable},
        weights::Transformer,
    },
    train::optimizer::{Optimizer, OptimizerSettings},
};

/// What a step is of.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Documents of a step.
    pub rows: usize,
    /// Tokens of each.
    pub length: usize,
    /// Rank of the adapters.
    pub rank: usize,
    /// Whether the weights are random, so that the first loss must be near ln V.
    pub random: bool,
}

/// Model FLOP a token of a LoRA step (N frozen parameters of products, P of adapters) and the formula: what a step must do, whatever a program does on top,
/// such as recomputing activations.
pub fn model_flop(c: &Config, case: Case) -> (f64, String) {
    let ((layer, head), layers) = (models::product_parameters(c), c.num_hidden_layers as f64);
    let n = layers * layer + head;
    let [hidden, query, kv, mlp] =
        [c.hidden_size, c.query_size(), c.kv_size(), c.intermediate_size].map(|x| x as f64);
    // In plus out of q, k, v, o, gate, up and down.
    let sides = 2.0 * (hidden + query) + 2.0 * (hidden + kv) + 3.0 * (hidden + mlp);
    let lora = layers * case.rank as f64 * sides;
    // The lowest layer's q, k and v pass nothing on.
    let lowest = hidden * (query + 2.0 * kv);
    let attention = case.length as f64 * query * layers;
    let total = 2.0 * n + (2.0 * n - 2.0 * lowest) + 6.0 * lora + 7.0 * attention;
    let formula = format!(
        "model FLOP/token = 2 N forward + 2 N - 2 C (NH + 2 NKV) HS input gradients + 6 P LoRA + 2 T NH HS L attention forward + 5 T NH HS L backward \
         = {:.3} G (N = {:.1} M of products, P = {:.2} M of adapters, T = {})",
        total / 1e9,
        n / 1e6,
        lora / 1e6,
        case.length
    );
    (total, formula)
}

/// Rates of whole steps (`tokens/s`, `GFLOP/s` against `ceiling`) and the times of their parts.
///
/// # Errors
/// Too little memory; a first loss that is not finite, or not near ln V where weights are random; a loss that does not fall on the batch that is repeated.
pub fn measure(model: &mut Transformer, case: Case, runs: Runs, ceiling: &Row) -> Result<Vec<Row>> {
    let device = model.device();
    let tokens = case.rows * case.length;
    let lora = LoraConfig { r: case.rank, alpha: 2.0 * case.rank as f64, ..LoraConfig::default() };
    let lora = Lora::init(model, lora, 1)?;
    let mut step = TrainStep::new(model, Trainable::Lora(lora), tokens)?;
    let settings = OptimizerSettings {
        kind: Default::default(),
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        clip: 1.0,
        lora_plus_ratio: 1.0,
    };
    let mut optimizer = Optimizer::new(&step.params(model), settings)?;
    let mut random = RowRandom::new(1, "bench", "tokens");
    let vocabulary = model.config.vocab_size;
    let documents: Vec<Vec<u32>> =
        (0..case.rows).map(|_| (0..case.length).map(|_| random.below(vocabulary) as u32).collect()).collect();
    let weights = vec![1.0; case.length];
    let batch = |documents: &[Vec<u32>]| {
        let mut batch = PackedBatch::default();
        documents.iter().for_each(|d| batch.push(d, &weights));
        batch
    };
    let scale = 1.0 / (case.rows * (case.length - 1)) as f32;
    let (mut losses, mut number) = (vec![], 0);
    let (mut both, mut update) = (vec![], vec![]);
    let seconds = timed(&device, runs, || {
        number += 1;
        let packed = batch(&documents);
        let began = Instant::now();
        step.zero_grads()?;
        losses.push(step.forward_backward(model, &packed, scale)?.mean());
        wait(&device)?;
        both.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        optimizer.step(number, 1e-4)?;
        wait(&device)?;
        update.push(began.elapsed().as_secs_f64());
        Ok(())
    })?;
    check(&losses, vocabulary, case.random)?;
    let packed = batch(&documents);
    let forward = timed(&device, runs, || step.forward(model, &packed).map(drop))?;
    let timed_only = |all: &[f64]| all[runs.warmup.min(all.len())..].to_vec();
    let flop = model_flop(&model.config, case).0;
    Ok(vec![
        Row::rate("training step", "tokens/s", tokens as f64, &seconds),
        Row::rate("training step, model FLOP", "GFLOP/s", flop * tokens as f64 / 1e9, &seconds)
            .against(ceiling),
        Row::time("forward alone", &forward),
        Row::time("forward and backward", &timed_only(&both)),
        Row::time("optimizer", &timed_only(&update)),
    ])
}

fn check(losses: &[f64], vocabulary: usize, random: bool) -> Result<()> {
    let expected = (vocabulary as f64).ln();
    let (first, last) =
        (losses.first().copied().unwrap_or(f64::NAN), losses.last().copied().unwrap_or(f64::NAN));
    ensure!(first.is_finite(), "the first loss is {first}");
    let near = (first - expected).abs() < 2.0;
    ensure!(
        near || !random,
        "the first loss is {first:.3}, not near ln V = {expected:.2}: the figures would mean nothing"
    );
    ensure!(
        losses.len() < 2 || last < first,
        "the loss does not fall on a batch that is repeated: {losses:?}"
    );
    Ok(())
}
