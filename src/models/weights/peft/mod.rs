//! PEFT's adapter directories: adapter_config.json and adapter_model.safetensors (or .bin).
mod config;
mod replaced;
mod tensors;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use self::tensors::Tensors;
use super::export::write_safetensors;
use crate::{
    data::files::{FileContext, write_atomic},
    models::{
        transformer::ids::{LinearId, PerLinear},
        transformer::lora::{Adapter, Lora, LoraConfig, Modules, check_adaptable},
        transformer::spec::Spec,
        transformer::weights::Transformer,
    },
    tensor::{DType, Tensor},
};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

impl Lora {
    /// Writes the adapter as PEFT does. `base` is the hub name or the absolute path of the model that it belongs to, `revision` that of a hub name.
    /// What was read with it and changes no arithmetic is written again as it was.
    pub fn save(&self, dir: &Path, base: &str, revision: Option<&str>) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let mut tensors: Vec<(String, Tensor)> = vec![];
        for (_, _, adapter) in self.adapters() {
            // They are called `MODULE.lora_A` and so on.
            let name = |t: &Tensor| format!("base_model.model.{}", t.name());
            tensors.push((format!("{}.weight", name(&adapter.a)), adapter.a.alias()));
            tensors.push((format!("{}.weight", name(&adapter.b)), adapter.b.alias()));
            if let Some(m) = &adapter.magnitude {
                tensors.push((name(m), m.alias()));
            }
        }
        tensors.extend(self.kept.iter().map(|(name, t)| (name.clone(), t.alias())));
        write_safetensors(&dir.join(WEIGHTS), &tensors.iter().collect::<Vec<_>>(), DType::F32)?;
        let mut config = match &self.source {
            Some(fields) => Value::Object(fields.clone()),
            None => config_json(&self.config),
        };
        config["base_model_name_or_path"] = json!(base);
        config["revision"] = json!(revision);
        config["inference_mode"] = json!(true);
        write_atomic(&dir.join(CONFIG), format!("{config:#}\n").as_bytes())
    }

    /// Reads an adapter for `model`: every field of its configuration and every tensor is used, changes nothing, or is an error that names it.
    pub fn load(dir: &Path, model: &Transformer) -> Result<Lora> {
        read(dir, model).with_context(|| format!("adapter {}", dir.display()))
    }

    /// What is left out when this adapter is trained on: fields of its configuration that concern training and have no counterpart here.
    pub fn untrained_settings(&self) -> Vec<String> {
        let Some(fields) = &self.source else { return vec![] };
        let frozen = fields.get("init_lora_weights").filter(|v| v.as_str() == Some("mica"));
        let mut named: Vec<String> = frozen.map(|v| format!("init_lora_weights {v}")).into_iter().collect();
        if !self.replaced.is_empty() {
            named.push("what the adapter has beside the low-rank updates of the layers".into());
        }
        named
    }
}

/// Reads an adapter's configuration and the list of its tensors, without a model to hold them against.
///
/// # Errors
/// A field that is not understood, a file that is missing or damaged.
pub fn check_adapter(dir: &Path) -> Result<()> {
    let read = || -> Result<()> {
        config::read(dir)?;
        Tensors::open(dir).map(drop)
    };
    read().with_context(|| format!("adapter {}", dir.display()))
}

fn read(dir: &Path, model: &Transformer) -> Result<Lora> {
    let (config, fields) = config::read(dir)?;
    let (config, spec) = (config.meant_for(&model.spec), &model.spec);
    config::check_with_model(&config, &fields).with_context(|| CONFIG)?;
    let mut tensors = Tensors::open(dir)?;
    let layers = low_rank(&config, &mut tensors, &model.spec)?;
    let (replaced, kept) = replaced::read(&config, &fields, &mut tensors, &layers, model)?;
    tensors.finish()?;
    let lora = Lora { source: Some(fields), replaced, kept, ..Lora::of(spec, config, layers)? };
    let any = lora.adapters().next().is_some() || !lora.replaced.is_empty();
    ensure!(any, "{CONFIG}: {NO_LINEAR}");
    Ok(lora)
}

const NO_LINEAR: &str = "target_modules, exclude_modules and layers leave no linear of this model";

/// Reads an adapter that is low-rank updates of a decoder's linears and nothing else; the model's weights are not needed.
///
/// # Errors
/// One with whole modules, biases, rows or an adapted embedding.
pub(super) fn load_low_rank(dir: &Path, spec: &Spec) -> Result<Lora> {
    let read = || -> Result<Lora> {
        let (config, fields) = config::read(dir)?;
        let config = config.meant_for(spec);
        config::check_with_model(&config, &fields).with_context(|| CONFIG)?;
        let mut tensors = Tensors::open(dir)?;
        let layers = low_rank(&config, &mut tensors, spec)?;
        tensors.finish().context("it is more than low-rank updates of the layers' linears, or of another model: where it belongs to this one, `sdrrl merge` it and use the merged model")?;
        let lora = Lora { source: Some(fields), ..Lora::of(spec, config, layers)? };
        ensure!(lora.adapters().next().is_some(), "{CONFIG}: {NO_LINEAR}");
        Ok(lora)
    };
    read().with_context(|| format!("adapter {}", dir.display()))
}

/// The low-rank updates, by unit and linear.
fn low_rank(
    config: &LoraConfig,
    tensors: &mut Tensors,
    spec: &Spec,
) -> Result<Vec<PerLinear<Option<Adapter>>>> {
    let selection = config.selection()?;
    let mut one = |unit: usize, id: LinearId| -> Result<Option<Adapter>> {
        if !spec.is_first(id) || !spec.has_linear(unit, id) {
            return Ok(None);
        }
        let module = spec.module_path(unit, id);
        if !selection.has(&module)? {
            return Ok(None);
        }
        check_adaptable(id, &module)?;
        let ((r, alpha), (out, inp)) = (selection.rank_alpha(&module)?, spec.module_dims(unit, id));
        let magnitude = config.use_dora.then_some("lora_magnitude_vector");
        Ok(Some(Adapter {
            a: tensors.take(&module, "lora_A", &[r, inp])?,
            b: tensors.take(&module, "lora_B", &[out, r])?,
            magnitude: magnitude.map(|part| tensors.take(&module, part, &[out])).transpose()?,
            scale: config.scale(r, alpha),
            norms: None,
            narrow: None,
        }))
    };
    (0..spec.units()).map(|unit| PerLinear::try_from_fn(|id| one(unit, id))).collect()
}

fn config_json(c: &LoraConfig) -> Value {
    let modules = |m: &Modules| match m {
        Modules::Named(names) => json!(names),
        Modules::Matching(pattern) => json!(pattern),
    };
    let unless_empty = |value: Value, empty: bool| if empty { Value::Null } else { value };
    let excluded = match &c.exclude_modules {
        Modules::Named(names) => names.is_empty(),
        Modules::Matching(pattern) => pattern.is_empty(),
    };
    let ranks: Map<String, Value> = c.rank_pattern.iter().map(|(p, r)| (p.clone(), json!(r))).collect();
    let alphas: Map<String, Value> = c.alpha_pattern.iter().map(|(p, a)| (p.clone(), number(*a))).collect();
    json!({
        "alpha_pattern": alphas, "auto_mapping": null, "base_model_name_or_path": null, "bias": "none",
        "exclude_modules": unless_empty(modules(&c.exclude_modules), excluded), "fan_in_fan_out": false,
        "inference_mode": true, "init_lora_weights": true, "layer_replication": null,
        "layers_pattern": unless_empty(json!(c.layers_pattern), c.layers_pattern.is_empty()),
        "layers_to_transform": c.layers_to_transform, "loftq_config": {},
        "lora_alpha": number(c.alpha), "lora_bias": false, "lora_dropout": c.dropout, "megatron_config": null,
        "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA", "r": c.r,
        "rank_pattern": ranks, "revision": null, "target_modules": modules(&c.target_modules), "task_type": "CAUSAL_LM",
        "trainable_token_indices": null, "use_dora": c.use_dora, "use_rslora": c.use_rslora
    })
}

fn read_json(path: &Path) -> Result<Value> {
    let text = crate::data::json::read_text(path).at(path, || {
        let below = below(path.parent().unwrap_or(path));
        let below = if below.is_empty() {
            String::new()
        } else {
            format!("; this one holds several, of which one must be named: {}", below.join(", "))
        };
        format!("read {}: an adapter is a directory that PEFT or `sdrrl train` wrote{below}", path.display())
    })?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

/// The adapters in subfolders, where PEFT puts those that have a name.
fn below(dir: &Path) -> Vec<String> {
    let folders = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let mut found: Vec<String> =
        folders.filter(|p| p.join(CONFIG).is_file()).map(|p| p.display().to_string()).collect();
    found.sort();
    found
}

/// 16, not 16.0, as PEFT writes it.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}
