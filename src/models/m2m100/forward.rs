//! The forward passes: packed sentences through the encoder, one token a row through the decoder.
//!
//! Every row's result depends on nothing but its sentence: sentences are confined to themselves, a decoder row reads its own slots, and every
//! product is independent of the batch (`ops::gemm`). Full attention within a sentence, causal attention over a row's cache and cross attention
//! are one op: each query reads a range of slots.
use anyhow::{Context, Result, ensure};

use super::{AttentionWeights, FeedForward, Layer, M2m100, M2m100Config, Norm};
use crate::{
    models::transformer::weights::DenseLinear as Linear,
    ops::{
        activation::activation_forward,
        attention::AttentionShape,
        decode_attention::decode_attention_forward,
        embedding::embedding_forward,
        gemm::{linear_forward, linear_forward_many_rows},
        layernorm::layernorm_forward,
        rows::{add, cast, gather_rows, scatter_rows},
    },
    tensor::{Arena, DType, Tensor},
};

/// Added to the variance: PyTorch's default, which M2M100 uses.
const EPS: f32 = 1e-5;

/// Keys and values, (slots, C) each.
type KeyValues = (Tensor, Tensor);

/// One row of a decoder step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRow {
    /// The token.
    pub token: u32,
    /// The row's region of the cache.
    pub region: usize,
    /// Tokens of the row before this one: its position.
    pub length: usize,
    /// First slot and number of tokens of its source sentence, as it was encoded.
    pub source: (usize, usize),
}

/// Scratch and caches for a model.
pub struct Runner<'m> {
    model: &'m M2m100,
    /// Tokens or rows of one call.
    rows: usize,
    /// Positions of each of the cache's regions.
    positions: usize,
    a: Buffers,
    /// Each decoder layer's own keys and values.
    cache: Vec<KeyValues>,
    /// Each decoder layer's keys and values of the encoder's states, by slot.
    cross: Vec<KeyValues>,
    /// Slots for source tokens.
    slots: usize,
}

struct Buffers {
    tokens: Tensor,
    positions: Tensor,
    starts: Tensor,
    lengths: Tensor,
    source_starts: Tensor,
    source_lengths: Tensor,
    slots: Tensor,
    resid: Tensor,
    norm: Tensor,
    mean: Tensor,
    rstd: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    att: Tensor,
    projected: Tensor,
    hidden: Tensor,
    act: Tensor,
}

/// Rows of the scratch for [source tokens, hypotheses, positions].
fn rows(sizes: [usize; 3]) -> usize {
    sizes.into_iter().max().unwrap_or(0)
}

/// What a [`Runner`] for [source tokens, hypotheses, positions] takes, bytes.
pub fn runner_bytes(config: &M2m100Config, sizes: [usize; 3], acts: DType) -> usize {
    Arena::measure(|arena| drop(lay_out(arena, config, sizes, acts)))
}

fn lay_out(
    arena: &mut Arena,
    config: &M2m100Config,
    sizes: [usize; 3],
    acts: DType,
) -> (Buffers, Vec<KeyValues>, Vec<KeyValues>) {
    let ([tokens, regions, positions], c, n) = (sizes, config.d_model, rows(sizes));
    let f = config.encoder_ffn_dim.max(config.decoder_ffn_dim);
    let mut t = |name: &str, dtype: DType, dims: &[usize]| arena.tensor(name, dtype, dims);
    let mut pairs = |name: &str, slots: usize| -> Vec<KeyValues> {
        let one = |kind: &str| format!("{name}_{kind}");
        (0..config.decoder_layers)
            .map(|_| (t(&one("keys"), acts, &[slots, c]), t(&one("values"), acts, &[slots, c])))
            .collect()
    };
    let (cache, cross) = (pairs("cache", regions.max(1) * positions), pairs("cross", tokens.max(1)));
    let a = Buffers {
        tokens: t("tokens", DType::U32, &[n]),
        positions: t("positions", DType::U32, &[n]),
        starts: t("starts", DType::U32, &[n]),
        lengths: t("lengths", DType::U32, &[n]),
        source_starts: t("source_starts", DType::U32, &[n]),
        source_lengths: t("source_lengths", DType::U32, &[n]),
        slots: t("slots", DType::U32, &[n]),
        resid: t("resid", acts, &[n, c]),
        norm: t("norm", acts, &[n, c]),
        mean: t("mean", DType::F32, &[n]),
        rstd: t("rstd", DType::F32, &[n]),
        q: t("q", acts, &[n, c]),
        k: t("k", acts, &[n, c]),
        v: t("v", acts, &[n, c]),
        att: t("att", acts, &[n, c]),
        projected: t("projected", acts, &[n, c]),
        hidden: t("hidden", acts, &[n * f]),
        act: t("act", acts, &[n * f]),
    };
    (a, cache, cross)
}

impl<'m> Runner<'m> {
    /// With slots for `tokens` source tokens, for decoder steps over up to `regions` hypotheses of up to `positions` tokens.
    pub fn new(model: &'m M2m100, tokens: usize, regions: usize, positions: usize) -> Result<Runner<'m>> {
        let config = &model.config;
        ensure!(
            positions <= config.max_position_embeddings,
            "{positions} positions; the model has {}",
            config.max_position_embeddings
        );
        let (device, acts) = (model.device(), model.activation_dtype());
        let lay_out = |arena: &mut Arena| lay_out(arena, config, [tokens, regions, positions], acts);
        let ((a, cache, cross), _) = Arena::build("translation scratch and caches", &device, lay_out)
            .with_context(|| {
                format!("room for {tokens} source tokens and {regions} hypotheses of {positions}")
            })?;
        Ok(Runner {
            model,
            rows: rows([tokens, regions, positions]),
            positions,
            a,
            cache,
            cross,
            slots: tokens,
        })
    }

    /// Encodes `sentences`; the decoder's keys and values of each go to the slots from its number in `starts` on, in the place of what was
    /// there. Returns the encoder's states (N, C), sentences back to back.
    pub fn encode(&mut self, sentences: &[&[u32]], starts: &[usize]) -> Result<Tensor> {
        let n: usize = sentences.iter().map(|s| s.len()).sum();
        ensure!(n > 0 && n <= self.slots, "{n} source tokens in one call; there are {} slots", self.slots);
        let fits = sentences.iter().zip(starts).all(|(s, start)| start + s.len() <= self.slots);
        ensure!(sentences.len() == starts.len() && fits, "{starts:?} are no places for the source sentences");
        let most = self.model.config.max_position_embeddings;
        let longest = sentences.iter().map(|s| s.len()).max().unwrap_or(0);
        ensure!(longest <= most, "a source sentence has {longest} tokens, the model takes {most}");
        let first = self.model.config.pad_token_id + 1;
        let each = |value: &dyn Fn(u32, u32, u32) -> u32| -> Vec<u32> {
            let mut start = 0;
            let mut out = Vec::with_capacity(n);
            for s in sentences {
                let length = s.len() as u32;
                out.extend((0..length).map(|i| value(start, length, i)));
                start += length;
            }
            out
        };
        self.a.tokens.rows(0..n)?.write_u32(&sentences.concat())?;
        self.a.positions.rows(0..n)?.write_u32(&each(&|_, _, i| first + i))?;
        self.a.starts.rows(0..n)?.write_u32(&each(&|start, _, _| start))?;
        self.a.lengths.rows(0..n)?.write_u32(&each(&|_, length, _| length))?;
        self.embed(n)?;
        let model = self.model;
        let shape = shape(model, model.config.encoder_attention_heads);
        for layer in &model.encoder {
            self.self_attention(n, &layer.self_attn, shape, None)?;
            self.feed_forward(n, &layer.feed_forward)?;
        }
        let states = self.normed(n, &model.encoder_norm)?;
        let to = sentences.iter().zip(starts).flat_map(|(s, &start)| start..start + s.len());
        let mut slots = self.a.slots.rows(0..n)?;
        slots.write_u32(&to.map(|slot| slot as u32).collect::<Vec<_>>())?;
        let (mut k, mut v) = (self.a.k.rows(0..n)?, self.a.v.rows(0..n)?);
        for (layer, (keys, values)) in model.decoder.iter().zip(&mut self.cross) {
            let w = cross_attention(layer)?;
            project(&mut k, &states, &w.k_proj)?;
            project(&mut v, &states, &w.v_proj)?;
            scatter_rows(keys, &k, &slots)?;
            scatter_rows(values, &v, &slots)?;
        }
        Ok(states)
    }

    /// One token for each row; keys and values go to the cache. Returns the decoder's final states (rows, C).
    pub fn step(&mut self, rows: &[StepRow]) -> Result<Tensor> {
        let n = rows.len();
        ensure!(n > 0 && n <= self.rows, "{n} rows in one step; there is room for {}", self.rows);
        let fits = |r: &StepRow| r.length < self.positions && r.source.0 + r.source.1 <= self.slots;
        ensure!(
            rows.iter().all(fits),
            "a row leaves its region or the source slots: {:?}",
            rows.iter().find(|r| !fits(r))
        );
        let first = self.model.config.pad_token_id + 1;
        let positions = self.positions;
        let start = |r: &StepRow| r.region * positions;
        let fill = |to: &Tensor, value: &dyn Fn(&StepRow) -> usize| {
            to.rows(0..n)?.write_u32(&rows.iter().map(|r| value(r) as u32).collect::<Vec<_>>())
        };
        fill(&self.a.tokens, &|r| r.token as usize)?;
        fill(&self.a.positions, &|r| r.length + first as usize)?;
        fill(&self.a.starts, &start)?;
        fill(&self.a.lengths, &|r| r.length + 1)?;
        fill(&self.a.source_starts, &|r| r.source.0)?;
        fill(&self.a.source_lengths, &|r| r.source.1)?;
        fill(&self.a.slots, &|r| start(r) + r.length)?;
        self.embed(n)?;
        let model = self.model;
        let shape = shape(model, model.config.decoder_attention_heads);
        for (l, layer) in model.decoder.iter().enumerate() {
            self.self_attention(n, &layer.self_attn, shape, Some(l))?;
            self.cross_attention(n, cross_attention(layer)?, shape, l)?;
            self.feed_forward(n, &layer.feed_forward)?;
        }
        self.normed(n, &model.decoder_norm)
    }

    /// logits (rows, V), F32, = states (rows, C) sharedᵀ
    pub fn logits(&self, logits: &mut Tensor, states: &Tensor) -> Result<()> {
        linear_forward(logits, states, &self.model.shared, None)
    }

    /// Copies the first positions of regions of the cache: (from, to, positions), in which no region occurs on both sides.
    pub fn copy_regions(&mut self, moves: &[(usize, usize, usize)]) -> Result<()> {
        let at = |region: usize, i: usize| (region * self.positions + i) as u32;
        let slots: Vec<(u32, u32)> =
            moves.iter().flat_map(|&(from, to, n)| (0..n).map(move |i| (at(from, i), at(to, i)))).collect();
        for part in slots.chunks(self.rows) {
            let n = part.len();
            let (mut from, mut to) = (self.a.starts.rows(0..n)?, self.a.slots.rows(0..n)?);
            from.write_u32(&part.iter().map(|p| p.0).collect::<Vec<_>>())?;
            to.write_u32(&part.iter().map(|p| p.1).collect::<Vec<_>>())?;
            let mut between = self.a.att.rows(0..n)?;
            for (keys, values) in &mut self.cache {
                for cache in [keys, values] {
                    gather_rows(&mut between, cache, &from)?;
                    scatter_rows(cache, &between, &to)?;
                }
            }
        }
        Ok(())
    }

    /// resid = embeddings * scale + positions
    fn embed(&mut self, n: usize) -> Result<()> {
        let (mut resid, mut part) = (self.a.resid.rows(0..n)?, self.a.projected.rows(0..n)?);
        embedding_forward(&mut part, &self.a.tokens.rows(0..n)?, &self.model.shared)?;
        cast(&mut resid, &part, self.model.config.embedding_scale())?;
        embedding_forward(&mut part, &self.a.positions.rows(0..n)?, &self.model.positions)?;
        add(&mut resid, &part)
    }

    fn normed(&mut self, n: usize, w: &Norm) -> Result<Tensor> {
        let (mut out, mut mean, mut rstd) =
            (self.a.norm.rows(0..n)?, self.a.mean.rows(0..n)?, self.a.rstd.rows(0..n)?);
        layernorm_forward(
            &mut out,
            &mut mean,
            &mut rstd,
            &self.a.resid.rows(0..n)?,
            &w.weight,
            &w.bias,
            EPS,
        )?;
        Ok(out)
    }

    /// resid += out_proj(attention(norm(resid))) over the sentence itself, or over the cache of decoder layer `layer`, which grows.
    fn self_attention(
        &mut self,
        n: usize,
        w: &AttentionWeights,
        shape: AttentionShape,
        layer: Option<usize>,
    ) -> Result<()> {
        let inp = self.normed(n, &w.norm)?;
        let a = &self.a;
        let (mut q, mut k, mut v, mut att) =
            (a.q.rows(0..n)?, a.k.rows(0..n)?, a.v.rows(0..n)?, a.att.rows(0..n)?);
        for (out, linear) in [(&mut q, &w.q_proj), (&mut k, &w.k_proj), (&mut v, &w.v_proj)] {
            project(out, &inp, linear)?;
        }
        let (starts, lengths) = (a.starts.rows(0..n)?, a.lengths.rows(0..n)?);
        match layer {
            None => decode_attention_forward(&mut att, &q, &k, &v, &starts, &lengths, shape)?,
            Some(l) => {
                let (keys, values) = &mut self.cache[l];
                let slots = a.slots.rows(0..n)?;
                scatter_rows(keys, &k, &slots)?;
                scatter_rows(values, &v, &slots)?;
                decode_attention_forward(&mut att, &q, keys, values, &starts, &lengths, shape)?;
            }
        }
        self.add_projected(n, &att, &w.out_proj)
    }

    fn cross_attention(
        &mut self,
        n: usize,
        w: &AttentionWeights,
        shape: AttentionShape,
        layer: usize,
    ) -> Result<()> {
        let inp = self.normed(n, &w.norm)?;
        let a = &self.a;
        let (mut q, mut att) = (a.q.rows(0..n)?, a.att.rows(0..n)?);
        project(&mut q, &inp, &w.q_proj)?;
        let (starts, lengths) = (a.source_starts.rows(0..n)?, a.source_lengths.rows(0..n)?);
        let (keys, values) = &self.cross[layer];
        decode_attention_forward(&mut att, &q, keys, values, &starts, &lengths, shape)?;
        self.add_projected(n, &att, &w.out_proj)
    }

    fn feed_forward(&mut self, n: usize, w: &FeedForward) -> Result<()> {
        let inp = self.normed(n, &w.norm)?;
        let f = w.fc1.weight.shape()[0];
        let view = |t: &Tensor| t.rows(0..n * f)?.view(&[n, f]);
        let (mut hidden, mut act) = (view(&self.a.hidden)?, view(&self.a.act)?);
        project(&mut hidden, &inp, &w.fc1)?;
        activation_forward(&mut act, &hidden, self.model.config.activation()?)?;
        self.add_projected(n, &act, &w.fc2)
    }

    /// resid += linear(inp)
    fn add_projected(&mut self, n: usize, inp: &Tensor, linear: &Linear) -> Result<()> {
        let (mut out, mut resid) = (self.a.projected.rows(0..n)?, self.a.resid.rows(0..n)?);
        project(&mut out, inp, linear)?;
        add(&mut resid, &out)
    }
}

/// Always the form for many rows, so that a row's bits do not depend on how many there are.
fn project(out: &mut Tensor, inp: &Tensor, linear: &Linear) -> Result<()> {
    linear_forward_many_rows(out, inp, &linear.weight, linear.bias.as_ref())
}

fn cross_attention(layer: &Layer) -> Result<&AttentionWeights> {
    layer.encoder_attn.as_ref().context("a decoder layer without cross attention")
}

fn shape(model: &M2m100, heads: usize) -> AttentionShape {
    let head_size = model.config.d_model / heads;
    AttentionShape {
        heads,
        kv_heads: heads,
        head_size,
        scale: 1.0 / (head_size as f32).sqrt(),
        window: None,
        softcap: None,
    }
}
