//! The gradients of what is trained, and the list of it.
use std::{cell::Cell, rc::Rc};

use anyhow::Result;

use super::{
    ids::{LinearId, NormId, PerLinear},
    linear::{AdapterGrads, Trained, refresh_norms},
    lora::{Adapter, Adapters, Lora},
    spec::Spec,
    tree::{Leaf, LeafPart, Place, Tree},
    weights::Transformer,
};
use crate::{
    device::Device,
    distributed::beside::Part,
    ops::rows::CastTable,
    tensor::{Arena, DType, Laid, Tensor},
};

/// What kind of parameter a tensor is: decides decay and learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// A of an adapter.
    LoraA,
    /// B of an adapter.
    LoraB,
    /// DoRA's magnitudes.
    DoraMagnitude,
    /// A weight matrix.
    Matrix,
    /// A norm's gain or a bias.
    Vector,
    /// The embedding or the head.
    Embedding,
}

/// How often parameters were written: what is computed from them alone holds until then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes(Rc<Cell<u64>>);

impl Changes {
    /// To be told before parameters are written.
    pub fn note(&self) {
        self.0.set(self.0.get() + 1);
    }
    fn count(&self) -> u64 {
        self.0.get()
    }
}

/// A trained tensor and its gradient: handles on the real memory.
#[derive(Debug)]
pub struct Param {
    /// Unique; PEFT's or Hugging Face's.
    pub name: String,
    /// The parameter.
    value: Tensor,
    /// Its gradient.
    pub(crate) grad: Tensor,
    /// Its kind.
    pub kind: ParamKind,
    /// When its gradient is final.
    pub(crate) part: Part,
    changes: Changes,
}

impl Param {
    /// The parameter, for reading.
    pub fn value(&self) -> &Tensor {
        &self.value
    }
    /// Its gradient, for reading.
    pub fn grad(&self) -> &Tensor {
        &self.grad
    }
    /// Sets the parameter. Errors unless there are as many values as elements.
    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        self.changes.note();
        self.value.write_f32(values)
    }
    /// Sets the parameter to `t`, F32 of its shape, from wherever that is.
    pub(crate) fn copy_from(&self, t: &Tensor) -> Result<()> {
        self.changes.note();
        self.value.alias().copy_from(t)
    }
    /// A handle for who writes again and again, and whom to tell each time before.
    pub(crate) fn writable(&self) -> (Tensor, Changes) {
        (self.value.alias(), self.changes.clone())
    }
}

/// What is trained, and its gradients.
// One exists in a step.
#[allow(clippy::large_enum_variant)]
pub(super) enum Grads {
    /// Adapters.
    Lora(AdapterTraining),
    /// Every weight. A tied head has the embedding's.
    Full(Tree<Tensor>),
}

/// When the gradient of what stands at `place` is final in a backward pass.
fn part_of(spec: &Spec, place: Place) -> Part {
    match place {
        Place::Embedding => Part::Embedding,
        Place::Head | Place::FinalNorm => Part::Head,
        Place::Weight(unit, _) | Place::Bias(unit, _) => Part::Layer(spec.owner(unit).0),
        Place::Norm(l, _) => Part::Layer(l),
    }
}

type AdapterGradients = Vec<PerLinear<Option<AdapterGrads>>>;

/// Adapters and their gradients.
pub(super) struct AdapterTraining {
    pub lora: Lora,
    /// By module, as [`Lora::layers`].
    grads: AdapterGradients,
    /// By linear, as its parts.
    parts: AdapterGradients,
    changes: Changes,
    /// What makes the adapters' bf16 copies, where products take them.
    narrow: Option<CastTable>,
    /// The changes that DoRA's norms and the copies know of.
    made_of: Option<u64>,
}

impl ParamKind {
    fn of(place: Place) -> ParamKind {
        match place {
            Place::Embedding | Place::Head => ParamKind::Embedding,
            Place::Weight(..) => ParamKind::Matrix,
            Place::Bias(..) | Place::Norm(..) | Place::FinalNorm => ParamKind::Vector,
        }
    }
}

fn gradient_of(t: &Tensor, arena: &mut Arena) -> Tensor {
    arena.tensor(&format!("{}.grad", t.name()), DType::F32, t.shape())
}

impl Grads {
    /// Also makes room for DoRA's norms and, for activations in bf16, for copies of the adapters, which are part of the bytes.
    pub(super) fn for_lora(spec: &Spec, mut lora: Lora, device: &Device, acts: DType) -> Result<Laid<Grads>> {
        let (narrow, narrow_bytes) = narrow_copies(&mut lora, device, acts)?;
        let (norms, norms_bytes) = Arena::build("norms", device, |arena| norms_of(&lora, arena))?;
        for (layer, norms) in lora.layers.iter_mut().zip(&norms) {
            for (id, norms) in norms.iter() {
                if let (Some(adapter), Some(norms)) = (&mut layer[id], norms) {
                    adapter.norms = Some(norms.alias());
                }
            }
        }
        let Laid { parts: grads, flat, bytes } =
            Arena::lay("gradients", device, |arena| gradients_of(&lora, arena))?;
        lora.split(spec)?;
        let parts = parts_of(&grads, spec)?;
        let training =
            AdapterTraining { lora, grads, parts, changes: Changes::default(), narrow, made_of: None };
        Ok(Laid { parts: Grads::Lora(training), flat, bytes: bytes + norms_bytes + narrow_bytes })
    }

    pub(super) fn for_all(model: &Transformer) -> Result<Laid<Grads>> {
        let leaves = model.tensors("training all weights")?;
        let Laid { parts: grads, flat, bytes } = Arena::lay("gradients", &model.device(), |arena| {
            leaves.iter().map(|(_, t)| gradient_of(t, arena)).collect::<Vec<_>>()
        })?;
        let mut grads = grads.into_iter();
        let tree = Tree::build(&model.spec, &mut |leaf| {
            let grad = grads.next().ok_or_else(|| anyhow::anyhow!("{} has no gradient", leaf.name))?;
            Ok(LeafPart::of(leaf, grad))
        })?;
        Ok(Laid { parts: Grads::Full(tree), flat, bytes })
    }

    /// What would be trained, adapters of these shapes or every weight, as shapes without memory, and the bytes that [`Grads::for_lora`] (with activations of type
    /// `acts`, `on_gpu` or not) or [`Grads::for_all`] would take.
    pub(super) fn measure(spec: &Spec, lora: Option<Lora>, on_gpu: bool, acts: DType) -> (Vec<Param>, usize) {
        let Some(lora) = lora else {
            let mut params = vec![];
            let bytes = Arena::measure(|arena| {
                for leaf in spec.leaves() {
                    let mut value = None;
                    Arena::measure(|own| value = Some(own.tensor(&leaf.name, DType::F32, &leaf.dims)));
                    let Some(value) = value else { continue };
                    let grad = gradient_of(&value, arena);
                    let when = (ParamKind::of(leaf.place), part_of(spec, leaf.place));
                    params.push(param(&value, &grad, when, &Changes::default()));
                }
            });
            return (params, bytes);
        };
        let mut bytes = Arena::measure(|arena| drop(norms_of(&lora, arena)));
        if takes_copies(on_gpu, acts) {
            bytes += Arena::measure(|arena| drop(copies_of(&lora, arena)));
        }
        let mut grads = vec![];
        bytes += Arena::measure(|arena| grads = gradients_of(&lora, arena));
        let (parts, changes) = (vec![], Changes::default());
        let shapes = AdapterTraining { lora, grads, parts, changes, narrow: None, made_of: None };
        (shapes.params(spec), bytes)
    }

    /// The lowest layer with anything to train.
    pub(super) fn lowest_layer(&self, spec: &Spec) -> usize {
        match self {
            Grads::Full(_) => 0,
            Grads::Lora(t) => {
                let layers = t.lora.adapters().map(|(unit, _, _)| spec.owner(unit).0);
                layers.min().unwrap_or(spec.layers.len())
            }
        }
    }

    /// Computes DoRA's norms and the adapters' bf16 copies, unless no parameter was written since. The base is frozen.
    pub(super) fn refresh(&mut self, model: &Transformer) -> Result<()> {
        let Grads::Lora(t) = self else { return Ok(()) };
        let now = t.changes.count();
        if t.made_of == Some(now) {
            return Ok(());
        }
        if let Some(narrow) = &mut t.narrow {
            narrow.run()?;
        }
        for (unit, adapters) in t.lora.parts.iter_mut().enumerate() {
            for id in LinearId::ALL {
                let linear = model.weights.unit(unit).and_then(|unit| unit[*id].as_ref());
                let Some((adapter, linear)) = adapters[*id].as_mut().zip(linear) else { continue };
                refresh_norms(linear, adapter)?;
            }
        }
        t.made_of = Some(now);
        Ok(())
    }

    /// The adapters by unit.
    pub(super) fn all_adapters(&self) -> Option<&Adapters> {
        match self {
            Grads::Lora(t) => Some(&t.lora.parts),
            Grads::Full(_) => None,
        }
    }

    /// The adapters of a unit.
    pub(super) fn adapters(&self, unit: usize) -> Option<&PerLinear<Option<Adapter>>> {
        self.all_adapters().map(|adapters| &adapters[unit])
    }

    /// What is trained of a linear of a unit.
    pub(super) fn trained(&mut self, u: usize, id: LinearId) -> Trained<'_> {
        match self {
            Grads::Lora(t) => {
                Trained { adapter: t.lora.parts[u][id].as_ref().zip(t.parts[u][id].as_mut()), full: None }
            }
            Grads::Full(g) => {
                Trained { adapter: None, full: g.unit_mut(u).and_then(|unit| unit[id].as_mut()) }
            }
        }
    }

    /// Where the gradient of a norm's gain goes, if it is trained.
    pub(super) fn norm(&mut self, l: usize, id: NormId) -> Option<&mut Tensor> {
        match self {
            Grads::Lora(_) => None,
            Grads::Full(g) => g.layers[l].norms[id].as_mut(),
        }
    }

    /// All gradients, where every weight is trained.
    pub(super) fn full(&mut self) -> Option<&mut Tree<Tensor>> {
        if let Grads::Full(g) = self { Some(g) } else { None }
    }

    /// Every trained tensor with its gradient, in a fixed order.
    pub(super) fn params(&self, model: &Transformer) -> Vec<Param> {
        match self {
            Grads::Lora(t) => t.params(&model.spec),
            Grads::Full(grads) => {
                // `for_all` saw to it that all of them are tensors.
                let tensors = model.tensors("training all weights").unwrap_or_default();
                let pairs = tensors.into_iter().zip(grads.leaves(&model.spec));
                let one = |((leaf, t), (_, grad)): ((Leaf, &Tensor), (Leaf, LeafPart<&Tensor, &Tensor>))| {
                    let when = (ParamKind::of(leaf.place), part_of(&model.spec, leaf.place));
                    param(t, grad.either(), when, &Changes::default())
                };
                pairs.map(one).collect()
            }
        }
    }
}

/// Room for DoRA's norms.
fn norms_of(lora: &Lora, arena: &mut Arena) -> Vec<PerLinear<Option<Tensor>>> {
    let mut one = |adapter: &Adapter| {
        let m = adapter.magnitude.as_ref()?;
        Some(arena.tensor(&format!("{}.norms", m.name()), DType::F32, m.shape()))
    };
    lora.layers.iter().map(|l| PerLinear::from_fn(|id| l[id].as_ref().and_then(&mut one))).collect()
}

/// Room for the adapters' gradients.
fn gradients_of(lora: &Lora, arena: &mut Arena) -> AdapterGradients {
    let mut one = |adapter: &Adapter| AdapterGrads {
        a: gradient_of(&adapter.a, arena),
        b: gradient_of(&adapter.b, arena),
        magnitude: adapter.magnitude.as_ref().map(|m| gradient_of(m, arena)),
    };
    lora.layers.iter().map(|l| PerLinear::from_fn(|id| l[id].as_ref().map(&mut one))).collect()
}

/// Handles on each linear's rows of its module's gradients.
fn parts_of(grads: &AdapterGradients, spec: &Spec) -> Result<AdapterGradients> {
    let one = |unit: usize, grads: &PerLinear<Option<AdapterGrads>>, id| -> Result<Option<AdapterGrads>> {
        let whole = spec.module_parts(id).first().and_then(|&first| grads[first].as_ref());
        let Some(whole) = whole else { return Ok(None) };
        let rows = || spec.module_rows(unit, id);
        let magnitude = whole.magnitude.as_ref().map(|m| m.rows(rows())).transpose()?;
        Ok(Some(AdapterGrads { a: whole.a.alias(), b: whole.b.rows(rows())?, magnitude }))
    };
    let units = grads.iter().enumerate();
    units.map(|(unit, grads)| PerLinear::try_from_fn(|id| one(unit, grads, id))).collect()
}

/// Room for the adapters' copies in bf16.
fn copies_of(lora: &Lora, arena: &mut Arena) -> Vec<[Tensor; 2]> {
    let mut copy = |t: &Tensor| arena.tensor(t.name(), DType::Bf16, t.shape());
    lora.adapters().map(|(_, _, adapter)| [copy(&adapter.a), copy(&adapter.b)]).collect()
}

/// Whether products of `acts` take such copies.
fn takes_copies(on_gpu: bool, acts: DType) -> bool {
    on_gpu && acts == DType::Bf16
}

/// Gives every adapter its copies, A and s B in bf16, if products of `acts` on `device` take them; the casts that fill them, and their bytes.
fn narrow_copies(lora: &mut Lora, device: &Device, acts: DType) -> Result<(Option<CastTable>, usize)> {
    if !takes_copies(*device != Device::Cpu, acts) {
        return Ok((None, 0));
    }
    let (copies, bytes) = Arena::build("adapters in bf16", device, |arena| copies_of(lora, arena))?;
    let (mut casts, mut copies) = (vec![], copies.into_iter());
    for layer in &mut lora.layers {
        for id in LinearId::ALL {
            let Some(adapter) = &mut layer[*id] else { continue };
            let Some([a, b]) = copies.next() else { break };
            casts.push((a.alias(), adapter.a.alias(), 1.0));
            casts.push((b.alias(), adapter.b.alias(), adapter.scale));
            adapter.narrow = Some([a, b]);
        }
    }
    Ok((Some(CastTable::new(casts)?), bytes))
}

fn param(value: &Tensor, grad: &Tensor, (kind, part): (ParamKind, Part), changes: &Changes) -> Param {
    let (name, changes) = (value.name().to_string(), changes.clone());
    Param { name, value: value.alias(), grad: grad.alias(), kind, part, changes }
}

impl AdapterTraining {
    fn params(&self, spec: &Spec) -> Vec<Param> {
        let mut out = vec![];
        for (l, id, adapter) in self.lora.adapters() {
            let Some(grad) = &self.grads[l][id] else { continue };
            let part = Part::Layer(spec.owner(l).0);
            let mut push = |value: &Tensor, grad: &Tensor, kind| {
                out.push(param(value, grad, (kind, part), &self.changes))
            };
            push(&adapter.a, &grad.a, ParamKind::LoraA);
            push(&adapter.b, &grad.b, ParamKind::LoraB);
            if let (Some(m), Some(g)) = (&adapter.magnitude, &grad.magnitude) {
                push(m, g, ParamKind::DoraMagnitude);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests;
