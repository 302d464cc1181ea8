//! The encoder's forward over packed sentences, with its scratch memory.
use std::ops::Range;

use anyhow::{Result, ensure};

use super::{Layer, Norm, XlmRoberta, XlmRobertaConfig};
use crate::{
    models::transformer::weights::DenseLinear as Linear,
    ops::{
        activation::{Activation, activation_forward},
        attention::{AttentionShape, cross_attention_forward},
        embedding::embedding_forward,
        gemm::linear_forward_many_rows,
        layernorm::layernorm_forward,
        rows::{add, copy, gather_rows},
    },
    tensor::{Arena, DType, Tensor},
};

/// How much of the last layer is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLayer {
    /// Every token's state.
    All,
    /// The state of each sentence's first token only: that is all a classifier reads.
    First,
}

/// Scratch of the forward, for up to a number of tokens at once.
pub struct Encoder {
    shape: AttentionShape,
    max_tokens: usize,
    last: LastLayer,
    a: Buffers,
}

struct Buffers {
    tokens: Tensor,
    positions: Tensor,
    cu_seqlens: Tensor,
    /// 0, 1, 2 ...: the offsets of one query a sentence.
    counting: Tensor,
    hidden: Tensor,
    /// Before the norm.
    sum: Tensor,
    mean: Tensor,
    rstd: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    att: Tensor,
    lse: Tensor,
    inner: Tensor,
    act: Tensor,
}

impl Buffers {
    fn lay_out(arena: &mut Arena, config: &XlmRobertaConfig, n: usize, acts: DType) -> Buffers {
        let (c, nh) = (config.hidden_size, config.num_attention_heads);
        let mut t = |name: &str, dtype: DType, dims: &[usize]| arena.tensor(name, dtype, dims);
        Buffers {
            tokens: t("tokens", DType::U32, &[n]),
            positions: t("positions", DType::U32, &[n]),
            cu_seqlens: t("cu_seqlens", DType::U32, &[n + 1]),
            counting: t("counting", DType::U32, &[n + 1]),
            hidden: t("hidden", acts, &[n, c]),
            sum: t("sum", acts, &[n, c]),
            mean: t("mean", DType::F32, &[n]),
            rstd: t("rstd", DType::F32, &[n]),
            q: t("q", acts, &[n, c]),
            k: t("k", acts, &[n, c]),
            v: t("v", acts, &[n, c]),
            att: t("att", acts, &[n, c]),
            lse: t("lse", DType::F32, &[nh * n]),
            inner: t("inner", acts, &[n, config.intermediate_size]),
            act: t("act", acts, &[n, config.intermediate_size]),
        }
    }
}

/// The states that a layer gave, as the callback of [`Encoder::forward`] sees them.
pub struct States<'a> {
    /// 0 for the embeddings, then the layers from 1 on.
    pub layer: usize,
    /// (rows, C) of the activations' type.
    pub states: &'a Tensor,
    /// The row of each sentence's first token, U32 on the device.
    pub first: &'a Tensor,
}

impl Encoder {
    /// Scratch for calls of up to `max_tokens` tokens.
    pub fn new(model: &XlmRoberta, max_tokens: usize, last: LastLayer) -> Result<Encoder> {
        let config = &model.config;
        let (c, nh) = (config.hidden_size, config.num_attention_heads);
        let acts = model.positions.dtype();
        let lay_out = |arena: &mut Arena| Buffers::lay_out(arena, config, max_tokens, acts);
        let (a, _) = Arena::build("encoder scratch", &model.device(), lay_out)?;
        let head_size = c / nh;
        let scale = 1.0 / (head_size as f32).sqrt();
        let shape = AttentionShape { heads: nh, kv_heads: nh, head_size, scale, window: None, softcap: None };
        Ok(Encoder { shape, max_tokens, last, a })
    }

    /// What [`Encoder::new`] allocates, bytes; activations of type `acts`.
    pub fn bytes(config: &XlmRobertaConfig, max_tokens: usize, acts: DType) -> usize {
        Arena::measure(|arena| drop(Buffers::lay_out(arena, config, max_tokens, acts)))
    }

    /// Runs `sentences` (token ids, none empty) and calls `each` with the states of the embeddings and of every layer in turn.
    pub fn forward(
        &mut self,
        model: &XlmRoberta,
        sentences: &[&[u32]],
        each: &mut dyn FnMut(States) -> Result<()>,
    ) -> Result<()> {
        let (n, cu) = self.check(model, sentences)?;
        if n == 0 {
            return Ok(());
        }
        let d = sentences.len();
        let set = |t: &Tensor, values: &[u32]| -> Result<Tensor> {
            let mut t = t.rows(0..values.len())?;
            t.write_u32(values)?;
            Ok(t)
        };
        let first_position = model.config.first_position();
        let positions: Vec<u32> =
            sentences.iter().flat_map(|s| (0..s.len() as u32).map(|i| first_position + i)).collect();
        let tokens = set(&self.a.tokens, &sentences.concat())?;
        let positions = set(&self.a.positions, &positions)?;
        let cu_seqlens = set(&self.a.cu_seqlens, &cu)?;
        let counting = set(&self.a.counting, &(0..=d as u32).collect::<Vec<_>>())?;
        let first = cu_seqlens.rows(0..d)?;
        let mut hidden = self.a.hidden.rows(0..n)?;
        let mut sum = self.a.sum.rows(0..n)?;
        embedding_forward(&mut sum, &tokens, &model.word_embeddings)?;
        embedding_forward(&mut hidden, &positions, &model.positions)?;
        add(&mut sum, &hidden)?;
        self.norm(&mut hidden, &sum, &model.embedding_norm, model)?;
        each(States { layer: 0, states: &hidden, first: &first })?;
        for (i, layer) in model.layers.iter().enumerate() {
            let one = self.last == LastLayer::First && i + 1 == model.layers.len();
            let documents = Documents { cu_q: if one { &counting } else { &cu_seqlens }, cu_k: &cu_seqlens };
            let states = self.layer(model, layer, n, documents, one.then_some(&first))?;
            let first = if one { counting.rows(0..d)? } else { first.alias() };
            each(States { layer: i + 1, states: &states, first: &first })?;
        }
        Ok(())
    }

    /// (tokens, offsets of the sentences)
    fn check(&self, model: &XlmRoberta, sentences: &[&[u32]]) -> Result<(usize, Vec<u32>)> {
        let (longest, vocab) = (model.config.max_tokens(), model.config.vocab_size);
        let mut cu = vec![0u32];
        let mut n = 0;
        for (i, s) in sentences.iter().enumerate() {
            ensure!(!s.is_empty(), "sentence {i} has no tokens");
            ensure!(s.len() <= longest, "sentence {i} has {} tokens; the encoder takes {longest}", s.len());
            if let Some(id) = s.iter().find(|&&id| id as usize >= vocab) {
                anyhow::bail!("sentence {i} has token {id}, but the encoder's vocabulary has {vocab}");
            }
            n += s.len();
            cu.push(n as u32);
        }
        ensure!(n <= self.max_tokens, "{n} tokens at once; there is room for {}", self.max_tokens);
        Ok((n, cu))
    }

    /// One layer, in place in the hidden states; with `first` only these rows of it, which then are the rows of the result.
    fn layer(
        &mut self,
        model: &XlmRoberta,
        layer: &Layer,
        n: usize,
        documents: Documents,
        first: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mut hidden = self.a.hidden.rows(0..n)?;
        let (mut k, mut v) = (self.a.k.rows(0..n)?, self.a.v.rows(0..n)?);
        linear(&mut k, &hidden, &layer.key)?;
        linear(&mut v, &hidden, &layer.value)?;
        let rows = first.map_or(n, Tensor::len);
        let range: Range<usize> = 0..rows;
        let mut sum = self.a.sum.rows(range.clone())?;
        if let Some(first) = first {
            gather_rows(&mut sum, &hidden, first)?;
            hidden = self.a.hidden.rows(range.clone())?;
            copy(&mut hidden, &sum)?;
        }
        let (mut q, mut att) = (self.a.q.rows(range.clone())?, self.a.att.rows(range.clone())?);
        let mut lse = self.a.lse.rows(0..self.shape.heads * rows)?.view(&[self.shape.heads, rows])?;
        linear(&mut q, &hidden, &layer.query)?;
        cross_attention_forward(&mut att, &mut lse, &q, &k, &v, documents.cu_q, documents.cu_k, self.shape)?;
        linear(&mut sum, &att, &layer.attention_output)?;
        add(&mut sum, &hidden)?;
        self.norm(&mut hidden, &sum, &layer.attention_norm, model)?;
        let (mut inner, mut act) = (self.a.inner.rows(range.clone())?, self.a.act.rows(range)?);
        linear(&mut inner, &hidden, &layer.intermediate)?;
        activation_forward(&mut act, &inner, Activation::Gelu)?;
        linear(&mut sum, &act, &layer.output)?;
        add(&mut sum, &hidden)?;
        self.norm(&mut hidden, &sum, &layer.output_norm, model)?;
        Ok(hidden)
    }

    fn norm(&self, out: &mut Tensor, inp: &Tensor, norm: &Norm, model: &XlmRoberta) -> Result<()> {
        let n = inp.rows_cols().0;
        let (mut mean, mut rstd) = (self.a.mean.rows(0..n)?, self.a.rstd.rows(0..n)?);
        layernorm_forward(
            out,
            &mut mean,
            &mut rstd,
            inp,
            &norm.weight,
            &norm.bias,
            model.config.layer_norm_eps,
        )
    }
}

/// The offsets of the queries and of the keys.
#[derive(Clone, Copy)]
struct Documents<'a> {
    cu_q: &'a Tensor,
    cu_k: &'a Tensor,
}

fn linear(out: &mut Tensor, inp: &Tensor, l: &Linear) -> Result<()> {
    linear_forward_many_rows(out, inp, &l.weight, l.bias.as_ref())
}

/// Batches of up to `budget` tokens over sentences of these lengths, the longest first, so that a batch holds similar ones. A sentence longer
/// than the budget is a batch of its own.
pub fn batches(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut out: Vec<Vec<usize>> = vec![];
    let mut filled = usize::MAX;
    for i in order {
        filled = filled.saturating_add(lengths[i]);
        if filled > budget {
            out.push(vec![]);
            filled = lengths[i];
        }
        if let Some(last) = out.last_mut() {
            last.push(i);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_sentence_once_within_the_budget() {
        assert_eq!(batches(&[3, 9, 2, 5, 12], 10), [vec![4], vec![1], vec![3, 0, 2]]);
        assert_eq!(batches(&[], 10), Vec::<Vec<usize>>::new());
        assert_eq!(batches(&[4, 4, 4], 8), [vec![0, 1], vec![2]]);
    }
}
