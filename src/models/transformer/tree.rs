//! The one list of a decoder's tensors: where each stands, what it is, its names and shape. Loading, saving, moving, training and adapters all go by it.
use std::collections::HashMap;

use anyhow::{Context, Result};

use super::{
    ids::{LinearId, NormId, PerLinear, PerNorm},
    spec::Spec,
};

/// Where a tensor stands; the first number is the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The embedding: (V, C).
    Embedding,
    /// A linear's matrix.
    Weight(usize, LinearId),
    /// A linear's bias.
    Bias(usize, LinearId),
    /// A norm's gain.
    Norm(usize, NormId),
    /// The last norm's gain: (C).
    FinalNorm,
    /// The head, where it is not the embedding: (V, C).
    Head,
}

/// A tensor of a decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Where it stands.
    pub place: Place,
    /// Hugging Face's name.
    pub name: String,
    /// Its shape.
    pub dims: Vec<usize>,
}

impl Place {
    /// True for matrices, which may be held in another type than F32.
    pub fn is_matrix(self) -> bool {
        matches!(self, Place::Embedding | Place::Weight(..) | Place::Head)
    }

    /// The name in a GGUF file.
    pub fn gguf(self) -> String {
        match self {
            Place::Embedding => "token_embd.weight".into(),
            Place::FinalNorm => "output_norm.weight".into(),
            Place::Head => "output.weight".into(),
            Place::Weight(l, id) => format!("blk.{l}.{}.weight", id.gguf()),
            Place::Bias(l, id) => format!("blk.{l}.{}.bias", id.gguf()),
            Place::Norm(l, id) => format!("blk.{l}.{}.weight", id.gguf()),
        }
    }
}

impl Spec {
    /// Every tensor, in a fixed order. This is the only place that enumerates them.
    pub fn leaves(&self) -> Vec<Leaf> {
        let mut out = vec![self.leaf(Place::Embedding)];
        for l in 0..self.layers.len() {
            for &id in LinearId::ALL {
                out.push(self.leaf(Place::Weight(l, id)));
                if self.biases[id] {
                    out.push(self.leaf(Place::Bias(l, id)));
                }
            }
            let norms = NormId::ALL.iter().filter(|&&id| self.has_norm(id));
            out.extend(norms.map(|&id| self.leaf(Place::Norm(l, id))));
        }
        out.push(self.leaf(Place::FinalNorm));
        if !self.tied_head {
            out.push(self.leaf(Place::Head));
        }
        out
    }

    /// The path of a linear: `model.layers.0.self_attn.q_proj`.
    pub fn linear_path(l: usize, id: LinearId) -> String {
        format!("model.layers.{l}.{}", id.path())
    }

    /// (out, in) of a linear.
    pub fn linear_dims(&self, id: LinearId) -> (usize, usize) {
        let (c, f) = (self.hidden_size, self.intermediate_size);
        match id {
            LinearId::Q => (self.query_size(), c),
            LinearId::K | LinearId::V => (self.kv_size(), c),
            LinearId::O => (c, self.query_size()),
            LinearId::Gate | LinearId::Up => (f, c),
            LinearId::Down => (c, f),
        }
    }

    fn leaf(&self, place: Place) -> Leaf {
        let (c, v) = (self.hidden_size, self.vocab_size);
        let (name, dims) = match place {
            Place::Embedding => ("model.embed_tokens.weight".to_string(), vec![v, c]),
            Place::Head => ("lm_head.weight".into(), vec![v, c]),
            Place::FinalNorm => ("model.norm.weight".into(), vec![c]),
            Place::Weight(l, id) => {
                let (out, inp) = self.linear_dims(id);
                (format!("{}.weight", Spec::linear_path(l, id)), vec![out, inp])
            }
            Place::Bias(l, id) => {
                (format!("{}.bias", Spec::linear_path(l, id)), vec![self.linear_dims(id).0])
            }
            Place::Norm(l, id) => {
                let width = if matches!(id, NormId::Query | NormId::Key) { self.head_size } else { c };
                (format!("model.layers.{l}.{}.weight", id.path(self.post_norms)), vec![width])
            }
        };
        Leaf { place, name, dims }
    }

    /// Parameters of the whole model.
    pub fn parameters(&self) -> usize {
        self.leaves().iter().map(|leaf| leaf.dims.iter().product::<usize>()).sum()
    }
}

/// A linear's own tensors: y = x weightᵀ + bias.
#[derive(Debug)]
pub struct LinearTree<T> {
    /// (out, in)
    pub weight: T,
    /// (out), F32
    pub bias: Option<T>,
}

/// A layer's tensors.
#[derive(Debug)]
pub struct LayerTree<T> {
    /// Its linears.
    pub linears: PerLinear<LinearTree<T>>,
    /// Its norms' gains, F32; `None` where the family has none.
    pub norms: PerNorm<Option<T>>,
}

/// Something for each tensor of a decoder: its weights, or their gradients.
#[derive(Debug)]
pub struct Tree<T> {
    /// (V, C)
    pub embed_tokens: T,
    /// By layer.
    pub layers: Vec<LayerTree<T>>,
    /// (C), F32
    pub norm: T,
    /// (V, C); `None` where the head is the embedding.
    pub lm_head: Option<T>,
}

impl<T> LayerTree<T> {
    /// The gain of a norm that the block needs.
    pub fn norm(&self, id: NormId) -> Result<&T> {
        self.norms[id].as_ref().with_context(|| format!("this model has no {}", id.gguf()))
    }
}

impl<T> Tree<T> {
    /// `make` of every leaf, in the order of [`Spec::leaves`].
    pub fn build(spec: &Spec, make: &mut dyn FnMut(&Leaf) -> Result<T>) -> Result<Tree<T>> {
        let mut made = HashMap::new();
        for leaf in spec.leaves() {
            made.insert(leaf.place, make(&leaf)?);
        }
        let need = |made: &mut HashMap<Place, T>, place| {
            made.remove(&place).with_context(|| format!("nothing was made for {place:?}"))
        };
        let embed_tokens = need(&mut made, Place::Embedding)?;
        let norm = need(&mut made, Place::FinalNorm)?;
        let mut layers = vec![];
        for l in 0..spec.layers.len() {
            let linears = PerLinear::try_from_fn(|id| {
                let weight = need(&mut made, Place::Weight(l, id))?;
                anyhow::Ok(LinearTree { weight, bias: made.remove(&Place::Bias(l, id)) })
            })?;
            let norms = PerNorm::from_fn(|id| made.remove(&Place::Norm(l, id)));
            layers.push(LayerTree { linears, norms });
        }
        Ok(Tree { embed_tokens, layers, norm, lm_head: made.remove(&Place::Head) })
    }

    /// What stands at `place`, if there is such a place.
    pub fn get(&self, place: Place) -> Option<&T> {
        match place {
            Place::Embedding => Some(&self.embed_tokens),
            Place::FinalNorm => Some(&self.norm),
            Place::Head => self.lm_head.as_ref(),
            Place::Weight(l, id) => Some(&self.layers.get(l)?.linears[id].weight),
            Place::Bias(l, id) => self.layers.get(l)?.linears[id].bias.as_ref(),
            Place::Norm(l, id) => self.layers.get(l)?.norms[id].as_ref(),
        }
    }

    /// Every leaf with what stands there, in the order of [`Spec::leaves`].
    pub fn leaves(&self, spec: &Spec) -> Vec<(Leaf, &T)> {
        let with = |leaf: Leaf| self.get(leaf.place).map(|t| (leaf, t));
        spec.leaves().into_iter().filter_map(with).collect()
    }

    /// The head: the embedding where they are tied.
    pub fn head(&self) -> &T {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}
