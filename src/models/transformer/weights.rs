//! A decoder: its configuration, its arithmetic and its weights.
use std::path::Path;

use crate::error::{Error, Kind};
use anyhow::{Context, Result, ensure};

use super::{
    super::weights::{WeightSource, check_memory},
    config::Config,
    ids::LinearId,
    in_parts::in_layer,
    linear::Rows,
    spec::{EmbeddingScale, Spec},
    tree::{LayerTree, Leaf, LeafPart, LinearTree, Linears, Place, Tree},
    weight::{ComputeType, Weight},
};
use crate::{
    data::random::RowRandom,
    device::{Device, DeviceChoice},
    distributed::layers::Layers,
    ops::{
        activation::softcap,
        cross_entropy::Head,
        embedding::{embedding_scale, scaled_embedding_forward},
        gemm::{Layout, gemm},
        quantize::{Matrix, Scratch, int8},
    },
    pipeline::placement::Placement,
    tensor::{Activations, DType, Tensor},
};

/// A linear layer: y = x weightᵀ + bias.
pub type Linear = LinearTree<Weight, Tensor>;
/// The same of a tensor: a linear's gradients, and those of models that are not kept as blocks.
pub type DenseLinear = LinearTree<Tensor>;
/// The linears of a unit.
pub type UnitLinears = Linears<Weight, Tensor>;
/// The tensors of one decoder layer.
pub type LayerWeights = LayerTree<Weight, Tensor>;
/// All weights. Norms and biases are F32; matrices F32, Bf16 or blocks.
pub type Weights = Tree<Weight, Tensor>;

/// A model: configuration and weights.
#[derive(Debug)]
pub struct Transformer {
    /// `config.json`.
    pub config: Config,
    /// What it computes.
    pub spec: Spec,
    /// The type that it computes in.
    pub compute: ComputeType,
    /// The tensors.
    pub weights: Weights,
    /// Where the layers' matrices come from, if this is one of several ranks that have a part of each.
    pub(super) layers: Option<Layers>,
}

impl Transformer {
    /// A model of `make`'s tensors, called once for each leaf in the order of [`Spec::leaves`]. It computes in the type of its embedding.
    pub fn build(config: Config, make: &mut dyn FnMut(&Leaf) -> Result<Tensor>) -> Result<Transformer> {
        let spec = config.spec()?;
        let weights: Weights = Tree::build(&spec, &mut |leaf| {
            let t = make(leaf)?;
            Ok(if leaf.place.is_matrix() { LeafPart::Matrix(t.into()) } else { LeafPart::Vector(t) })
        })?;
        let compute = weights.embed_tokens.dtype().try_into()?;
        Ok(Transformer { config, spec, compute, weights, layers: None })
    }

    /// Loads a Hugging Face directory or a `.gguf` file; matrices as `dtype`, in place in the mapped file where possible. A tensor that the
    /// model has no place for is an error.
    pub fn load(path: &Path, dtype: DType) -> Result<Transformer> {
        Transformer::load_as(path, dtype.try_into()?, None)
    }

    /// The same for a run that computes in `compute`. With `blocks` the matrices of a `.gguf` file stay as they lie in the mapped file and are unpacked by
    /// the products that read them: with activations in f32 the same bits in less memory, and slower.
    pub fn load_as(path: &Path, compute: ComputeType, blocks: Option<Activations>) -> Result<Transformer> {
        let (config, source) = WeightSource::open(path)?;
        let spec = config.spec()?;
        let in_place = blocks.is_some() && matches!(source, WeightSource::Gguf(_));
        if !in_place {
            let bytes = spec.parameters() * compute.dtype().bytes();
            check_memory(&format!("model {}", path.display()), bytes)?;
        }
        let context = || format!("load model {}", path.display());
        source.check_leaves(&spec).with_context(context)?;
        let load = &mut |leaf: &Leaf| -> Result<LeafPart<Weight, Tensor>> {
            Ok(match leaf.place.is_matrix() {
                true => LeafPart::Matrix(source.weight(leaf, compute, blocks)?),
                false => LeafPart::Vector(source.leaf(leaf, DType::F32)?),
            })
        };
        let weights = Tree::build(&spec, load).with_context(context)?;
        Ok(Transformer { config, spec, compute, weights, layers: None })
    }

    /// Freshly initialised in F32: matrices normal with standard deviation 0.02 (by a sum of twelve uniforms), norms scale by 1, biases 0.
    pub fn random(config: Config, seed: u64) -> Result<Transformer> {
        let spec = config.spec()?;
        check_memory("the model", spec.parameters() * 4)?;
        let std = config.number("initializer_range")?.unwrap_or(0.02);
        Transformer::build(config, &mut |leaf| {
            let mut t = Tensor::zeros(&leaf.name, DType::F32, &leaf.dims)?;
            let values = t.f32_mut()?;
            match leaf.place {
                Place::Bias(..) => {}
                Place::Norm(..) | Place::FinalNorm => values.fill(1.0 - spec.norm.gain_offset),
                Place::Embedding | Place::Weight(..) | Place::Head => {
                    let mut random = RowRandom::new(seed, "init", &leaf.name);
                    for x in values {
                        let sum: f64 = (0..12).map(|_| random.uniform()).sum();
                        *x = ((sum - 6.0) * std) as f32;
                    }
                }
            }
            Ok(t)
        })
    }

    /// Copies every tensor into writable F32 memory, so that all of them can be trained.
    pub fn make_trainable(&mut self) -> Result<()> {
        check_memory("a trainable copy of the model", self.spec.parameters() * 4)?;
        *self = Transformer::build(self.config.clone(), &mut |leaf| {
            let part = self.weights.get(leaf.place);
            let values = match part.with_context(|| format!("the model has no {}", leaf.name))? {
                LeafPart::Matrix(w) => w.to_f32_vec()?,
                LeafPart::Vector(t) => t.to_f32_vec()?,
            };
            Tensor::from_f32(&leaf.name, &leaf.dims, &values)
        })?;
        Ok(())
    }

    /// A copy on `device`, every tensor with its dtype, blocks as blocks; tied ones stay tied.
    pub fn to_device(&self, device: &Device) -> Result<Transformer> {
        let matrices = self.matrices();
        let scratch = Weight::scratch(matrices.iter().copied(), device, self.compute);
        let copy = |scratch: &Scratch| {
            Tree::build(&self.spec, &mut |leaf| {
                let part = self.weights.get(leaf.place);
                Ok(match part.with_context(|| format!("the model has no {}", leaf.name))? {
                    LeafPart::Matrix(w) => LeafPart::Matrix(w.to_device(device, scratch)?),
                    LeafPart::Vector(t) => LeafPart::Vector(t.to_device(device)?),
                })
            })
        };
        let weights = scratch.and_then(|scratch| copy(&scratch));
        let weights = weights.with_context(|| format!("copy the model to {device:?}"))?;
        let (config, spec) = (self.config.clone(), self.spec.clone());
        Ok(Transformer { config, spec, compute: self.compute, weights, layers: None })
    }

    fn matrices(&self) -> Vec<&Weight> {
        let leaves = self.weights.leaves(&self.spec).into_iter();
        leaves.filter_map(|(_, part)| if let LeafPart::Matrix(w) = part { Some(w) } else { None }).collect()
    }

    /// The model on the chosen device; on the CPU itself.
    pub fn place(self, device: DeviceChoice) -> Result<Transformer> {
        if device == DeviceChoice::Cpu { Ok(self) } else { self.to_device(&device.open()?) }
    }

    /// Loads a model as a run places it, into main memory: what no kernel of its device serves is refused before anything is read, and so are blocks
    /// to be kept where there are none.
    pub fn load_for(path: &Path, placement: Placement) -> Result<Transformer> {
        Transformer::check_blocks(path, placement)?;
        Transformer::check_for(path, placement.device)?;
        Transformer::load_as(path, placement.dtype.try_into()?, placement.blocks())
    }

    /// Refuses, by the header alone, blocks to be kept where there are none, and activations in int8 where a matrix has no product with such.
    pub fn check_blocks(path: &Path, placement: Placement) -> Result<()> {
        placement.check_activations()?;
        if !placement.keeps_blocks() {
            return Ok(());
        }
        let (config, source) = WeightSource::open(path)?;
        let source = match source {
            WeightSource::Gguf(source) => source,
            WeightSource::Safetensors(source) => {
                let leaves = config.spec()?.leaves();
                let kept = source.check_kept(leaves.iter().filter(|leaf| leaf.place.is_matrix()));
                let kept = kept.with_context(|| format!("model {}: --base-dtype stored", path.display()));
                kept.or_kind(|message| Error::setting("base-dtype", message))?;
                let none = format!("model {}: {}", path.display(), int8::only());
                ensure!(placement.activations == Activations::F32, Error::setting("activations", none));
                return Ok(());
            }
        };
        if placement.activations == Activations::Int8 {
            let leaves = config.spec()?.leaves();
            leaves
                .iter()
                .filter(|leaf| leaf.place.is_matrix())
                .try_for_each(|leaf| source.check_int8(leaf))?;
        }
        Ok(())
    }

    /// Matrices whose products read activations in int8.
    pub(super) fn in_integers(&self) -> usize {
        let int8 =
            |w: &&Weight| matches!(w, Weight::Blocks(b) if b.format().activations == Activations::Int8);
        self.matrices().into_iter().filter(int8).count()
    }

    /// Refuses a model that `device` has no kernels for; reads its configuration alone.
    ///
    /// # Errors
    /// A device that is not there; a model that no kernel there serves, by name.
    pub fn check_for(path: &Path, device: DeviceChoice) -> Result<()> {
        if device == DeviceChoice::Cpu {
            return Ok(());
        }
        let (config, _) = WeightSource::open(path)?;
        let arch = device.open()?.gpu().map(|gpu| gpu.arch());
        let checked = config.spec()?.check_kernels(arch).with_context(|| format!("model {}", path.display()));
        checked.or_kind(|message| Error::unsupported(&config.model_type, message))
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.weights.embed_tokens.device()
    }

    /// The type of activations: F32 on the CPU, the run's on a GPU.
    pub fn activation_dtype(&self) -> DType {
        self.compute.activations(&self.device())
    }

    /// Bytes of the weights as they are kept here (tied ones once).
    pub fn bytes(&self) -> usize {
        let Some(layers) = &self.layers else { return self.named().iter().map(|(_, w)| w.bytes()).sum() };
        let whole = self.parts().into_iter().filter(|(leaf, _)| !in_layer(leaf));
        layers.bytes() + whole.map(|(_, w)| w.bytes()).sum::<usize>()
    }

    /// Every tensor once, by its Hugging Face name; a tied head is not listed.
    pub fn named(&self) -> Vec<(String, Matrix<'_>)> {
        self.parts().into_iter().map(|(leaf, part)| (leaf.name, part)).collect()
    }

    /// Every leaf with its tensor.
    pub fn parts(&self) -> Vec<(Leaf, Matrix<'_>)> {
        let shown = |part| match part {
            LeafPart::Matrix(w) => Matrix::from(w),
            LeafPart::Vector(t) => Matrix::Dense(t),
        };
        self.weights.leaves(&self.spec).into_iter().map(|(leaf, part)| (leaf, shown(part))).collect()
    }

    /// Every leaf's tensor; an error that names the first matrix in blocks, for `what` needs tensors.
    pub(super) fn tensors(&self, what: &str) -> Result<Vec<(Leaf, &Tensor)>> {
        let leaves = self.weights.leaves(&self.spec).into_iter();
        leaves
            .map(|(leaf, part)| match part {
                LeafPart::Matrix(w) => w.dense(what).map(|t| (leaf, t)),
                LeafPart::Vector(t) => Ok((leaf, t)),
            })
            .collect()
    }

    /// Every linear: its unit, which it is, and its tensors.
    pub fn linears(&self) -> impl Iterator<Item = (usize, LinearId, &Linear)> {
        let of_layers = self.weights.layers.iter().map(|layer| &layer.linears);
        let units = of_layers.chain(&self.weights.experts).enumerate();
        units
            .flat_map(|(u, unit)| unit.iter().filter_map(move |(id, linear)| Some((u, id, linear.as_ref()?))))
    }

    /// What turns hidden states into logits.
    pub fn head(&self) -> Head<'_> {
        let Spec { final_softcap, logit_scale, .. } = self.spec;
        Head { weight: self.weights.head().into(), scale: logit_scale, softcap: final_softcap }
    }

    /// By what embeddings are multiplied, rounded as transformers does it to the weights' type.
    pub(super) fn embedding_scale(&self) -> f32 {
        match self.spec.embedding_scale {
            EmbeddingScale::By(scale) => scale,
            EmbeddingScale::RootOfWidth => {
                embedding_scale(self.spec.hidden_size, self.weights.embed_tokens.dtype())
            }
        }
    }

    /// out (N, C) = the embeddings of `tokens` (N).
    pub(super) fn embed(&self, out: &mut Tensor, tokens: &Tensor) -> Result<()> {
        scaled_embedding_forward(out, tokens, &self.weights.embed_tokens, self.embedding_scale())
    }

    /// logits (N, V), F32, of the last norm's output (N, C).
    pub fn logits(&self, logits: &mut Tensor, hidden: &Tensor, rows: Rows) -> Result<()> {
        let head = self.head();
        match rows {
            Rows::Many => head.product(logits, hidden)?,
            Rows::Any => gemm(logits, hidden, head.weight, Layout::NT, head.scale, false)?,
        }
        head.softcap.map_or(Ok(()), |cap| softcap(logits, cap))
    }
}
