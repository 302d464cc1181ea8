//! Low-rank adapters (LoRA, Hu et al. 2021; rsLoRA, Kalajdzievski 2023; DoRA, Liu et al. 2024) in PEFT's conventions.
use std::ops::Range;

use crate::error::Error;
use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

pub use super::lora_config::{LoraConfig, Modules, Selection, all_linears};
use super::{
    ids::{LinearId, PerLinear},
    spec::Spec,
    tree::Place,
    weights::{Linear, Transformer},
};
pub(crate) use super::{lora_config::is_called, merge::merge};
use crate::{
    data::random::RowRandom,
    device::Device,
    ops::{dora::dora_norms, lora::LowRank},
    tensor::{Arena, DType, Tensor},
};

/// The adapter of one linear: weight + scale * B A, with DoRA each row rescaled to `magnitude`. All F32.
#[derive(Debug)]
pub struct Adapter {
    /// (R, in)
    pub a: Tensor,
    /// (out, R)
    pub b: Tensor,
    /// (out), DoRA only.
    pub magnitude: Option<Tensor>,
    /// alpha / r, or its rsLoRA form.
    pub scale: f32,
    /// (out), DoRA in training only: ‖W + s B A‖ by rows, as a training step last computed it.
    pub(crate) norms: Option<Tensor>,
    /// In training with bf16 products only: A and s B in bf16, as of the last change of the parameters.
    pub(crate) narrow: Option<[Tensor; 2]>,
}

impl Adapter {
    /// Handles on the part of it that gives these rows of the output.
    fn rows(&self, rows: Range<usize>) -> Result<Adapter> {
        let of = |t: &Option<Tensor>| t.as_ref().map(|t| t.rows(rows.clone())).transpose();
        let narrow = self.narrow.as_ref();
        Ok(Adapter {
            a: self.a.alias(),
            b: self.b.rows(rows.clone())?,
            magnitude: of(&self.magnitude)?,
            scale: self.scale,
            norms: of(&self.norms)?,
            narrow: narrow
                .map(|[a, b]| Ok::<_, anyhow::Error>([a.alias(), b.rows(rows.clone())?]))
                .transpose()?,
        })
    }

    /// The factors as the ops take them.
    pub fn low_rank(&self) -> LowRank<'_> {
        match &self.narrow {
            Some([a, b]) => LowRank { a, b, scale: self.scale, scaled: true },
            None => LowRank { a: &self.a, b: &self.b, scale: self.scale, scaled: false },
        }
    }
}

/// Adapters by unit ([`super::experts`]).
pub(crate) type Adapters = [PerLinear<Option<Adapter>>];

/// The adapters of a model: by unit and linear.
#[derive(Debug)]
pub struct Lora {
    /// Settings.
    pub config: LoraConfig,
    /// Of each module that is adapted, at its first linear ([`Spec::module_parts`]).
    pub layers: Vec<PerLinear<Option<Adapter>>>,
    /// Of each linear that is adapted: handles on the rows of `layers` that are its own. Linears of one module share A.
    pub(crate) parts: Vec<PerLinear<Option<Adapter>>>,
    /// The adapter_config.json that it was read from: written again as it was.
    pub(crate) source: Option<Map<String, Value>>,
    /// Tensors of the model that the adapter puts others in the place of.
    pub(crate) replaced: Vec<Replaced>,
    /// Its tensors that `replaced` was made of, by their names in the file: written again as they were.
    pub(crate) kept: Vec<(String, Tensor)>,
}

/// A tensor that stands in the place of one of the model's: a whole module that was trained, a bias, an embedding or a head with its adapter.
#[derive(Debug)]
pub(crate) struct Replaced {
    /// Whose.
    pub place: Place,
    /// Its values, F32, in main memory.
    pub values: Tensor,
}

impl Lora {
    /// Fresh adapters: A ~ U(-1/sqrt(in), 1/sqrt(in)) (Kaiming uniform, a = sqrt 5, as in PEFT), B = 0, magnitude = row norms.
    pub fn init(model: &Transformer, config: LoraConfig, seed: u64) -> Result<Lora> {
        ensure!(config.r > 0, Error::setting("train.lora-rank", "the LoRA rank must be at least 1"));
        let config = config.meant_for(&model.spec);
        check_targets(model, &config)?;
        let mut lora = Lora::lay_out(model, config)?;
        for (l, id, linear) in model.linears() {
            let Some(adapter) = &mut lora.parts[l][id] else { continue };
            if model.spec.is_first(id) {
                let bound = 1.0 / (adapter.a.shape()[1] as f64).sqrt();
                let mut random = RowRandom::new(seed, "lora_init", &model.spec.module_path(l, id));
                let a = adapter.a.f32_mut()?;
                a.iter_mut().for_each(|x| *x = ((random.uniform() * 2.0 - 1.0) * bound) as f32);
            }
            if adapter.magnitude.is_some() {
                let norms = row_norms(linear, adapter)?;
                if let Some(m) = &mut adapter.magnitude {
                    m.f32_mut()?.copy_from_slice(&norms);
                }
            }
        }
        Ok(lora)
    }

    /// Zeroed adapters in one allocation. Errors unless the configuration fits the model and adapts something.
    pub fn lay_out(model: &Transformer, config: LoraConfig) -> Result<Lora> {
        let config = config.meant_for(&model.spec);
        let ranks = Lora::ranks(&model.spec, &config)?;
        let (layers, _) = Arena::build("adapters", &Default::default(), |arena| {
            Lora::place(&model.spec, &config, &ranks, arena)
        })?;
        Lora::of(&model.spec, config, layers)
    }

    /// Shapes alone, without memory: for measuring what training would take.
    pub(super) fn shapes(spec: &Spec, config: LoraConfig) -> Result<Lora> {
        let config = config.meant_for(spec);
        let ranks = Lora::ranks(spec, &config)?;
        let mut layers = vec![];
        Arena::measure(|arena| layers = Lora::place(spec, &config, &ranks, arena));
        Lora::of(spec, config, layers)
    }

    /// Of adapters by module.
    pub(crate) fn of(
        spec: &Spec,
        config: LoraConfig,
        layers: Vec<PerLinear<Option<Adapter>>>,
    ) -> Result<Lora> {
        let mut lora = Lora { config, layers, parts: vec![], source: None, replaced: vec![], kept: vec![] };
        lora.split(spec)?;
        Ok(lora)
    }

    /// Makes `parts` of `layers`.
    pub(super) fn split(&mut self, spec: &Spec) -> Result<()> {
        let one = |unit: usize, adapters: &PerLinear<Option<Adapter>>, id: LinearId| {
            let whole = spec.module_parts(id).first().and_then(|&first| adapters[first].as_ref());
            whole.map(|whole| whole.rows(spec.module_rows(unit, id))).transpose()
        };
        let unit = |(unit, adapters)| PerLinear::try_from_fn(|id| one(unit, adapters, id));
        self.parts = self.layers.iter().enumerate().map(unit).collect::<Result<_>>()?;
        Ok(())
    }

    /// R and alpha of each linear that is adapted.
    fn ranks(spec: &Spec, config: &LoraConfig) -> Result<Vec<PerLinear<Option<(usize, f64)>>>> {
        let selection = config.selection()?;
        let one = |unit: usize, id: LinearId| -> Result<Option<(usize, f64)>> {
            if !spec.is_first(id) || !spec.has_linear(unit, id) {
                return Ok(None);
            }
            let module = spec.module_path(unit, id);
            if !selection.has(&module)? {
                return Ok(None);
            }
            check_adaptable(id, &module)?;
            selection.rank_alpha(&module).map(Some)
        };
        let ranks =
            (0..spec.units()).map(|l| PerLinear::try_from_fn(|id| one(l, id))).collect::<Result<Vec<_>>>()?;
        ensure!(
            ranks.iter().any(|layer| layer.iter().any(|(_, rank)| rank.is_some())),
            "target_modules, exclude_modules and layers_to_transform leave no linear of this model to be adapted"
        );
        Ok(ranks)
    }

    fn place(
        spec: &Spec,
        config: &LoraConfig,
        ranks: &[PerLinear<Option<(usize, f64)>>],
        arena: &mut Arena,
    ) -> Vec<PerLinear<Option<Adapter>>> {
        let mut one = |l: usize, id: LinearId, (r, alpha): (usize, f64)| {
            let (out, inp) = spec.module_dims(l, id);
            let name = |part: &str| format!("{}.{part}", spec.module_path(l, id));
            Adapter {
                a: arena.tensor(&name("lora_A"), DType::F32, &[r, inp]),
                b: arena.tensor(&name("lora_B"), DType::F32, &[out, r]),
                magnitude: config
                    .use_dora
                    .then(|| arena.tensor(&name("lora_magnitude_vector"), DType::F32, &[out])),
                scale: config.scale(r, alpha),
                norms: None,
                narrow: None,
            }
        };
        let layers = ranks.iter().enumerate();
        layers.map(|(l, layer)| PerLinear::from_fn(|id| layer[id].map(|rank| one(l, id, rank)))).collect()
    }

    /// A copy on `device`; `spec` is its model's.
    pub fn to_device(&self, spec: &Spec, device: &Device) -> Result<Lora> {
        let copy = |adapter: &Adapter| -> Result<Adapter> {
            Ok(Adapter {
                a: adapter.a.to_device(device)?,
                b: adapter.b.to_device(device)?,
                magnitude: adapter.magnitude.as_ref().map(|m| m.to_device(device)).transpose()?,
                scale: adapter.scale,
                norms: None,
                narrow: None,
            })
        };
        let layer = |layer: &PerLinear<Option<Adapter>>| {
            PerLinear::try_from_fn(|id| layer[id].as_ref().map(copy).transpose())
        };
        let layers = self.layers.iter().map(layer).collect::<Result<_>>()?;
        Ok(Lora {
            source: self.source.clone(),
            replaced: self
                .replaced
                .iter()
                .map(|r| Replaced { place: r.place, values: r.values.alias() })
                .collect(),
            kept: self.kept.iter().map(|(name, t)| (name.clone(), t.alias())).collect(),
            ..Lora::of(spec, self.config.clone(), layers)?
        })
    }

    /// Every adapter of a module, with its unit and first linear.
    pub fn adapters(&self) -> impl Iterator<Item = (usize, LinearId, &Adapter)> {
        listed(&self.layers)
    }

    /// Every linear's adapter, with its unit.
    pub fn part_adapters(&self) -> impl Iterator<Item = (usize, LinearId, &Adapter)> {
        listed(&self.parts)
    }

    /// The rank of the widest adapter of linear `id` among these units.
    pub(super) fn widest(&self, units: Range<usize>, id: LinearId) -> Option<usize> {
        let adapters = self.parts[units].iter().filter_map(|unit| unit[id].as_ref());
        adapters.map(|adapter| adapter.a.shape()[0]).max()
    }

    /// Whether training can drop what the settings say of the adapters' inputs.
    pub(super) fn check_dropout(&self, spec: &Spec) -> Result<()> {
        self.config.check_dropout()?;
        ensure!(
            self.config.dropout == 0.0 || !self.adapts_experts(spec),
            Error::setting(
                "train.lora-dropout",
                "dropout on the inputs of experts' adapters is not supported: train them without, or leave the experts out of train.lora-targets"
            )
        );
        Ok(())
    }

    /// Whether any expert has an adapter.
    pub fn adapts_experts(&self, spec: &Spec) -> bool {
        self.adapters().any(|(unit, _, _)| spec.is_expert(unit))
    }

    /// Trained parameters.
    pub fn parameters(&self) -> usize {
        let size = |a: &Adapter| a.a.len() + a.b.len() + a.magnitude.as_ref().map_or(0, |m| m.len());
        self.adapters().map(|(_, _, adapter)| size(adapter)).sum()
    }
}

/// A router has no adapter: what it chooses by is frozen.
pub(crate) fn check_adaptable(id: LinearId, module: &str) -> Result<()> {
    ensure!(
        id != LinearId::Router,
        Error::unsupported(
            module,
            format!("an adapter of {module}: routers are frozen, so leave it out of the targets")
        )
    );
    Ok(())
}

fn listed(layers: &[PerLinear<Option<Adapter>>]) -> impl Iterator<Item = (usize, LinearId, &Adapter)> {
    let layers = layers.iter().enumerate();
    layers.flat_map(|(l, layer)| layer.iter().filter_map(move |(id, a)| Some((l, id, a.as_ref()?))))
}

/// A name that is meant to be adapted is the name of a linear of the model.
fn check_targets(model: &Transformer, config: &LoraConfig) -> Result<()> {
    let Modules::Named(names) = &config.target_modules else { return Ok(()) };
    let paths: Vec<String> = model.linears().map(|(l, id, _)| model.spec.module_path(l, id)).collect();
    if let Some(name) = names.iter().find(|name| !paths.iter().any(|path| is_called(path, name))) {
        bail!(
            "LoRA target `{name}` is no module of this model; known are {}",
            model.spec.module_names().join(" ")
        );
    }
    Ok(())
}

/// ‖row o of W + scale B A‖ for each o, computed where the weights are; the adapter may still be in main memory.
pub fn row_norms(linear: &Linear, adapter: &Adapter) -> Result<Vec<f32>> {
    let device = linear.weight.device();
    let (a, b) = (adapter.a.to_device(&device)?, adapter.b.to_device(&device)?);
    let mut norms = Tensor::zeros_on(&device, "norms", DType::F32, &[linear.weight.rows_cols().0])?;
    let weight = linear.weight.to_dense(linear.weight.dtype())?;
    dora_norms(&mut norms, &weight, LowRank { a: &a, b: &b, scale: adapter.scale, scaled: false })?;
    norms.to_f32_vec()
}
