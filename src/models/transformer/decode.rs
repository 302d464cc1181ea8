//! The inference forward: packed ragged prompts into a key/value cache, then one token a row and step.
//!
//! The result of a row depends on nothing but the row: prompts run packed but confined to themselves, decode reads its own slots,
//! and every product is independent of the batch (`ops::gemm`).
use anyhow::{Result, ensure};

use super::{
    block::{Attention, Block, Next, Slots},
    ids::PerLinear,
    linear::Rows,
    lora::Lora,
    rope_table::RopeTables,
    routed::Moves,
    saved::{Saved, Scratch},
    spec::Spec,
    weights::Transformer,
};
use crate::tensor::{Arena, DType, Tensor};

/// A model, or one in training with its adapters beside it (`TrainStep::current_adapter`).
#[derive(Clone, Copy)]
pub struct Adapted<'m> {
    /// The weights.
    pub model: &'m Transformer,
    /// On the model's device.
    pub adapters: Option<&'m Lora>,
}

impl<'m> From<&'m Transformer> for Adapted<'m> {
    fn from(model: &'m Transformer) -> Adapted<'m> {
        Adapted { model, adapters: None }
    }
}

/// Scratch of the inference forward, for up to `max_tokens` tokens at once.
pub struct Decoder {
    ropes: RopeTables,
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
    /// Every layer's in turn.
    saved: Saved,
    /// (N * R) of the widest adapter of each linear.
    u: PerLinear<Option<Tensor>>,
    norm: Tensor,
    projected: Tensor,
    act: Tensor,
    moves: Option<Moves>,
}

impl Buffers {
    fn lay_out(arena: &mut Arena, spec: &Spec, adapters: Option<&Lora>, n: usize, acts: DType) -> Buffers {
        let layers = spec.layers.len();
        let of_experts = |experts, id| adapters.filter(|_| experts)?.widest(layers..spec.units(), id);
        let saved = Saved::lay_out(arena, spec, None, n, acts, &of_experts);
        let u = PerLinear::from_fn(|id| {
            let width = adapters.and_then(|lora| lora.widest(0..layers, id));
            width.map(|width| arena.tensor("u", acts, &[n * width]))
        });
        let moves = spec.experts.map(|experts| Moves::lay_out(arena, experts, n, spec.hidden_size, acts));
        let mut t = |name: &str, dtype: DType, dims: &[usize]| arena.tensor(name, dtype, dims);
        Buffers {
            tokens: t("tokens", DType::U32, &[n]),
            positions: t("positions", DType::U32, &[n]),
            starts: t("starts", DType::U32, &[n]),
            lengths: t("lengths", DType::U32, &[n]),
            slots: t("slots", DType::U32, &[n]),
            saved,
            u,
            norm: t("norm", acts, &[n, spec.hidden_size]),
            projected: t("projected", acts, &[n, spec.hidden_size]),
            act: t("act", acts, &[n, spec.mlp_width()]),
            moves,
        }
    }
}

/// What runs: documents packed back to back, or one token a row over its slots.
enum Mode {
    Prompts { cu_seqlens: Tensor },
    Step,
}

impl Decoder {
    /// Scratch for calls of up to `max_tokens` tokens, over positions below `max_positions`.
    pub fn new<'m>(
        model: impl Into<Adapted<'m>>,
        max_tokens: usize,
        max_positions: usize,
    ) -> Result<Decoder> {
        let Adapted { model, adapters } = model.into();
        model.needs_all("generation")?;
        let (spec, n) = (&model.spec, max_tokens);
        let (device, acts) = (model.device(), model.activation_dtype());
        let lay_out = |arena: &mut Arena| Buffers::lay_out(arena, spec, adapters, n, acts);
        let (a, _) = Arena::build("inference scratch", &device, lay_out)?;
        let ropes = RopeTables::new(spec, max_positions, max_tokens, &device)?;
        Ok(Decoder { ropes, max_tokens, a })
    }

    /// What [`Decoder::new`] lays out without adapters, but the rotary tables, bytes; activations of type `acts`.
    pub fn bytes(spec: &Spec, max_tokens: usize, acts: DType) -> usize {
        Arena::measure(|a| drop(Buffers::lay_out(a, spec, None, max_tokens, acts)))
    }

    /// Runs whole texts and hands out the hidden states (N, C) of all their tokens, packed: index 0 are the embeddings, index l the residual
    /// stream behind layer l, the last one behind the final norm (transformers' `output_hidden_states`).
    pub fn hidden_states<'m>(
        &mut self,
        model: impl Into<Adapted<'m>>,
        texts: &[&[u32]],
        on_layer: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let model = model.into();
        let (n, cu_seqlens) = self.load_prompts(model.model, texts)?;
        self.forward(model, n, None, Mode::Prompts { cu_seqlens }, on_layer)?;
        Ok(())
    }

    /// Runs whole prompts; row r's keys and values go to `cache` from slot `slots[r]` on (no cache: nowhere).
    /// Returns the final normed hidden states (N, C) of all their tokens.
    pub fn prompts<'m>(
        &mut self,
        model: impl Into<Adapted<'m>>,
        prompts: &[&[u32]],
        cache: Option<&mut [(Tensor, Tensor)]>,
        slots: &[usize],
    ) -> Result<Tensor> {
        let model = model.into();
        let (n, cu_seqlens) = self.load_prompts(model.model, prompts)?;
        let own =
            prompts.iter().zip(slots).flat_map(|(p, &first)| (first..first + p.len()).map(|s| s as u32));
        let own: Vec<u32> = own.collect();
        self.a.slots.rows(0..own.len())?.write_u32(&own)?;
        self.forward(model, n, cache, Mode::Prompts { cu_seqlens }, &mut |_, _| Ok(()))
    }

    /// Tokens and positions of whole prompts; their number and offsets.
    fn load_prompts(&mut self, model: &Transformer, prompts: &[&[u32]]) -> Result<(usize, Tensor)> {
        let n: usize = prompts.iter().map(|p| p.len()).sum();
        ensure!(
            n > 0 && n <= self.max_tokens,
            "{n} prompt tokens in one call; there is room for {}",
            self.max_tokens
        );
        let mut cu = vec![0u32];
        prompts.iter().for_each(|p| cu.push(cu[cu.len() - 1] + p.len() as u32));
        self.a.tokens.rows(0..n)?.write_u32(&prompts.concat())?;
        let lengths: Vec<usize> = prompts.iter().map(|p| p.len()).collect();
        self.a.positions.rows(0..n)?.write_u32(&self.ropes.rows(&lengths)?)?;
        let mut cu_seqlens = Tensor::scratch_on(&model.device(), "cu_seqlens", DType::U32, &[cu.len()])?;
        cu_seqlens.write_u32(&cu)?;
        Ok((n, cu_seqlens))
    }

    /// One token for each row: `rows[r]` = (token, first slot, tokens already in the cache). Rows may be successive tokens of one sequence: each
    /// layer stores all keys and values before its attention. Returns hidden states (rows, C).
    pub fn step<'m>(
        &mut self,
        model: impl Into<Adapted<'m>>,
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
        self.forward(model.into(), n, Some(cache), Mode::Step, &mut |_, _| Ok(()))
    }

    fn forward(
        &mut self,
        Adapted { model, adapters }: Adapted,
        n: usize,
        mut cache: Option<&mut [(Tensor, Tensor)]>,
        mode: Mode,
        on_layer: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let (spec, weights, a) = (&model.spec, &model.weights, &self.a);
        let mut s = a.saved.rows(spec, n)?;
        let mut x = Scratch {
            positions: a.positions.rows(0..n)?,
            norm: a.norm.rows(0..n)?,
            projected: a.projected.rows(0..n)?,
            act: a.act.rows(0..n)?,
            moves: a.moves.as_ref().map(|moves| moves.rows(n)).transpose()?,
        };
        let (starts, lengths, own) = (a.starts.rows(0..n)?, a.lengths.rows(0..n)?, a.slots.rows(0..n)?);
        let block = |l| Block::new(spec, l, weights, self.ropes.tables());
        model.embed(&mut s.resid_in, &a.tokens.rows(0..n)?)?;
        on_layer(0, &s.resid_in)?;
        block(0).norm_input(&mut s, &mut x)?;
        let layers = weights.layers.len();
        for l in 0..layers {
            let slots = cache.as_deref_mut().map(|cache| {
                let (keys, values) = &mut cache[l];
                Slots { keys, values, own: &own }
            });
            let attention = match (&mode, slots) {
                (Mode::Prompts { cu_seqlens }, slots) => Attention::Packed { cu_seqlens, slots },
                (Mode::Step, Some(slots)) => Attention::Step { slots, starts: &starts, lengths: &lengths },
                (Mode::Step, None) => anyhow::bail!("a decode step needs a cache"),
            };
            // The next layer's input replaces this one's, which is used up.
            let gain = if l + 1 < layers { block(l + 1).input_gain() } else { Some(&weights.norm) };
            let (resid, rstd) = (s.resid_in.alias(), s.rstd_in.alias());
            let next = Next { resid, rstd, norm: x.norm.alias(), gain };
            let adapters = adapters.map(|lora| &lora.parts[..]);
            if let Some(adapters) = adapters {
                s.u = PerLinear::try_from_fn(|id| {
                    let Some((adapter, u)) = adapters[l][id].as_ref().zip(a.u[id].as_ref()) else {
                        return Ok(None);
                    };
                    let r = adapter.a.shape()[0];
                    u.rows(0..n * r)?.view(&[n, r]).map(Some)
                })?;
            }
            block(l).forward(&mut s, &mut x, attention, adapters, Rows::Any, next)?;
            on_layer(l + 1, if l + 1 == layers { &x.norm } else { &s.resid_in })?;
        }
        Ok(x.norm)
    }

    /// logits (rows, V), F32, = hidden (rows, C) headᵀ
    pub fn logits(&self, model: &Transformer, logits: &mut Tensor, hidden: &Tensor) -> Result<()> {
        model.logits(logits, hidden, Rows::Any)
    }
}
