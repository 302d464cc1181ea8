//! adapter_config.json, read whole: every field is used, changes nothing, or is refused by its name (peft 0.21.2's `LoraConfig`).
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::models::{
    transformer::lora::{LoraConfig, Modules, all_linears},
    weights::peft::{CONFIG, read_json},
};

/// Fields that are read.
const READ: &[&str] = &[
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "lora_dropout",
    "init_lora_weights",
    "bias",
    // Read where the tensors are that they tell of.
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
];

/// Fields that change nothing of what an adapter computes once it is trained; they are kept.
const HARMLESS: &[&str] = &[
    // Where it came from.
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
    "runtime_config",
    // How it was initialised and trained. `init_lora_weights` says whether the base was changed with it.
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    // Of matrices that are stored transposed, embeddings that are adapted, and of fields that are off.
    "fan_in_fan_out",
    "ensure_weight_tying",
    "megatron_core",
    "qalora_group_size",
    // ms-swift's notes about training.
    "lora_dtype",
    "lorap_lr_ratio",
    "lorap_emb_lr",
];

/// Fields that are refused unless they are off, and what they mean.
const REFUSED: &[(&str, &str)] = &[
    ("target_parameters", "parameters without a module, such as experts, are adapted"),
    ("layer_replication", "layers are repeated"),
    ("alora_invocation_tokens", "activated LoRA works from some tokens on"),
    ("arrow_config", "several adapters are routed between"),
    ("megatron_config", "it belongs to a model of Megatron"),
    ("use_qalora", "QA-LoRA pools the inputs of a quantised base"),
    ("use_bdlora", "A or B is block-diagonal"),
    ("kasa_config", "singular values of the base are cut off"),
    ("velora_config", "its backward pass compresses activations"),
    ("monteclora_config", "it draws samples"),
];

/// Fields of adapters that cannot be merged either.
const NEVER_MERGED: [&str; 2] = ["alora_invocation_tokens", "arrow_config"];

/// What else can be done.
pub(super) const MERGE: &str = "merge it into its base with PEFT (merge_and_unload) and use the merged model";

/// Ways to initialise an adapter that take its product out of the base's weights: it belongs to a base that stands nowhere.
const CHANGED_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Reads and judges the configuration in `dir`; with it the fields as they stand there.
pub(super) fn read(dir: &Path) -> Result<(LoraConfig, Map<String, Value>)> {
    let path = dir.join(CONFIG);
    let json = read_json(&path)?;
    let Value::Object(fields) = json else { bail!("{} is no JSON object", path.display()) };
    let config = parse(&fields).with_context(|| format!("{}", path.display()))?;
    Ok((config, fields))
}

fn parse(fields: &Map<String, Value>) -> Result<LoraConfig> {
    check_kind(fields)?;
    for (key, value) in fields {
        if is_off(value) || READ.contains(&key.as_str()) || HARMLESS.contains(&key.as_str()) {
            continue;
        }
        let advice = if NEVER_MERGED.contains(&key.as_str()) { "use it with PEFT" } else { MERGE };
        match REFUSED.iter().find(|(name, _)| name == key) {
            Some((_, why)) => bail!("{key} is {value}: {why}, which is not supported: {advice}"),
            None => bail!("{key} is {value}: this field is not known, so what it changes is not either"),
        }
    }
    Wholes::of(fields)?;
    check_initialisation(fields.get("init_lora_weights").unwrap_or(&Value::Bool(true)))?;
    match fields.get("bias") {
        None | Some(Value::Null) => {}
        Some(Value::String(s)) if ["none", "all", "lora_only"].contains(&s.as_str()) => {}
        Some(other) => bail!("bias is {other}: none, all or lora_only was expected"),
    }
    let named = |key: &str| fields.get(key).unwrap_or(&Value::Null);
    let mut config = LoraConfig {
        r: whole(named("r"), 8).context("r")?,
        alpha: number(named("lora_alpha"), 8.0).context("lora_alpha")?,
        target_modules: targets(named("target_modules")).context("target_modules")?,
        exclude_modules: modules(named("exclude_modules")).context("exclude_modules")?,
        layers_to_transform: layers(named("layers_to_transform")).context("layers_to_transform")?,
        layers_pattern: texts(named("layers_pattern")).context("layers_pattern")?,
        rank_pattern: pattern(named("rank_pattern"), |v| whole(v, 0)).context("rank_pattern")?,
        alpha_pattern: pattern(named("alpha_pattern"), |v| number(v, 0.0)).context("alpha_pattern")?,
        use_rslora: flag(named("use_rslora")).context("use_rslora")?,
        use_dora: flag(named("use_dora")).context("use_dora")?,
        dropout: number(named("lora_dropout"), 0.0).context("lora_dropout")?,
    };
    config.layers_pattern.retain(|p| !p.is_empty());
    let is_text = named("target_modules").is_string();
    ensure!(
        !(is_text && (config.layers_to_transform.is_some() || !config.layers_pattern.is_empty())),
        "layers_to_transform and layers_pattern go with a list of target_modules, not with a text (PEFT refuses it too)"
    );
    ensure!(
        config.layers_pattern.is_empty() || config.layers_to_transform.is_some(),
        "layers_pattern without layers_to_transform (PEFT refuses it too)"
    );
    Ok(config)
}

/// That it is LoRA's, for a language model.
fn check_kind(fields: &Map<String, Value>) -> Result<()> {
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    match text("peft_type") {
        Some("LORA") => {}
        Some(other) => bail!(
            "peft_type is {other}: this is no LoRA adapter, and only those are supported: if its kind can be merged, {MERGE}"
        ),
        None if fields.contains_key("lora_parameters") || fields.contains_key("fine_tune_type") => bail!(
            "this is an adapter of mlx-lm, whose format is another: fuse it (`mlx_lm.fuse`) and use the fused model"
        ),
        None => bail!("it has no peft_type: an adapter's folder is one that PEFT or `sdrrl train` wrote"),
    }
    match fields.get("task_type") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(s)) if s == "CAUSAL_LM" => Ok(()),
        Some(other) => bail!("task_type is {other}: adapters of language models (CAUSAL_LM) are supported"),
    }
}

fn check_initialisation(value: &Value) -> Result<()> {
    let name = match value {
        Value::Null | Value::Bool(_) => return Ok(()),
        Value::String(s) => s.to_lowercase(),
        other => bail!("init_lora_weights is {other}: true, false or a name was expected"),
    };
    if ["gaussian", "orthogonal", "eva", "mica"].contains(&name.as_str()) {
        return Ok(());
    }
    if CHANGED_BASE.iter().any(|way| name.starts_with(way)) {
        bail!(
            "init_lora_weights is {name}: that way of training changes the base's weights, so the adapter does not fit the base as it is: \
             save it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes it a plain LoRA, or merge it with PEFT"
        );
    }
    bail!("init_lora_weights is {name}: this way is not known, so it may have changed the base")
}

/// What the model decides: that nothing is meant but its linears, its embedding and its head.
pub(super) fn check_with_model(config: &LoraConfig, fields: &Map<String, Value>) -> Result<()> {
    let all_linear = fields.get("target_modules").is_some_and(is_all_linear);
    ensure!(
        all_linear || !config.selection()?.has("model.norm")?,
        "target_modules: model.norm is adapted too, which PEFT cannot either"
    );
    Ok(())
}

/// `modules_to_save`, `lora_bias` and `trainable_token_indices`: by the module's name, the rows.
pub(super) struct Wholes {
    pub modules: Vec<String>,
    pub lora_bias: bool,
    pub rows: Vec<(String, Vec<usize>)>,
}

impl Wholes {
    pub fn of(fields: &Map<String, Value>) -> Result<Wholes> {
        let named = |key: &str| fields.get(key).unwrap_or(&Value::Null);
        Ok(Wholes {
            modules: texts(named("modules_to_save")).context("modules_to_save")?,
            lora_bias: flag(named("lora_bias")).context("lora_bias")?,
            rows: rows(named("trainable_token_indices")).context("trainable_token_indices")?,
        })
    }
}

/// A list of rows of the embedding, or such lists by module.
fn rows(value: &Value) -> Result<Vec<(String, Vec<usize>)>> {
    let list = |v: &Value| -> Result<Vec<usize>> {
        let numbers = v.as_array().with_context(|| format!("it is {v}: a list of token ids was expected"))?;
        let one = |n: &Value| n.as_u64().map(|n| n as usize).with_context(|| format!("{n} is no token's id"));
        numbers.iter().map(one).collect()
    };
    match value {
        Value::Null => Ok(vec![]),
        Value::Object(map) => map.iter().map(|(key, v)| Ok((key.clone(), list(v)?))).collect(),
        other => Ok(vec![("embed_tokens".into(), list(other)?)]),
    }
}

/// Null, false or empty.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn is_all_linear(value: &Value) -> bool {
    value.as_str().is_some_and(|s| s.eq_ignore_ascii_case("all-linear"))
}

fn targets(value: &Value) -> Result<Modules> {
    if is_all_linear(value) {
        return Ok(Modules::Named(all_linears()));
    }
    ensure!(!is_off(value), "it is {value}; a list, a pattern or \"all-linear\" was expected");
    modules(value)
}

fn modules(value: &Value) -> Result<Modules> {
    Ok(match value {
        Value::String(pattern) => Modules::Matching(pattern.clone()),
        other => Modules::Named(texts(other)?),
    })
}

/// A list of texts; a text alone is a list of one.
fn texts(value: &Value) -> Result<Vec<String>> {
    match value {
        Value::Null => Ok(vec![]),
        Value::String(s) => Ok(vec![s.clone()]),
        Value::Array(list) => {
            let one = |v: &Value| v.as_str().map(String::from).with_context(|| format!("{v} is no text"));
            list.iter().map(one).collect()
        }
        other => bail!("it is {other}: a list of texts was expected"),
    }
}

fn layers(value: &Value) -> Result<Option<Vec<i64>>> {
    let one = |v: &Value| v.as_i64().with_context(|| format!("{v} is no layer's number"));
    Ok(match value {
        Value::Null => None,
        Value::Array(list) => Some(list.iter().map(one).collect::<Result<_>>()?),
        other => Some(vec![one(other)?]),
    })
}

fn pattern<T>(value: &Value, read: impl Fn(&Value) -> Result<T>) -> Result<Vec<(String, T)>> {
    if value.is_null() {
        return Ok(vec![]);
    }
    let map = value.as_object().with_context(|| format!("it is {value}: a map was expected"))?;
    let one = |(key, value): (&String, &Value)| {
        ensure!(!value.is_null(), "{key} has no value");
        Ok((key.clone(), read(value).with_context(|| key.clone())?))
    };
    map.iter().map(one).collect()
}

fn whole(value: &Value, default: usize) -> Result<usize> {
    if value.is_null() {
        return Ok(default);
    }
    let n = value.as_u64().filter(|n| (1..1 << 24).contains(n));
    n.map(|n| n as usize).with_context(|| format!("it is {value}: a number of at least 1 was expected"))
}

fn number(value: &Value, default: f64) -> Result<f64> {
    if value.is_null() {
        return Ok(default);
    }
    value.as_f64().with_context(|| format!("it is {value}: a number was expected"))
}

fn flag(value: &Value) -> Result<bool> {
    if value.is_null() {
        return Ok(false);
    }
    value.as_bool().with_context(|| format!("it is {value}: true or false was expected"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(changes: Value) -> Result<LoraConfig> {
        let mut json = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]});
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        parse(json.as_object().unwrap())
    }

    #[test]
    fn what_is_not_understood_is_refused_by_the_fields_name() {
        for (changes, parts) in [
            (json!({"peft_type": "IA3"}), &["peft_type", "IA3"][..]),
            (json!({"peft_type": "PROMPT_TUNING"}), &["PROMPT_TUNING"]),
            (json!({"peft_type": null}), &["peft_type"]),
            (json!({"peft_type": null, "fine_tune_type": "lora"}), &["mlx"]),
            (json!({"task_type": "SEQ_CLS"}), &["task_type", "SEQ_CLS"]),
            (json!({"init_lora_weights": "pissa"}), &["init_lora_weights", "pissa"]),
            (json!({"init_lora_weights": "pissa_niter_16"}), &["init_lora_weights", "pissa_niter_16"]),
            (json!({"init_lora_weights": "OLoRA"}), &["init_lora_weights", "olora"]),
            (json!({"init_lora_weights": "corda"}), &["init_lora_weights", "corda"]),
            (json!({"init_lora_weights": "loftq"}), &["init_lora_weights", "loftq"]),
            (json!({"init_lora_weights": "lora_ga"}), &["init_lora_weights", "lora_ga"]),
            (json!({"init_lora_weights": "another"}), &["init_lora_weights", "another"]),
            (json!({"init_lora_weights": 3}), &["init_lora_weights"]),
            (json!({"lora_bias": "yes"}), &["lora_bias"]),
            (json!({"bias": "some"}), &["bias", "some"]),
            (json!({"modules_to_save": [1]}), &["modules_to_save"]),
            (json!({"trainable_token_indices": [-3]}), &["trainable_token_indices"]),
            (json!({"trainable_token_indices": {"embed_tokens": 3}}), &["trainable_token_indices"]),
            (json!({"target_parameters": ["experts.down_proj"]}), &["target_parameters"]),
            (json!({"layer_replication": [[0, 2], [1, 2]]}), &["layer_replication"]),
            (json!({"alora_invocation_tokens": [1, 2]}), &["alora_invocation_tokens"]),
            (json!({"arrow_config": {"top_k": 2}}), &["arrow_config"]),
            (json!({"megatron_config": {"tp": 2}}), &["megatron_config"]),
            (json!({"use_qalora": true}), &["use_qalora"]),
            (json!({"use_bdlora": {"nblocks": 2}}), &["use_bdlora"]),
            (json!({"kasa_config": {"beta": 1e-4}}), &["kasa_config"]),
            (json!({"velora_config": {"scale": 1.0}}), &["velora_config"]),
            (json!({"monteclora_config": {"num_samples": 8}}), &["monteclora_config"]),
            (json!({"a_field_of_tomorrow": 2}), &["a_field_of_tomorrow", "not known"]),
            (json!({"r": 0}), &["r: it is 0"]),
            (json!({"r": "4"}), &["r: it is"]),
            (json!({"r": 4.5}), &["r: it is"]),
            (json!({"lora_alpha": "8"}), &["lora_alpha"]),
            (json!({"use_dora": "yes"}), &["use_dora"]),
            (json!({"lora_dropout": "0.1"}), &["lora_dropout"]),
            (json!({"use_rslora": 1}), &["use_rslora"]),
            (json!({"target_modules": null}), &["target_modules"]),
            (json!({"target_modules": []}), &["target_modules"]),
            (json!({"target_modules": [1]}), &["target_modules"]),
            (json!({"target_modules": {"a": 1}}), &["target_modules"]),
            (json!({"layers_to_transform": [0.5]}), &["layers_to_transform"]),
            (json!({"layers_pattern": "layers"}), &["layers_pattern"]),
            (json!({"target_modules": ".*q_proj", "layers_to_transform": 1}), &["layers_to_transform"]),
            (json!({"rank_pattern": {"q": 0}}), &["rank_pattern", "q"]),
            (json!({"rank_pattern": {"q": null}}), &["rank_pattern", "q"]),
            (json!({"rank_pattern": ["q"]}), &["rank_pattern"]),
            (json!({"alpha_pattern": {"q": "x"}}), &["alpha_pattern", "q"]),
        ] {
            let said = format!("{:#}", with(changes.clone()).expect_err(&changes.to_string()));
            assert!(parts.iter().all(|part| said.contains(part)), "{changes}: {said}");
        }
    }

    #[test]
    fn fields_that_are_off_or_change_nothing_are_no_error() {
        let read = with(json!({
            "lora_dropout": 0.1, "init_lora_weights": "gaussian", "eva_config": {"rho": 2.0}, "fan_in_fan_out": true,
            "modules_to_save": [], "a_field_of_tomorrow": null, "another": false, "layers_pattern": "",
            "layers_to_transform": 1, "exclude_modules": null, "rank_pattern": null, "lora_alpha": 16.5, "bias": "all",
            "qalora_group_size": 16, "corda_config": null, "use_bdlora": null, "revision": "abc"
        }));
        let read = read.unwrap();
        assert_eq!((read.r, read.alpha, read.layers_to_transform), (4, 16.5, Some(vec![1])));
        assert_eq!(read.dropout, 0.1);
        assert_eq!(
            with(json!({"target_modules": "All-Linear"})).unwrap().target_modules,
            Modules::Named(all_linears())
        );
        assert_eq!(with(json!({"r": null, "lora_alpha": null})).unwrap().alpha, 8.0);
    }
}
