//! The inference forward: packed ragged prompts into a key/value cache, then one token a row and step.
//!
//! The result of a row depends on nothing but the row: prompts run packed but confined to themselves, decode reads its own slots,
//! and every product is independent of the batch (`ops::gemm`).
use anyhow::{Result, ensure};

use super::{
    llama::{LayerWeights, Linear, Llama},
    rope_table::RopeTable,
};
use crate::{
    ops::{
        attention::{AttentionShape, attention_forward},
        decode_attention::decode_attention_forward,
        embedding::embedding_forward,
        gemm::{Layout, gemm, linear_forward, linear_forward_many},
        rmsnorm::{add_rmsnorm_forward, rmsnorm_forward},
        rope::rope_forward,
        swiglu::swiglu_forward,
    },
    tensor::{Arena, DType, Tensor},
};

/// Scratch of the inference forward, for up to `max_tokens` tokens at once.
pub struct Decoder {
    shape: AttentionShape,
    rope: RopeTable,
    max_tokens: usize,
    a: Buffers,
}

struct Buffers {
    tokens: Tensor,
    positions: Tensor,
    starts: Tensor,
    lengths: Tensor,
    resid: [Tensor; 2],
    norm: Tensor,
    rstd: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    att: Tensor,
    lse: Tensor,
    projected: Tensor,
    gate: Tensor,
    up: Tensor,
    act: Tensor,
}

/// Where the attention of a call finds keys and values.
enum Attention<'a> {
    /// Documents packed back to back; keys and values are copied to these slots of the cache.
    Prompts { cu_seqlens: Tensor, slots: &'a [usize] },
    /// One token a row over its slots.
    Step,
}

impl Decoder {
    /// Scratch for calls of up to `max_tokens` tokens, over positions below `max_positions`.
    pub fn new(model: &Llama, max_tokens: usize, max_positions: usize) -> Result<Decoder> {
        let c = &model.config;
        let n = max_tokens;
        let (a, _) = Arena::build("inference scratch", &Default::default(), |arena| {
            let mut t = |name: &str, dtype: DType, dims: &[usize]| arena.tensor(name, dtype, dims);
            let f32s = DType::F32;
            Buffers {
                tokens: t("tokens", DType::U32, &[n]),
                positions: t("positions", DType::U32, &[n]),
                starts: t("starts", DType::U32, &[n]),
                lengths: t("lengths", DType::U32, &[n]),
                resid: [t("resid", f32s, &[n, c.hidden_size]), t("resid_next", f32s, &[n, c.hidden_size])],
                norm: t("norm", f32s, &[n, c.hidden_size]),
                rstd: t("rstd", f32s, &[n]),
                q: t("q", f32s, &[n, c.query_size()]),
                k: t("k", f32s, &[n, c.kv_size()]),
                v: t("v", f32s, &[n, c.kv_size()]),
                att: t("att", f32s, &[n, c.query_size()]),
                lse: t("lse", f32s, &[n * c.num_attention_heads]),
                projected: t("projected", f32s, &[n, c.hidden_size]),
                gate: t("gate", f32s, &[n, c.intermediate_size]),
                up: t("up", f32s, &[n, c.intermediate_size]),
                act: t("act", f32s, &[n, c.intermediate_size]),
            }
        })?;
        let shape = AttentionShape {
            heads: c.num_attention_heads,
            kv_heads: c.kv_heads(),
            head_size: c.head_size(),
            scale: 1.0 / (c.head_size() as f32).sqrt(),
            window: c.sliding_window,
        };
        Ok(Decoder { shape, rope: RopeTable::new(c, max_positions)?, max_tokens, a })
    }

    /// Tokens of one call at most.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Runs whole prompts; row r's keys and values go to `cache` from slot `slots[r]` on (no cache: nowhere).
    /// Returns the final normed hidden states (N, C) of all their tokens.
    pub fn prompts(
        &mut self,
        model: &Llama,
        prompts: &[&[u32]],
        cache: Option<&mut [(Tensor, Tensor)]>,
        slots: &[usize],
    ) -> Result<Tensor> {
        let n: usize = prompts.iter().map(|p| p.len()).sum();
        ensure!(
            n > 0 && n <= self.max_tokens,
            "{n} prompt tokens in one call; there is room for {}",
            self.max_tokens
        );
        let mut cu = vec![0u32];
        let (mut tokens, mut positions) = (self.a.tokens.rows(0..n)?, self.a.positions.rows(0..n)?);
        let mut at = 0;
        for p in prompts {
            tokens.u32_mut()?[at..at + p.len()].copy_from_slice(p);
            positions.u32_mut()?[at..at + p.len()].iter_mut().enumerate().for_each(|(i, x)| *x = i as u32);
            at += p.len();
            cu.push(at as u32);
        }
        let cu_seqlens = Tensor::from_u32("cu_seqlens", &[cu.len()], &cu)?;
        self.forward(model, n, cache, Attention::Prompts { cu_seqlens, slots })
    }

    /// One token for each row: rows[r] = (token, first slot, tokens already in the cache). Returns hidden states (rows, C).
    pub fn step(
        &mut self,
        model: &Llama,
        rows: &[(u32, usize, usize)],
        cache: &mut [(Tensor, Tensor)],
    ) -> Result<Tensor> {
        let n = rows.len();
        ensure!(n > 0 && n <= self.max_tokens, "{n} rows in one step; there is room for {}", self.max_tokens);
        for (r, &(token, start, length)) in rows.iter().enumerate() {
            self.a.tokens.u32_mut()?[r] = token;
            self.a.positions.u32_mut()?[r] = length as u32;
            self.a.starts.u32_mut()?[r] = start as u32;
            self.a.lengths.u32_mut()?[r] = length as u32 + 1;
        }
        self.forward(model, n, Some(cache), Attention::Step)
    }

    fn forward(
        &mut self,
        model: &Llama,
        n: usize,
        mut cache: Option<&mut [(Tensor, Tensor)]>,
        attention: Attention,
    ) -> Result<Tensor> {
        let a = &self.a;
        let [mut resid, mut next] = [a.resid[0].rows(0..n)?, a.resid[1].rows(0..n)?];
        let (tokens, positions) = (a.tokens.rows(0..n)?, a.positions.rows(0..n)?);
        let (mut norm, mut rstd, mut projected) =
            (a.norm.rows(0..n)?, a.rstd.rows(0..n)?, a.projected.rows(0..n)?);
        let (mut q, mut k, mut v) = (a.q.rows(0..n)?, a.k.rows(0..n)?, a.v.rows(0..n)?);
        let (mut att, mut act) = (a.att.rows(0..n)?, a.act.rows(0..n)?);
        let (mut gate, mut up) = (a.gate.rows(0..n)?, a.up.rows(0..n)?);
        let mut lse = a.lse.rows(0..n * self.shape.heads)?.view(&[self.shape.heads, n])?;
        let (starts, lengths) = (a.starts.rows(0..n)?, a.lengths.rows(0..n)?);
        let eps = model.config.rms_norm_eps as f32;
        let weights = &model.weights;
        embedding_forward(&mut resid, &tokens, &weights.embed_tokens)?;
        rmsnorm_forward(&mut norm, &mut rstd, &resid, &weights.layers[0].input_layernorm, eps)?;
        for (l, w) in weights.layers.iter().enumerate() {
            project(&mut [&mut q, &mut k, &mut v], &norm, &[&w.q_proj, &w.k_proj, &w.v_proj])?;
            rope_forward(&mut q, &positions, &self.rope.cos, &self.rope.sin, self.shape.head_size)?;
            rope_forward(&mut k, &positions, &self.rope.cos, &self.rope.sin, self.shape.head_size)?;
            match (&attention, cache.as_deref_mut()) {
                (Attention::Prompts { cu_seqlens, slots }, cache) => {
                    attention_forward(&mut att, &mut lse, &q, &k, &v, cu_seqlens, self.shape)?;
                    if let Some(cache) = cache {
                        store_prompts(&mut cache[l], &k, &v, cu_seqlens.u32()?, slots)?;
                    }
                }
                (Attention::Step, Some(cache)) => {
                    store_step(&mut cache[l], &k, &v, starts.u32()?, lengths.u32()?)?;
                    let (keys, values) = &cache[l];
                    decode_attention_forward(&mut att, &q, keys, values, &starts, &lengths, self.shape)?;
                }
                (Attention::Step, None) => anyhow::bail!("a decode step needs a cache"),
            }
            project(&mut [&mut projected], &att, &[&w.o_proj])?;
            add_rmsnorm_forward(
                &mut norm,
                &mut rstd,
                &mut next,
                &projected,
                &resid,
                &w.post_attention_layernorm,
                eps,
            )?;
            mlp(&mut projected, &mut gate, &mut up, &mut act, &norm, w)?;
            let gain = weights.layers.get(l + 1).map_or(&weights.norm, |w| &w.input_layernorm);
            add_rmsnorm_forward(&mut norm, &mut rstd, &mut resid, &projected, &next, gain, eps)?;
        }
        Ok(norm)
    }

    /// logits (rows, V) = hidden (rows, C) headᵀ
    pub fn logits(&self, model: &Llama, logits: &mut Tensor, hidden: &Tensor) -> Result<()> {
        gemm(logits, hidden, &model.weights.lm_head, Layout::NT, 1.0, false)
    }
}

fn mlp(
    out: &mut Tensor,
    gate: &mut Tensor,
    up: &mut Tensor,
    act: &mut Tensor,
    inp: &Tensor,
    w: &LayerWeights,
) -> Result<()> {
    project(&mut [&mut *gate, &mut *up], inp, &[&w.gate_proj, &w.up_proj])?;
    swiglu_forward(act, gate, up)?;
    project(&mut [out], act, &[&w.down_proj])
}

/// Several layers of one input: one dispatch where none has a bias.
fn project(outs: &mut [&mut Tensor], inp: &Tensor, linears: &[&Linear]) -> Result<()> {
    if linears.iter().all(|l| l.bias.is_none()) {
        let weights: Vec<&Tensor> = linears.iter().map(|l| &l.weight).collect();
        return linear_forward_many(outs, inp, &weights);
    }
    outs.iter_mut().zip(linears).try_for_each(|(out, l)| linear_forward(out, inp, &l.weight, l.bias.as_ref()))
}

fn store_prompts(
    (keys, values): &mut (Tensor, Tensor),
    k: &Tensor,
    v: &Tensor,
    cu: &[u32],
    slots: &[usize],
) -> Result<()> {
    let (_, width) = k.rows_cols();
    for (row, d) in cu.windows(2).enumerate() {
        let (from, to) = (d[0] as usize * width, d[1] as usize * width);
        let at = slots[row] * width;
        keys.f32_mut()?[at..at + to - from].copy_from_slice(&k.f32()?[from..to]);
        values.f32_mut()?[at..at + to - from].copy_from_slice(&v.f32()?[from..to]);
    }
    Ok(())
}

fn store_step(
    (keys, values): &mut (Tensor, Tensor),
    k: &Tensor,
    v: &Tensor,
    starts: &[u32],
    lengths: &[u32],
) -> Result<()> {
    let (_, width) = k.rows_cols();
    for r in 0..starts.len() {
        let at = (starts[r] + lengths[r] - 1) as usize * width;
        keys.f32_mut()?[at..at + width].copy_from_slice(&k.f32()?[r * width..][..width]);
        values.f32_mut()?[at..at + width].copy_from_slice(&v.f32()?[r * width..][..width]);
    }
    Ok(())
}
