//! What a folder or checkpoint is that is no plain decoder, so that it is refused as what it is, with what can be done instead.
use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

use crate::{data::gguf::Gguf, models::transformer::registry::FAMILIES};

/// A model type that is no decoder of the families here: what it is, as a parenthesis for messages; empty where nothing is known.
pub fn kind_of_model_type(model_type: &str) -> &'static str {
    let any = |names: &[&str]| names.contains(&model_type);
    let ends = |ends: &[&str]| ends.iter().any(|e| model_type.ends_with(e));
    if any(&["m2m_100", "nllb-moe"]) {
        " (a translator: `translate --engine nllb` reads NLLB)"
    } else if any(&["xlm-roberta", "xlm-roberta-xl"]) {
        " (an encoder: `score` reads it, as CometKiwi or as a sentence encoder)"
    } else if any(&[
        "albert",
        "bert",
        "camembert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "eurobert",
        "modernbert",
        "mpnet",
        "nomic_bert",
        "roberta",
    ]) {
        " (an encoder, which does not generate)"
    } else if any(&["bart", "blenderbot", "marian", "mbart", "mt5", "pegasus", "t5", "t5gemma", "umt5"]) {
        " (an encoder with a decoder)"
    } else if any(&["clip", "siglip", "siglip2", "vit", "dinov2", "dinov3_vit", "sam"]) {
        " (a vision model)"
    } else if any(&[
        "gemma3",
        "gemma3n",
        "mistral3",
        "llava",
        "idefics3",
        "paligemma",
        "mllama",
        "smolvlm",
        "pixtral",
    ]) || ends(&["_vl", "_vl_moe", "_omni", "vision"])
    {
        " (a model of text and images, of which the text model alone is not read)"
    } else if any(&["whisper", "wav2vec2", "hubert"]) || ends(&["audio"]) {
        " (a speech model)"
    } else if any(&["dbrx", "gpt_oss", "deepseek_v2", "deepseek_v3"]) || ends(&["_moe", "moe"]) {
        " (a mixture of experts)"
    } else if any(&["mamba", "mamba2", "jamba", "bamba", "rwkv", "falcon_mamba", "recurrent_gemma", "zamba2"])
    {
        " (a state-space or recurrent model)"
    } else {
        ""
    }
}

/// Refuses a folder that holds no decoder, by what it holds.
pub fn refuse_other_folders(dir: &Path) -> Result<()> {
    let has = |name: &str| dir.join(name).exists();
    let shown = dir.display();
    if has("config.json") {
        return Ok(());
    }
    if has("adapter_config.json") {
        let text = crate::data::json::read_text(&dir.join("adapter_config.json")).unwrap_or_default();
        let config: Value = serde_json::from_str(&text).unwrap_or_default();
        let base = config["base_model_name_or_path"].as_str().filter(|b| !b.is_empty());
        let base = base.map_or(String::from("its base model"), |b| format!("its base model ({b})"));
        bail!(
            "{shown} is an adapter (PEFT), not a model: give {base} as --model and this folder as --adapter, or `merge` the two first"
        );
    }
    ensure!(!has("model_index.json"), "{shown} is a diffusers pipeline, which generates images, not text");
    if has("params.json") && (has("consolidated.00.pth") || has("consolidated.safetensors")) {
        bail!(
            "{shown} is a checkpoint in its maker's own layout (params.json, consolidated.*): use the same model in Hugging Face's layout"
        );
    }
    let ggufs = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut ggufs: Vec<String> = ggufs
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".gguf"))
        .collect();
    ggufs.sort();
    if let Some(first) = ggufs.first() {
        bail!(
            "{shown} holds .gguf files and no config.json: give one of the files, such as {}",
            dir.join(first).display()
        );
    }
    Ok(())
}

/// Refuses a configuration that describes another kind of model than a decoder of text.
pub fn refuse_other_models(config: &Map<String, Value>) -> Result<()> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("absent");
    let known = FAMILIES.iter().any(|f| f.model_type == model_type);
    if !known {
        return Ok(());
    }
    if config.get("is_encoder_decoder") == Some(&Value::Bool(true)) {
        bail!(
            "is_encoder_decoder is true: an encoder with a decoder is no model that generates behind a prompt"
        );
    }
    for (key, what) in [
        ("vision_config", "a model of text and images"),
        ("audio_config", "a model of text and sound"),
        ("text_config", "a model of several parts"),
    ] {
        ensure!(
            !config.get(key).is_some_and(Value::is_object),
            "config.json has {key}: this is {what}, of which the text model alone is not read"
        );
    }
    Ok(())
}

/// How a method of quantisation is written by those who know it.
fn method_name(method: &str) -> String {
    match method {
        "gptq" => "GPTQ".into(),
        "awq" => "AWQ".into(),
        "bitsandbytes" | "bitsandbytes_8bit" | "bitsandbytes_4bit" => "bitsandbytes".into(),
        "fp8" | "fbgemm_fp8" => "FP8".into(),
        "hqq" => "HQQ".into(),
        "mxfp4" => "MXFP4".into(),
        "aqlm" => "AQLM".into(),
        "eetq" => "EETQ".into(),
        other => other.into(),
    }
}

/// What to use instead of a quantised checkpoint.
const INSTEAD: &str = "use the unquantised model, a GGUF file of it, or one that bitsandbytes quantised";

/// Takes what is said of bitsandbytes, whose tensors say it themselves, out of a configuration; refuses one whose weights are quantised otherwise, by the method's name.
pub fn take_quantisation(config: &mut Map<String, Value>) -> Result<()> {
    for key in ["quantization_config", "compression_config", "quantization"] {
        let Some(value) = config.get(key).filter(|v| v.as_object().is_some_and(|map| !map.is_empty())) else {
            continue;
        };
        let flag = |name: &str| value[name] == Value::Bool(true);
        let method = match value["quant_method"].as_str() {
            Some(method) => method_name(method),
            None if flag("load_in_4bit") || flag("load_in_8bit") => "bitsandbytes".into(),
            None if key == "quantization" => "MLX".into(),
            None => "a method that it does not name".into(),
        };
        if method == "bitsandbytes" {
            config.shift_remove(key);
            continue;
        }
        let bits = [&value["bits"], &value["w_bit"]].into_iter().find_map(Value::as_u64);
        let bits = bits.map_or(String::new(), |b| format!(", {b} bits"));
        bail!(
            "the weights are quantised by {method} ({key} in config.json{bits}), which is not read: {INSTEAD}"
        );
    }
    Ok(())
}

/// Refuses a checkpoint whose class says that it has another head than a language model's.
pub fn refuse_other_heads(class: &str, config: &Map<String, Value>) -> Result<()> {
    let Some(list) = config.get("architectures").and_then(Value::as_array) else { return Ok(()) };
    let base = class.trim_end_matches("ForCausalLM");
    let mine = |name: &str| name == class || name.contains("CausalLM") || name.contains("LMHead");
    // The bare decoder: with a tied head nothing is missing; else the missing head is named.
    let bare = |name: &str| name.strip_suffix("Model").is_some_and(|b| b.trim_end_matches("Text") == base);
    if let Some(name) = list.iter().filter_map(Value::as_str).find(|n| !mine(n) && !bare(n)) {
        let what = match name {
            n if n.contains("SequenceClassification") || n.contains("Reward") => {
                "a sequence classifier or reward model, which gives scores and no text"
            }
            n if n.contains("TokenClassification") => "a token classifier, which gives labels and no text",
            n if n.contains("QuestionAnswering") => "an extractive question-answering model",
            n if n.contains("MaskedLM") => "a masked language model, which does not generate",
            n if n.contains("ConditionalGeneration") || n.contains("ImageText") => {
                "a model of text and images"
            }
            _ => "no language model's class that is known here",
        };
        bail!("architectures in config.json is {name}: {what}; a {class} is needed");
    }
    Ok(())
}

/// Names in a checkpoint that only a quantised one has, and what wrote them.
pub fn quantised_by(name: &str) -> Option<&'static str> {
    const ENDS: [(&str, &str); 14] = [
        (".qweight", "GPTQ or AWQ"),
        (".qzeros", "GPTQ or AWQ"),
        (".g_idx", "GPTQ"),
        (".absmax", "bitsandbytes"),
        (".quant_map", "bitsandbytes"),
        (".SCB", "bitsandbytes"),
        (".weight_packed", "compressed-tensors"),
        (".weight_shape", "compressed-tensors"),
        (".weight_scale", "FP8 or compressed-tensors"),
        (".weight_scale_inv", "FP8"),
        (".input_scale", "FP8"),
        (".W_q", "HQQ"),
        (".biases", "MLX"),
        (".scales", "GPTQ, AWQ or MLX"),
    ];
    ENDS.iter().find(|(end, _)| name.ends_with(end)).map(|e| e.1)
}

/// The sentence for a checkpoint with such a name.
pub fn quantised_tensor(name: &str, by: &str) -> String {
    format!("tensor {name} shows that the weights are quantised (by {by}), which is not read: {INSTEAD}")
}

/// What a tensor without a place tells about its checkpoint.
pub fn strange_tensor(name: &str) -> &'static str {
    let any = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if any(&["lora_A", "lora_B", "lora_magnitude"]) {
        "it is an adapter's, which was saved into the model's file: merge it where it was trained"
    } else if name == "score.weight" || any(&["classifier.", "v_head.", "value_head."]) {
        "it is a classifier's or a reward model's head"
    } else if any(&["vision", "visual", "image", "multi_modal", "mm_projector"]) {
        "it belongs to a model of text and images"
    } else if any(&["experts.gate_up_proj", "experts.down_proj"]) {
        "it holds all experts of a layer as one, which transformers writes only when it is told to: save the model with save_original_format=True, as it does by itself"
    } else if any(&["experts", "block_sparse_moe"]) {
        "it belongs to a mixture of experts of another shape"
    } else if any(&["_exps.", "ffn_gate_inp"]) || (name.starts_with("blk.") && is_numbered_expert(name)) {
        "it belongs to a mixture of experts of another shape, or of a file from before llama.cpp kept experts together (April 2024)"
    } else {
        "its configuration does not tell what it is for"
    }
}

/// `blk.0.ffn_gate.3.weight`: an expert of a file before experts were kept together.
fn is_numbered_expert(name: &str) -> bool {
    let mut parts = name.split('.').skip(2);
    let of_mlp = parts.next().is_some_and(|part| ["ffn_gate", "ffn_up", "ffn_down"].contains(&part));
    of_mlp && parts.next().is_some_and(|part| part.parse::<usize>().is_ok())
}

/// Refuses a GGUF file that holds no decoder, by what it holds.
pub fn refuse_other_ggufs(gguf: &Gguf) -> Result<()> {
    let text = |key: &str| gguf.text(key).unwrap_or_default();
    let (kind, architecture) = (text("general.type"), text("general.architecture"));
    let what = match (kind, architecture) {
        ("adapter", _) => {
            "an adapter (GGUF), not a model: use the adapter in PEFT's layout, with its base model as --model"
        }
        ("imatrix", _) => "an importance matrix, which quantisers read, not a model",
        ("mmproj", _) | (_, "clip") => {
            "the image part of a model of text and images, not a model: give the file of its text model"
        }
        (_, "controlvector") => "a control vector, not a model",
        ("model" | "", _) if gguf.tensors.is_empty() => "a vocabulary alone: there are no tensors in it",
        ("model" | "", _) => return Ok(()),
        _ => "no model",
    };
    let kind = if kind.is_empty() { String::new() } else { format!(" (general.type is {kind})") };
    bail!("it is {what}{kind}")
}
