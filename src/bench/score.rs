//! Scoring: the encoder of quality estimators (XLM-RoBERTa) over pairs of 24 to 120 tokens, the first token's state of every layer read out, as CometKiwi does.
use anyhow::{Result, ensure};

use super::{Row, Runs, timed};
use crate::{
    models::xlm_roberta::{Encoder, LastLayer, States, XlmRoberta, batches},
    ops::rows::gather_rows,
    tensor::{DType, Tensor},
};

/// FLOP of the products and of attention for sentences of these lengths, all layers.
pub fn flop(model: &XlmRoberta, lengths: &[usize]) -> f64 {
    let c = &model.config;
    let (hidden, mlp, layers) =
        (c.hidden_size as f64, c.intermediate_size as f64, c.num_hidden_layers as f64);
    let products = 2.0 * (4.0 * hidden * hidden + 2.0 * hidden * mlp);
    lengths.iter().map(|&n| n as f64 * layers * (products + 4.0 * n as f64 * hidden)).sum()
}

/// Lengths of `pairs` pairs, from 24 to 120 tokens.
fn lengths(pairs: usize) -> Vec<usize> {
    (0..pairs).map(|i| 24 + i * 7919 % 97).collect()
}

/// `pairs/s`, `tokens/s` and `GFLOP/s` against `ceiling`.
///
/// # Errors
/// Too little memory; states that are not finite or differ between two runs.
pub fn measure(
    model: &XlmRoberta,
    pairs: usize,
    batch_tokens: usize,
    runs: Runs,
    ceiling: &Row,
) -> Result<Vec<Row>> {
    let (c, vocabulary) = (model.config.hidden_size, model.config.vocab_size);
    let lengths = lengths(pairs);
    let ids: Vec<Vec<u32>> =
        lengths.iter().map(|&n| (0..n).map(|i| (5 + i * 7919 % (vocabulary - 5)) as u32).collect()).collect();
    let mut encoder = Encoder::new(model, batch_tokens, LastLayer::First)?;
    let mut before: Option<Vec<f32>> = None;
    let device = model.device();
    let seconds = timed(&device, runs, || {
        let mut last = vec![];
        for batch in batches(&lengths, batch_tokens) {
            let sentences: Vec<&[u32]> = batch.iter().map(|&i| ids[i].as_slice()).collect();
            let mut first = Tensor::zeros_on(&device, "first", DType::F32, &[batch.len(), c])?;
            encoder
                .forward(model, &sentences, &mut |s: States| gather_rows(&mut first, s.states, s.first))?;
            last.extend(first.to_f32_vec()?);
        }
        ensure!(last.iter().all(|x| x.is_finite()), "states that are not finite");
        ensure!(before.as_ref().is_none_or(|b| *b == last), "the same pairs give other states in two runs");
        before = Some(last);
        Ok(())
    })?;
    let tokens: usize = lengths.iter().sum();
    Ok(vec![
        Row::rate("scoring", "pairs/s", pairs as f64, &seconds),
        Row::rate("scoring, tokens", "tokens/s", tokens as f64, &seconds),
        Row::rate("scoring, model FLOP", "GFLOP/s", flop(model, &lengths) / 1e9, &seconds).against(ceiling),
    ])
}
