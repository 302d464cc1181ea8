//! PEFT's adapter directories: adapter_config.json and adapter_model.safetensors.
use std::path::Path;

use crate::data::files::FileContext;
use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde_json::{Value, json};

use super::{export::write_safetensors, safetensors::Checkpoint};
use crate::{
    data::files::write_atomic,
    models::{
        transformer::ids::{LinearId, PerLinear},
        transformer::lora::{Adapter, Lora, LoraConfig},
        transformer::spec::Spec,
        transformer::weights::Transformer,
    },
    tensor::{DType, Tensor},
};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

impl Lora {
    /// Writes the adapter as PEFT does; `base` is the name or path of the model that it belongs to.
    pub fn save(&self, dir: &Path, base: &str) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let mut tensors: Vec<(String, Tensor)> = vec![];
        for (l, id, adapter) in self.adapters() {
            let name = |part: &str| format!("base_model.model.{}.{part}", Spec::linear_path(l, id));
            tensors.push((name("lora_A.weight"), adapter.a.alias()));
            tensors.push((name("lora_B.weight"), adapter.b.alias()));
            if let Some(m) = &adapter.magnitude {
                tensors.push((name("lora_magnitude_vector"), m.alias()));
            }
        }
        write_safetensors(&dir.join(WEIGHTS), &tensors.iter().collect::<Vec<_>>(), DType::F32)?;
        let config = self.config_json(base);
        write_atomic(&dir.join(CONFIG), format!("{config:#}\n").as_bytes())
    }

    fn config_json(&self, base: &str) -> Value {
        let c = &self.config;
        json!({
            "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": base, "bias": "none",
            "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
            "layer_replication": null, "layers_pattern": null, "layers_to_transform": null, "loftq_config": {},
            "lora_alpha": whole(c.alpha), "lora_bias": false, "lora_dropout": 0.0, "megatron_config": null,
            "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA", "r": c.r,
            "rank_pattern": {}, "revision": null, "target_modules": c.target_modules, "task_type": "CAUSAL_LM",
            "trainable_token_indices": null, "use_dora": c.use_dora, "use_rslora": c.use_rslora
        })
    }

    /// Reads an adapter for `model`; rank and alpha may differ by module (rank_pattern, alpha_pattern).
    pub fn load(dir: &Path, model: &Transformer) -> Result<Lora> {
        let path = dir.join(CONFIG);
        let text = crate::data::json::read_text(&path).at(&path, || {
            format!("read {}: an adapter is a directory that PEFT or `sdrrl train` wrote", path.display())
        })?;
        let json: Value =
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
        let kind = json["peft_type"].as_str().unwrap_or("absent");
        ensure!(kind == "LORA", "{}: peft_type is {kind}; only LORA adapters can be read", path.display());
        for unsupported in ["lora_bias", "fan_in_fan_out"] {
            ensure!(json[unsupported] != json!(true), "{}: {unsupported} is not supported", path.display());
        }
        let targets =
            Targets::parse(&json["target_modules"]).with_context(|| format!("{}", path.display()))?;
        let config = LoraConfig {
            r: json["r"].as_u64().unwrap_or(8) as usize,
            alpha: json["lora_alpha"].as_f64().unwrap_or(8.0),
            target_modules: targets.modules(),
            use_rslora: json["use_rslora"].as_bool().unwrap_or(false),
            use_dora: json["use_dora"].as_bool().unwrap_or(false),
        };
        let file = Checkpoint::open_file(&dir.join(WEIGHTS))?;
        let mut layers = vec![];
        let mut read = 0;
        for l in 0..model.spec.layers.len() {
            layers.push(PerLinear::try_from_fn(|id| -> Result<Option<Adapter>> {
                let module = Spec::linear_path(l, id);
                if !targets.hit(&module) {
                    return Ok(None);
                }
                let adapter = read_adapter(&file, &module, model.spec.linear_dims(id), &config, &json)
                    .with_context(|| format!("adapter {}", dir.display()))?;
                read += 2 + adapter.magnitude.is_some() as usize;
                Ok(Some(adapter))
            })?);
        }
        let unread = file.names().len() - read.min(file.names().len());
        ensure!(
            unread == 0,
            "adapter {}: {unread} of its {} tensors belong to no adapted linear of this model (first names: {:?})",
            dir.display(),
            file.names().len(),
            &file.names()[..file.names().len().min(3)]
        );
        Ok(Lora { config, layers })
    }
}

fn read_adapter(
    file: &Checkpoint,
    module: &str,
    (out, inp): (usize, usize),
    config: &LoraConfig,
    json: &Value,
) -> Result<Adapter> {
    let pattern = |key: &str| {
        let map = json[key].as_object()?;
        map.iter()
            .find(|(k, _)| module == k.as_str() || module.ends_with(&format!(".{k}")))
            .and_then(|(_, v)| v.as_f64())
    };
    let r = pattern("rank_pattern").map_or(config.r, |x| x as usize);
    let alpha = pattern("alpha_pattern").unwrap_or(config.alpha);
    let name = |part: &str| format!("base_model.model.{module}.{part}");
    let own = |t: Tensor| Tensor::from_f32(t.name(), t.shape(), t.f32()?);
    let magnitude = match config.use_dora {
        true => Some(own(file.tensor(&name("lora_magnitude_vector"), &[out], DType::F32)?)?),
        false => None,
    };
    Ok(Adapter {
        a: own(file.tensor(&name("lora_A.weight"), &[r, inp], DType::F32)?)?,
        b: own(file.tensor(&name("lora_B.weight"), &[out, r], DType::F32)?)?,
        magnitude,
        scale: config.scale(r, alpha),
        norms: None,
    })
}

/// 16, not 16.0, as PEFT writes it.
fn whole(x: f64) -> Value {
    if x.fract() == 0.0 { json!(x as i64) } else { json!(x) }
}

/// PEFT's three ways to say what is adapted.
enum Targets {
    All,
    Suffixes(Vec<String>),
    Pattern(Regex),
}

impl Targets {
    fn parse(value: &Value) -> Result<Targets> {
        Ok(match value {
            Value::String(s) if s == "all-linear" => Targets::All,
            Value::String(s) => Targets::Pattern(
                Regex::new(&format!("^(?:{s})$")).with_context(|| format!("target_modules {s}"))?,
            ),
            Value::Array(list) => {
                Targets::Suffixes(list.iter().filter_map(|v| v.as_str().map(String::from)).collect())
            }
            other => bail!("target_modules is {other}; a list, a pattern or \"all-linear\" was expected"),
        })
    }

    fn hit(&self, module: &str) -> bool {
        match self {
            Targets::All => true,
            Targets::Suffixes(list) => list.iter().any(|t| module == t || module.ends_with(&format!(".{t}"))),
            Targets::Pattern(regex) => regex.is_match(module),
        }
    }

    /// The plain module names that are hit.
    fn modules(&self) -> Vec<String> {
        match self {
            Targets::Suffixes(list) => list.clone(),
            _ => {
                let hit = LinearId::ALL.iter().filter(|&&id| self.hit(&Spec::linear_path(0, id)));
                hit.map(|id| id.module().to_string()).collect()
            }
        }
    }
}
