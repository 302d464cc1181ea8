//! The gradients of what is trained, and the list of it.
use anyhow::Result;

use super::{
    ids::{LinearId, NormId, PerLinear},
    linear::{AdapterGrads, Trained},
    lora::{Adapter, Lora},
    tree::{Leaf, LeafPart, Place, Tree},
    weights::Transformer,
};
use crate::{
    device::Device,
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

/// A trained tensor and its gradient: handles on the real memory.
#[derive(Debug)]
pub struct Param {
    /// Unique; PEFT's or Hugging Face's.
    pub name: String,
    /// The parameter.
    pub(crate) value: Tensor,
    /// Its gradient.
    pub(crate) grad: Tensor,
    /// Its kind.
    pub kind: ParamKind,
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
        self.value.write_f32(values)
    }
}

/// What is trained, and its gradients.
pub(super) enum Grads {
    /// Adapters, by layer and linear.
    Lora { lora: Lora, grads: Vec<PerLinear<Option<AdapterGrads>>> },
    /// Every weight. A tied head has the embedding's.
    Full(Tree<Tensor>),
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
    pub(super) fn for_lora(lora: Lora, device: &Device) -> Result<Laid<Grads>> {
        let Laid { parts: grads, flat, bytes } = Arena::lay("gradients", device, |arena| {
            let mut one = |adapter: &Adapter| AdapterGrads {
                a: gradient_of(&adapter.a, arena),
                b: gradient_of(&adapter.b, arena),
                magnitude: adapter.magnitude.as_ref().map(|m| gradient_of(m, arena)),
            };
            let layers = lora.layers.iter();
            layers.map(|l| PerLinear::from_fn(|id| l[id].as_ref().map(&mut one))).collect::<Vec<_>>()
        })?;
        Ok(Laid { parts: Grads::Lora { lora, grads }, flat, bytes })
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

    /// The lowest layer with anything to train.
    pub(super) fn lowest_layer(&self) -> usize {
        match self {
            Grads::Full(_) => 0,
            Grads::Lora { lora, .. } => lora.adapters().next().map_or(lora.layers.len(), |(l, _, _)| l),
        }
    }

    /// The adapters of layer `l`.
    pub(super) fn adapters(&self, l: usize) -> Option<&PerLinear<Option<Adapter>>> {
        match self {
            Grads::Lora { lora, .. } => Some(&lora.layers[l]),
            Grads::Full(_) => None,
        }
    }

    /// What is trained of a linear of layer `l`.
    pub(super) fn trained(&mut self, l: usize, id: LinearId) -> Trained<'_> {
        match self {
            Grads::Lora { lora, grads } => {
                Trained { adapter: lora.layers[l][id].as_ref().zip(grads[l][id].as_mut()), full: None }
            }
            Grads::Full(g) => Trained { adapter: None, full: Some(&mut g.layers[l].linears[id]) },
        }
    }

    /// Where the gradient of a norm's gain goes, if it is trained.
    pub(super) fn norm(&mut self, l: usize, id: NormId) -> Option<&mut Tensor> {
        match self {
            Grads::Lora { .. } => None,
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
            Grads::Lora { lora, grads } => lora_params(lora, grads),
            Grads::Full(grads) => {
                // `for_all` saw to it that all of them are tensors.
                let tensors = model.tensors("training all weights").unwrap_or_default();
                let pairs = tensors.into_iter().zip(grads.leaves(&model.spec));
                let one = |((leaf, t), (_, grad)): ((Leaf, &Tensor), (Leaf, LeafPart<&Tensor, &Tensor>))| {
                    param(t, grad.either(), ParamKind::of(leaf.place))
                };
                pairs.map(one).collect()
            }
        }
    }
}

fn param(value: &Tensor, grad: &Tensor, kind: ParamKind) -> Param {
    Param { name: value.name().to_string(), value: value.alias(), grad: grad.alias(), kind }
}

fn lora_params(lora: &Lora, grads: &[PerLinear<Option<AdapterGrads>>]) -> Vec<Param> {
    let mut out = vec![];
    for (l, id, adapter) in lora.adapters() {
        let Some(grad) = &grads[l][id] else { continue };
        out.push(param(&adapter.a, &grad.a, ParamKind::LoraA));
        out.push(param(&adapter.b, &grad.b, ParamKind::LoraB));
        if let (Some(m), Some(g)) = (&adapter.magnitude, &grad.magnitude) {
            out.push(param(m, g, ParamKind::DoraMagnitude));
        }
    }
    out
}
