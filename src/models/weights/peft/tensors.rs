//! The tensors of an adapter by module, whatever their names are dressed in; what no module takes is refused by name.
use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    models::weights::safetensors::Checkpoint,
    tensor::{DType, Tensor},
};

const SAFETENSORS: &str = super::WEIGHTS;
const PICKLE: &str = "adapter_model.bin";

/// The parts of a module that stand in an adapter beside its low-rank updates.
pub(super) const WHOLE: &str = "weight";
pub(super) const BIAS: &str = "bias";
pub(super) const LORA_BIAS: &str = "lora_B.bias";
pub(super) const TOKENS: &str = "trainable_tokens_delta";

/// The tensors of one adapter.
pub(super) struct Tensors {
    file: Checkpoint,
    name: &'static str,
    /// By (module's path, part): what it is called in the file.
    places: BTreeMap<(String, String), String>,
}

/// A tensor's name taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    module: String,
    part: &'static str,
    /// `default` in `q_proj.lora_A.default.weight`; empty where the name has none, as PEFT writes it.
    adapter: &'a str,
}

impl Tensors {
    /// Opens adapter_model.safetensors or, where there is none, adapter_model.bin (nothing in it is executed).
    pub(super) fn open(dir: &Path) -> Result<Tensors> {
        let name = [SAFETENSORS, PICKLE].into_iter().find(|name| dir.join(name).exists());
        let Some(name) = name else {
            bail!("the adapter {} has neither {SAFETENSORS} nor {PICKLE}", dir.display());
        };
        let file = Checkpoint::open_file(&dir.join(name))?;
        let mut places = BTreeMap::new();
        let mut adapters: Vec<String> = vec![];
        for tensor in file.names() {
            let place = take_apart(tensor).with_context(|| format!("{name}: tensor {tensor}"))?;
            let of_all = matches!(place.part, WHOLE | BIAS) && place.adapter.is_empty();
            if !of_all && !adapters.iter().any(|a| a == place.adapter) {
                adapters.push(place.adapter.into());
            }
            let key = (place.module, place.part.to_string());
            if let Some(other) = places.insert(key, tensor.to_string()) {
                bail!("{name}: {other} and {tensor} are the same tensor of one module");
            }
        }
        ensure!(
            adapters.len() < 2,
            "{name} holds several adapters ({}): save one of them alone",
            adapters.iter().map(|a| format!("`{a}`")).collect::<Vec<_>>().join(", ")
        );
        Ok(Tensors { file, name, places })
    }

    /// Takes a tensor out of the list; F32, in memory of its own. NaN and infinity are an error.
    pub(super) fn take(&mut self, module: &str, part: &str, dims: &[usize]) -> Result<Tensor> {
        let Some(name) = self.places.remove(&(module.to_string(), part.to_string())) else {
            bail!(
                "{} has no {part} of {module}, which adapter_config.json says is adapted: does the adapter belong to this model?",
                self.name
            );
        };
        let t = self.file.tensor(&name, dims, DType::F32).with_context(|| {
            format!("{part} of {module} (rank and sizes come from adapter_config.json and the model)")
        })?;
        let values = t.to_f32_vec()?;
        ensure!(values.iter().all(|x| x.is_finite()), "{}: tensor {name} holds NaN or infinity", self.name);
        Tensor::from_f32(&format!("{module}.{part}"), dims, &values)
    }

    /// The same, where it is there.
    pub(super) fn take_if(&mut self, module: &str, part: &str, dims: &[usize]) -> Result<Option<Tensor>> {
        let there = self.places.contains_key(&(module.to_string(), part.to_string()));
        there.then(|| self.take(module, part, dims)).transpose()
    }

    /// Errors if a tensor was not taken.
    pub(super) fn finish(self) -> Result<()> {
        if let Some(((module, part), name)) = self.places.into_iter().next() {
            bail!(
                "{}: tensor {name} ({part} of {module}) is of no module of this model that adapter_config.json says is adapted",
                self.name
            );
        }
        Ok(())
    }
}

/// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight` and its simpler forms.
fn take_apart(name: &str) -> Result<Place<'_>> {
    let plain = name.strip_prefix("base_model.model.").unwrap_or(name);
    if let Some((module, tail)) = plain.split_once(".token_adapter.trainable_tokens_delta") {
        return place(module, TOKENS, tail);
    }
    let Some((module, rest)) = plain.rsplit_once(".lora_") else {
        return whole(plain);
    };
    let (part, tail) = rest.split_once('.').unwrap_or((rest, ""));
    let ending = |end: &str| tail.strip_suffix(end).unwrap_or(tail);
    match part {
        "A" if tail.ends_with("weight") => place(module, "lora_A", ending("weight")),
        "B" if tail.ends_with("weight") => place(module, "lora_B", ending("weight")),
        "B" if tail.ends_with("bias") => place(module, LORA_BIAS, ending("bias")),
        "A" | "B" => bail!("a bias of {part} is not known"),
        "magnitude_vector" => place(module, "lora_magnitude_vector", ending("weight")),
        "embedding_A" => place(module, "lora_embedding_A", tail),
        "embedding_B" => place(module, "lora_embedding_B", tail),
        other => bail!("lora_{other} is not known"),
    }
}

/// A tensor of the model itself: a module that was trained whole, a bias, or what an adapted embedding was before.
fn whole(plain: &str) -> Result<Place<'_>> {
    let Some((module, part)) = plain.rsplit_once('.') else { bail!("it is of no LoRA adapter") };
    let part = match part {
        "weight" => WHOLE,
        "bias" => BIAS,
        _ => bail!("it is of no LoRA adapter"),
    };
    if let Some((module, adapter)) = module.split_once(".modules_to_save.") {
        return place(module, part, adapter);
    }
    place(module.strip_suffix(".base_layer").unwrap_or(module), part, "")
}

fn place<'a>(module: &str, part: &'static str, adapter: &'a str) -> Result<Place<'a>> {
    let adapter = adapter.trim_matches('.');
    ensure!(!adapter.contains('.'), "`{adapter}` is no adapter's name");
    // A leading `model.` is left out by `Checkpoint::names`.
    let bare = module.starts_with("layers.") || ["embed_tokens", "norm"].contains(&module);
    let module = if bare { format!("model.{module}") } else { module.to_string() };
    Ok(Place { module, part, adapter })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_whatever_they_are_dressed_in() {
        let module = "model.layers.0.self_attn.q_proj";
        for (name, part, adapter) in [
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "lora_A", ""),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight", "lora_B", "default"),
            ("layers.0.self_attn.q_proj.lora_B.weight", "lora_B", ""),
            (
                "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
                "lora_magnitude_vector",
                "",
            ),
            (
                "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.es.weight",
                "lora_magnitude_vector",
                "es",
            ),
            ("layers.0.self_attn.q_proj.lora_magnitude_vector.es", "lora_magnitude_vector", "es"),
        ] {
            assert_eq!(take_apart(name).unwrap(), Place { module: module.into(), part, adapter }, "{name}");
        }
        let wholes = [
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", module, LORA_BIAS, ""),
            (
                "base_model.model.model.embed_tokens.lora_embedding_A",
                "model.embed_tokens",
                "lora_embedding_A",
                "",
            ),
            ("base_model.model.lm_head.weight", "lm_head", WHOLE, ""),
            ("base_model.model.lm_head.modules_to_save.es.weight", "lm_head", WHOLE, "es"),
            ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias", module, BIAS, ""),
            (
                "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
                "model.embed_tokens",
                TOKENS,
                "",
            ),
        ];
        for (name, module, part, adapter) in wholes {
            assert_eq!(take_apart(name).unwrap(), Place { module: module.into(), part, adapter }, "{name}");
        }
        for (name, said) in [
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_diag", "lora_diag"),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.bias", "bias of A"),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.a.b.weight", "no adapter's name"),
            ("base_model.model.model.layers.0.mlp.hada_w1_a", "no LoRA"),
        ] {
            let error = format!("{:#}", take_apart(name).unwrap_err());
            assert!(error.contains(said), "{name}: {error}");
        }
    }
}
