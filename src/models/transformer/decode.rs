//! The inference forward: packed ragged prompts into a key/value cache, then one token a row and step.
//!
//! The result of a row depends on nothing but the row: prompts run packed but confined to themselves, decode reads its own slots,
//! and every product is independent of the batch (`ops::gemm`).
use anyhow::{Result, ensure};

use super::{
    rope_table::RopeTable,
    weights::{LayerWeights, Linear, Llama},
};
use crate::{
    ops::{
        attention::{AttentionShape, attention_forward},
        decode_attention::decode_attention_forward,
        embedding::embedding_forward,
        gemm::{Layout, gemm, linear_forward, linear_forward_many},
        rmsnorm::{add_rmsnorm_forward, rmsnorm_forward},
        rope::rope_forward,
        rows::scatter_rows,
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
    /// The slot of each row's own key and value.
    slots: Tensor,
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
enum Attention {
    /// Documents packed back to back; keys and values are copied to these slots of the cache.
    Prompts { cu_seqlens: Tensor },
    /// One token a row over its slots.
    Step,
}

impl Decoder {
    /// Scratch for calls of up to `max_tokens` tokens, over positions below `max_positions`.
    pub fn new(model: &Llama, max_tokens: usize, max_positions: usize) -> Result<Decoder> {
        let c = &model.config;
        let n = max_tokens;
        let (device, acts) = (model.device(), model.activation_dtype());
        let (a, _) = Arena::build("inference scratch", &device, |arena| {
            let mut t = |name: &str, dtype: DType, dims: &[usize]| arena.tensor(name, dtype, dims);
            Buffers {
                tokens: t("tokens", DType::U32, &[n]),
                positions: t("positions", DType::U32, &[n]),
                starts: t("starts", DType::U32, &[n]),
                lengths: t("lengths", DType::U32, &[n]),
                slots: t("slots", DType::U32, &[n]),
                resid: [t("resid", acts, &[n, c.hidden_size]), t("resid_next", acts, &[n, c.hidden_size])],
                norm: t("norm", acts, &[n, c.hidden_size]),
                rstd: t("rstd", DType::F32, &[n]),
                q: t("q", acts, &[n, c.query_size()]),
                k: t("k", acts, &[n, c.kv_size()]),
                v: t("v", acts, &[n, c.kv_size()]),
                att: t("att", acts, &[n, c.query_size()]),
                lse: t("lse", DType::F32, &[n * c.num_attention_heads]),
                projected: t("projected", acts, &[n, c.hidden_size]),
                gate: t("gate", acts, &[n, c.intermediate_size]),
                up: t("up", acts, &[n, c.intermediate_size]),
                act: t("act", acts, &[n, c.intermediate_size]),
            }
        })?;
        let shape = AttentionShape {
            heads: c.num_attention_heads,
            kv_heads: c.kv_heads(),
            head_size: c.head_size(),
            scale: 1.0 / (c.head_size() as f32).sqrt(),
            window: c.sliding_window,
            softcap: None,
        };
        Ok(Decoder { shape, rope: RopeTable::new(c, max_positions, &device)?, max_tokens, a })
    }

    /// Tokens of one call at most.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Runs whole texts and hands out the hidden states (N, C) of all their tokens, packed: index 0 are the embeddings, index l the residual
    /// stream behind layer l, the last one behind the final norm (transformers' `output_hidden_states`).
    pub fn hidden_states(
        &mut self,
        model: &Llama,
        texts: &[&[u32]],
        on_layer: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let (n, cu_seqlens) = self.load_prompts(model, texts)?;
        self.forward(model, n, None, Attention::Prompts { cu_seqlens }, on_layer)?;
        Ok(())
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
        let (n, cu_seqlens) = self.load_prompts(model, prompts)?;
        let own =
            prompts.iter().zip(slots).flat_map(|(p, &first)| (first..first + p.len()).map(|s| s as u32));
        let own: Vec<u32> = own.collect();
        self.a.slots.rows(0..own.len())?.write_u32(&own)?;
        self.forward(model, n, cache, Attention::Prompts { cu_seqlens }, &mut |_, _| Ok(()))
    }

    /// Tokens and positions of whole prompts; their number and offsets.
    fn load_prompts(&mut self, model: &Llama, prompts: &[&[u32]]) -> Result<(usize, Tensor)> {
        let n: usize = prompts.iter().map(|p| p.len()).sum();
        ensure!(
            n > 0 && n <= self.max_tokens,
            "{n} prompt tokens in one call; there is room for {}",
            self.max_tokens
        );
        let mut cu = vec![0u32];
        prompts.iter().for_each(|p| cu.push(cu[cu.len() - 1] + p.len() as u32));
        self.a.tokens.rows(0..n)?.write_u32(&prompts.concat())?;
        let positions: Vec<u32> = prompts.iter().flat_map(|p| 0..p.len() as u32).collect();
        self.a.positions.rows(0..n)?.write_u32(&positions)?;
        let mut cu_seqlens = Tensor::zeros_on(&model.device(), "cu_seqlens", DType::U32, &[cu.len()])?;
        cu_seqlens.write_u32(&cu)?;
        Ok((n, cu_seqlens))
    }

    /// One token for each row: rows[r] = (token, first slot, tokens already in the cache). Rows may be successive tokens of one sequence: each
    /// layer stores all keys and values before its attention. Returns hidden states (rows, C).
    pub fn step(
        &mut self,
        model: &Llama,
        rows: &[(u32, usize, usize)],
        cache: &mut [(Tensor, Tensor)],
    ) -> Result<Tensor> {
        let n = rows.len();
        ensure!(n > 0 && n <= self.max_tokens, "{n} rows in one step; there is room for {}", self.max_tokens);
        let fill = |to: &Tensor, value: fn(&(u32, usize, usize)) -> u32| {
            to.rows(0..n)?.write_u32(&rows.iter().map(value).collect::<Vec<_>>())
        };
        fill(&self.a.tokens, |&(token, _, _)| token)?;
        fill(&self.a.positions, |&(_, _, length)| length as u32)?;
        fill(&self.a.starts, |&(_, start, _)| start as u32)?;
        fill(&self.a.lengths, |&(_, _, length)| length as u32 + 1)?;
        fill(&self.a.slots, |&(_, start, length)| (start + length) as u32)?;
        self.forward(model, n, Some(cache), Attention::Step, &mut |_, _| Ok(()))
    }

    fn forward(
        &mut self,
        model: &Llama,
        n: usize,
        mut cache: Option<&mut [(Tensor, Tensor)]>,
        attention: Attention,
        on_layer: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
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
        let (starts, lengths, own) = (a.starts.rows(0..n)?, a.lengths.rows(0..n)?, a.slots.rows(0..n)?);
        let eps = model.config.rms_norm_eps as f32;
        let weights = &model.weights;
        embedding_forward(&mut resid, &tokens, &weights.embed_tokens)?;
        on_layer(0, &resid)?;
        rmsnorm_forward(&mut norm, &mut rstd, &resid, &weights.layers[0].input_layernorm, eps)?;
        for (l, w) in weights.layers.iter().enumerate() {
            project(&mut [&mut q, &mut k, &mut v], &norm, &[&w.q_proj, &w.k_proj, &w.v_proj])?;
            rope_forward(&mut q, &positions, &self.rope.cos, &self.rope.sin, self.shape.head_size)?;
            rope_forward(&mut k, &positions, &self.rope.cos, &self.rope.sin, self.shape.head_size)?;
            match (&attention, cache.as_deref_mut()) {
                (Attention::Prompts { cu_seqlens }, cache) => {
                    attention_forward(&mut att, &mut lse, &q, &k, &v, cu_seqlens, self.shape)?;
                    if let Some(cache) = cache {
                        store(&mut cache[l], &k, &v, &own)?;
                    }
                }
                (Attention::Step, Some(cache)) => {
                    store(&mut cache[l], &k, &v, &own)?;
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
            on_layer(l + 1, if l + 1 == weights.layers.len() { &norm } else { &resid })?;
        }
        Ok(norm)
    }

    /// logits (rows, V), F32, = hidden (rows, C) headᵀ
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

/// Each row's key and value to its own slot.
fn store((keys, values): &mut (Tensor, Tensor), k: &Tensor, v: &Tensor, slots: &Tensor) -> Result<()> {
    scatter_rows(keys, k, slots)?;
    scatter_rows(values, v, slots)
}
