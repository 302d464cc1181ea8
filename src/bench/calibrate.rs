//! How fast a decoder of some shape is on this machine, found in well under a second: the benches' own training step and decoding on one layer of it with its share of
//! the vocabulary, both narrowed where they are large, and scaled by the work.
use anyhow::{Result, ensure};

use super::{Row, Runs, ceilings, generate, models, train};
use crate::{
    models::{
        transformer::{config::Config, weights::Transformer},
        weights::check_memory,
    },
    pipeline::placement::Placement,
    tensor::DType,
};

/// What one layer and its share of the head may have, in parameters: on a processor, and on a GPU, which small ones leave idle.
const MOST: [f64; 2] = [8e6, 4e8];
/// Bytes of weights that a cache may hold from step to step.
const CACHED: f64 = 32e6;
/// Tokens that are run.
const TOKENS: usize = 256;

/// By how much work by these rates may be off, at least and at most.
pub const OFF: [f64; 2] = [0.5, 2.0];

/// Seconds that a whole model takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// A token of a LoRA training step.
    pub train: f64,
    /// A token of a forward pass over many.
    pub forward: f64,
    /// One decoding step of all rows: at least, and at most.
    pub step: [f64; 2],
}

/// Measures what [`Rates`] of a model of this configuration are to be: documents of about `length` tokens in training, adapters of rank `rank`, `rows` that decode
/// together.
///
/// # Errors
/// A mixture of experts; the emulated device, whose times mean nothing; blocks of a file, which a shape has not; too little memory; shapes that no bench runs.
pub fn decoder(
    config: &Config,
    placement: Placement,
    length: usize,
    rank: usize,
    rows: usize,
) -> Result<Rates> {
    config.spec()?.check_reckoned()?;
    let device = placement.device.first().open()?;
    ensure!(device.gpu().is_none_or(|g| !g.is_emulated()), "times on the emulated device say nothing");
    ensure!(!placement.keeps_blocks(), "products over a file's quantised blocks have speeds of their own");
    let runs = Runs { warmup: 1, runs: 5 };
    let small = layer(config, MOST[device.gpu().is_some() as usize]);
    check_memory("measuring a layer", small.parameters() * 4)?;
    let mut model = models::random_decoder(small.clone(), placement.dtype, &device)?;
    let length = length.clamp(16, TOKENS).min(small.max_position_embeddings);
    let case = train::Case { rows: (TOKENS / length).max(1), length, rank, random: false };
    let nothing = Row::rate("", "GFLOP/s", 1.0, &[1.0]);
    let trained = train::measure(&mut model, case, runs, &nothing)?;
    let (flop, of_small) = (train::model_flop(config, case).0, train::model_flop(&small, case).0);
    let larger = parameters(config) / parameters(&small);
    let decoded = decode(&model, placement.dtype, rows, runs, &nothing)? * larger;
    let read = match parameters(config) * placement.dtype.bytes() as f64 {
        bytes if bytes > CACHED => bytes / 1e9 / ceilings::memory(&device, runs)?.median(),
        _ => 0.0,
    };
    let tokens = (case.rows * case.length) as f64;
    let seconds = |name: &str| trained.iter().find(|r| r.name == name).map_or(f64::NAN, |r| r.median() / 1e3);
    Ok(Rates {
        train: (seconds("forward and backward") + seconds("optimizer")) / tokens * flop / of_small,
        forward: seconds("forward alone") / tokens * larger,
        step: [decoded.max(read), decoded + read],
    })
}

/// Of all products.
fn parameters(c: &Config) -> f64 {
    let (layer, head) = models::product_parameters(c);
    layer * c.num_hidden_layers as f64 + head
}

/// One layer with its share of the vocabulary, all widths divided alike until it is small.
fn layer(config: &Config, most: f64) -> Config {
    let mut c = config.clone();
    c.vocab_size = (c.vocab_size / c.num_hidden_layers.max(1)).max(256);
    c.num_hidden_layers = 1;
    if let Some(kinds) = c.extra.get_mut("layer_types").and_then(|v| v.as_array_mut()) {
        kinds.truncate(1);
    }
    c.head_dim = Some(config.head_size());
    let halves = |x: usize| x.is_multiple_of(2) && x > 1;
    while parameters(&c) > most
        && [c.hidden_size, c.intermediate_size, c.num_attention_heads].into_iter().all(halves)
    {
        (c.hidden_size, c.intermediate_size, c.num_attention_heads) =
            (c.hidden_size / 2, c.intermediate_size / 2, c.num_attention_heads / 2);
        c.num_key_value_heads = Some((c.kv_heads() / 2).max(1));
        c.vocab_size = c.vocab_size.div_ceil(2).max(256);
    }
    c
}

/// Seconds of a decoding step.
fn decode(model: &Transformer, dtype: DType, rows: usize, runs: Runs, ceiling: &Row) -> Result<f64> {
    let case = generate::Case { rows, prompt: 8, new: 9 };
    let found = generate::measure(model, dtype, case, runs, ceiling)?;
    let step = found.iter().find(|r| r.name.ends_with("per step")).map(|r| r.median() / 1e3);
    step.ok_or_else(|| anyhow::anyhow!("no decoding step was measured"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_of_every_shape_is_a_model_and_small() {
        for shape in models::shapes() {
            let whole = models::config(&shape).unwrap();
            let small = layer(&whole, MOST[0]);
            assert!(small.spec().is_ok(), "{shape}: {small:?}");
            assert!(parameters(&small) <= MOST[0], "{shape}: {}", parameters(&small));
            assert_eq!(small.head_size(), whole.head_size());
        }
    }
}
