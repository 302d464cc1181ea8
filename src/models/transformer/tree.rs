//! The one list of a decoder's tensors: where each stands, what it is, its names and shape. Loading, saving, moving, training and adapters all go by it.
use std::{collections::HashMap, ops::Range};

use anyhow::{Context, Result};

use super::{
    ids::{LinearId, NormId, PerLinear, PerNorm},
    spec::Spec,
};

/// Where a tensor stands; the first number is the layer, or of linears the unit ([`super::experts`]).
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
    /// What a checkpoint keeps it in, where that is not a tensor of its own.
    pub whole: Option<Whole>,
    /// What a GGUF file keeps it in, where that is one tensor for all experts of a layer.
    pub stack: Option<Stack>,
}

/// A tensor of a GGUF file that holds the same linear of every expert of a layer, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Its name.
    pub gguf: String,
    /// E.
    pub count: usize,
    /// Which of them the leaf is.
    pub index: usize,
}

/// A matrix of a checkpoint that several linears are rows of ([`super::ids::FUSED`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Hugging Face's name.
    pub name: String,
    /// The name in a GGUF file.
    pub gguf: String,
    /// All of its rows.
    pub rows: usize,
    /// The leaf's first.
    pub first: usize,
}

impl Leaf {
    /// The tensor of a checkpoint that it stands in, as Hugging Face names it.
    pub fn stored_name(&self) -> &str {
        self.whole.as_ref().map_or(&self.name, |whole| &whole.name)
    }
    /// The same in a GGUF file.
    pub fn gguf_name(&self) -> String {
        if let Some(stack) = &self.stack {
            return stack.gguf.clone();
        }
        self.whole.as_ref().map_or_else(|| self.place.gguf(), |whole| whole.gguf.clone())
    }
    /// That tensor's shape.
    pub fn stored_dims(&self) -> Vec<usize> {
        let mut dims = self.dims.clone();
        if let (Some(rows), Some(whole)) = (dims.first_mut(), &self.whole) {
            *rows = whole.rows;
        }
        dims
    }
    /// The rows of it that are the leaf's.
    pub fn stored_rows(&self) -> Range<usize> {
        let first = self.whole.as_ref().map_or(0, |whole| whole.first);
        first..first + self.dims.first().copied().unwrap_or(1)
    }
    /// The shape of the tensor of a GGUF file that it stands in.
    pub fn gguf_dims(&self) -> Vec<usize> {
        match &self.stack {
            Some(stack) => [&[stack.count][..], &self.dims].concat(),
            None => self.stored_dims(),
        }
    }
    /// The leaf's first row there.
    pub fn gguf_first(&self) -> usize {
        match &self.stack {
            Some(stack) => stack.index * self.dims.first().copied().unwrap_or(1),
            None => self.stored_rows().start,
        }
    }
}

impl Place {
    /// True for matrices, which may be held in another type than F32.
    pub fn is_matrix(self) -> bool {
        matches!(self, Place::Embedding | Place::Weight(..) | Place::Head)
    }

    /// The name in a GGUF file, of what is no expert's.
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
            for unit in std::iter::once(l).chain(self.expert_units(l)) {
                for &id in LinearId::ALL.iter().filter(|&&id| self.has_linear(unit, id)) {
                    out.push(self.leaf(Place::Weight(unit, id)));
                    if self.biases[id] {
                        out.push(self.leaf(Place::Bias(unit, id)));
                    }
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

    /// (out, in) of a linear.
    pub fn linear_dims(&self, unit: usize, id: LinearId) -> (usize, usize) {
        let (c, experts) = (self.hidden_size, self.experts.as_ref());
        let f = experts.filter(|_| self.is_expert(unit)).map_or(self.intermediate_size, |e| e.width);
        match id {
            LinearId::Q => (self.query_size(), c),
            LinearId::K | LinearId::V => (self.kv_size(), c),
            LinearId::O => (c, self.query_size()),
            LinearId::Gate | LinearId::Up => (f, c),
            LinearId::Down => (c, f),
            LinearId::Router => (experts.map_or(0, |e| e.count), c),
        }
    }

    fn leaf(&self, place: Place) -> Leaf {
        let (c, v) = (self.hidden_size, self.vocab_size);
        let (name, dims) = match place {
            Place::Embedding => ("model.embed_tokens.weight".to_string(), vec![v, c]),
            Place::Head => ("lm_head.weight".into(), vec![v, c]),
            Place::FinalNorm => ("model.norm.weight".into(), vec![c]),
            Place::Weight(l, id) => {
                let (out, inp) = self.linear_dims(l, id);
                (format!("{}.weight", self.linear_path(l, id)), vec![out, inp])
            }
            Place::Bias(l, id) => {
                (format!("{}.bias", self.linear_path(l, id)), vec![self.linear_dims(l, id).0])
            }
            Place::Norm(l, id) => {
                let whole = self.qk_norms.is_some_and(|n| n.whole);
                let width = match id {
                    NormId::Query if whole => self.query_size(),
                    NormId::Key if whole => self.kv_size(),
                    NormId::Query | NormId::Key => self.head_size,
                    _ => c,
                };
                (format!("model.layers.{l}.{}.weight", id.path(self)), vec![width])
            }
        };
        Leaf { place, name, dims, whole: self.whole(place), stack: self.stack(place) }
    }

    /// The matrix that a checkpoint keeps a linear's in.
    fn whole(&self, place: Place) -> Option<Whole> {
        let Place::Weight(l, id) = place else { return None };
        let fused = self.fused(id)?;
        Some(Whole {
            name: format!("model.layers.{l}.{}.weight", fused.path),
            gguf: format!("blk.{l}.{}.weight", fused.gguf),
            rows: self.module_dims(l, id).0,
            first: self.module_rows(l, id).start,
        })
    }

    /// The tensor that a GGUF file keeps an expert's linear in.
    fn stack(&self, place: Place) -> Option<Stack> {
        let Place::Weight(unit, id) = place else { return None };
        let (l, Some(index)) = self.owner(unit) else { return None };
        let gguf = format!("blk.{l}.{}_exps.weight", id.gguf());
        Some(Stack { gguf, count: self.experts?.count, index })
    }

    /// Parameters of the whole model.
    pub fn parameters(&self) -> usize {
        self.leaves().iter().map(|leaf| leaf.dims.iter().product::<usize>()).sum()
    }
}

/// A linear's own tensors: y = x weightᵀ + bias.
#[derive(Debug)]
pub struct LinearTree<M, T = M> {
    /// (out, in)
    pub weight: M,
    /// (out), F32
    pub bias: Option<T>,
}

/// The linears of a unit; `None` where it has none.
pub type Linears<M, T = M> = PerLinear<Option<LinearTree<M, T>>>;

/// A layer's tensors.
#[derive(Debug)]
pub struct LayerTree<M, T = M> {
    /// Its linears.
    pub linears: Linears<M, T>,
    /// Its norms' gains, F32; `None` where the family has none.
    pub norms: PerNorm<Option<T>>,
}

/// Something for each tensor of a decoder: its weights, or their gradients. M for matrices, T for vectors.
#[derive(Debug)]
pub struct Tree<M, T = M> {
    /// (V, C)
    pub embed_tokens: M,
    /// By layer.
    pub layers: Vec<LayerTree<M, T>>,
    /// The experts' linears, by their units from the first expert's on.
    pub experts: Vec<Linears<M, T>>,
    /// (C), F32
    pub norm: T,
    /// (V, C); `None` where the head is the embedding.
    pub lm_head: Option<M>,
}

/// What stands at a place.
#[derive(Clone, Copy, Debug)]
pub enum LeafPart<M, T> {
    /// Where [`Place::is_matrix`].
    Matrix(M),
    /// Elsewhere.
    Vector(T),
}

impl<M, T> LayerTree<M, T> {
    /// A linear that the block needs.
    pub fn linear(&self, id: LinearId) -> Result<&LinearTree<M, T>> {
        linear_of(&self.linears, id)
    }
    /// The gain of a norm that the block needs.
    pub fn norm(&self, id: NormId) -> Result<&T> {
        self.norms[id].as_ref().with_context(|| format!("this model has no {}", id.gguf()))
    }
}

/// A linear that the block needs.
pub fn linear_of<M, T>(linears: &Linears<M, T>, id: LinearId) -> Result<&LinearTree<M, T>> {
    linears[id].as_ref().with_context(|| format!("this part of the model has no {}", id.module()))
}

impl<M, T> Tree<M, T> {
    /// `make` of every leaf, in the order of [`Spec::leaves`]; an error where it makes a vector of a matrix or the other way round.
    pub fn build(spec: &Spec, make: &mut dyn FnMut(&Leaf) -> Result<LeafPart<M, T>>) -> Result<Tree<M, T>> {
        let (mut matrices, mut vectors) = (HashMap::new(), HashMap::new());
        for leaf in spec.leaves() {
            match make(&leaf)? {
                LeafPart::Matrix(m) => drop(matrices.insert(leaf.place, m)),
                LeafPart::Vector(v) => drop(vectors.insert(leaf.place, v)),
            }
        }
        let nothing = |place: Place| move || format!("nothing was made for {place:?}");
        let mut matrix = |place| matrices.remove(&place).with_context(nothing(place));
        let embed_tokens = matrix(Place::Embedding)?;
        let norm = vectors.remove(&Place::FinalNorm).with_context(nothing(Place::FinalNorm))?;
        let mut units = vec![];
        for unit in 0..spec.units() {
            units.push(PerLinear::try_from_fn(|id| {
                if !spec.has_linear(unit, id) {
                    return Ok(None);
                }
                let weight = matrix(Place::Weight(unit, id))?;
                anyhow::Ok(Some(LinearTree { weight, bias: vectors.remove(&Place::Bias(unit, id)) }))
            })?);
        }
        let experts = units.split_off(spec.layers.len());
        let mut layers = vec![];
        for (l, linears) in units.into_iter().enumerate() {
            let norms = PerNorm::from_fn(|id| vectors.remove(&Place::Norm(l, id)));
            layers.push(LayerTree { linears, norms });
        }
        let lm_head = if spec.tied_head { None } else { Some(matrix(Place::Head)?) };
        Ok(Tree { embed_tokens, layers, experts, norm, lm_head })
    }

    /// The linears of a unit, if there is such a unit.
    pub fn unit(&self, unit: usize) -> Option<&Linears<M, T>> {
        let expert = unit.checked_sub(self.layers.len());
        expert.map_or_else(|| Some(&self.layers.get(unit)?.linears), |e| self.experts.get(e))
    }

    /// The same, to be changed.
    pub fn unit_mut(&mut self, unit: usize) -> Option<&mut Linears<M, T>> {
        match unit.checked_sub(self.layers.len()) {
            Some(expert) => self.experts.get_mut(expert),
            None => Some(&mut self.layers.get_mut(unit)?.linears),
        }
    }

    /// What stands at `place`, if there is such a place.
    pub fn get(&self, place: Place) -> Option<LeafPart<&M, &T>> {
        match place {
            Place::Embedding => Some(LeafPart::Matrix(&self.embed_tokens)),
            Place::FinalNorm => Some(LeafPart::Vector(&self.norm)),
            Place::Head => self.lm_head.as_ref().map(LeafPart::Matrix),
            Place::Weight(u, id) => Some(LeafPart::Matrix(&self.unit(u)?[id].as_ref()?.weight)),
            Place::Bias(u, id) => self.unit(u)?[id].as_ref()?.bias.as_ref().map(LeafPart::Vector),
            Place::Norm(l, id) => self.layers.get(l)?.norms[id].as_ref().map(LeafPart::Vector),
        }
    }

    /// Every leaf with what stands there, in the order of [`Spec::leaves`].
    pub fn leaves(&self, spec: &Spec) -> Vec<(Leaf, LeafPart<&M, &T>)> {
        let with = |leaf: Leaf| self.get(leaf.place).map(|t| (leaf, t));
        spec.leaves().into_iter().filter_map(with).collect()
    }

    /// The head: the embedding where they are tied.
    pub fn head(&self) -> &M {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}

impl<T> LeafPart<T, T> {
    /// A leaf's `x` as what stands there.
    pub fn of(leaf: &Leaf, x: T) -> LeafPart<T, T> {
        if leaf.place.is_matrix() { LeafPart::Matrix(x) } else { LeafPart::Vector(x) }
    }
    /// Whichever it is.
    pub fn either(self) -> T {
        match self {
            LeafPart::Matrix(x) | LeafPart::Vector(x) => x,
        }
    }
}
