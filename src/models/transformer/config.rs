//! A model's configuration, under Hugging Face's field names; keys that we do not know survive a rewrite.
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::gguf::Gguf;

/// `config.json` of a Llama or Mistral checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// `llama` or `mistral`.
    pub model_type: String,
    /// C.
    pub hidden_size: usize,
    /// F.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// NH.
    pub num_attention_heads: usize,
    /// NKV; absent means NH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// HS; absent means C / NH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// V.
    pub vocab_size: usize,
    /// Longest sequence that the model was made for.
    #[serde(default = "default_positions")]
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies; absent means 10000 (or `rope_parameters.rope_theta`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Long-context scaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<Map<String, Value>>,
    /// The newer place of `rope_theta` and `rope_scaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<Map<String, Value>>,
    /// Only `silu`.
    #[serde(default = "default_act")]
    pub hidden_act: String,
    /// The head is the embedding's transpose.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// q, k, v, o carry biases.
    #[serde(default)]
    pub attention_bias: bool,
    /// gate, up, down carry biases.
    #[serde(default)]
    pub mlp_bias: bool,
    /// Mistral: a token sees this many tokens, itself included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<usize>,
    /// Begin-of-sequence id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
    /// End-of-sequence id or ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<OneOrMany>,
    /// Everything else in the file.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A single id or a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// `2`
    One(u32),
    /// `[2, 32000]`
    Many(Vec<u32>),
}

impl OneOrMany {
    /// As a list.
    pub fn to_vec(&self) -> Vec<u32> {
        match self {
            OneOrMany::One(x) => vec![*x],
            OneOrMany::Many(x) => x.clone(),
        }
    }
}

fn default_positions() -> usize {
    2048
}
fn default_eps() -> f64 {
    1e-6
}
fn default_act() -> String {
    "silu".into()
}

impl Config {
    /// Reads `DIR/config.json`.
    pub fn from_dir(dir: &Path) -> Result<Config> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "read {}: a model is a Hugging Face directory with config.json, or a .gguf file",
                path.display()
            )
        })?;
        Config::from_json(&text).with_context(|| format!("{}", path.display()))
    }

    /// Parses and checks a `config.json`.
    pub fn from_json(text: &str) -> Result<Config> {
        let value: Value = serde_json::from_str(text).context("not valid JSON")?;
        let model_type = value["model_type"].as_str().unwrap_or("absent").to_string();
        if model_type != "llama" && model_type != "mistral" {
            bail!(
                "model_type is {model_type}; `llama` and `mistral` can be read (LLaMA-2, SeaLLM v1 and v2, SmolLM2, ...)"
            );
        }
        let config: Config = serde_json::from_value(value)?;
        config.check()?;
        Ok(config)
    }

    /// From a GGUF file's metadata (architecture `llama`).
    pub fn from_gguf(gguf: &Gguf) -> Result<Config> {
        let arch = gguf.text("general.architecture").unwrap_or("absent");
        ensure!(
            arch == "llama",
            "{}: its architecture is {arch}; only `llama` can be read",
            gguf.path.display()
        );
        let key = |k: &str| format!("llama.{k}");
        let vocab = gguf.array("tokenizer.ggml.tokens").map(|t| t.len());
        let tied = !gguf.tensors.iter().any(|t| t.name == "output.weight");
        let config = Config {
            model_type: "llama".into(),
            hidden_size: gguf.required(&key("embedding_length"))?,
            intermediate_size: gguf.required(&key("feed_forward_length"))?,
            num_hidden_layers: gguf.required(&key("block_count"))?,
            num_attention_heads: gguf.required(&key("attention.head_count"))?,
            num_key_value_heads: gguf.integer(&key("attention.head_count_kv")).map(|x| x as usize),
            head_dim: gguf.integer(&key("attention.key_length")).map(|x| x as usize),
            vocab_size: gguf
                .integer(&key("vocab_size"))
                .map(|x| x as usize)
                .or(vocab)
                .context("no vocabulary size")?,
            max_position_embeddings: gguf.integer(&key("context_length")).unwrap_or(2048) as usize,
            rms_norm_eps: gguf.float(&key("attention.layer_norm_rms_epsilon")).map_or(1e-5, shortest),
            rope_theta: Some(gguf.float(&key("rope.freq_base")).unwrap_or(10000.0)),
            rope_scaling: gguf_scaling(gguf)?,
            rope_parameters: None,
            hidden_act: "silu".into(),
            tie_word_embeddings: tied,
            attention_bias: gguf.tensors.iter().any(|t| t.name.ends_with("attn_q.bias")),
            mlp_bias: gguf.tensors.iter().any(|t| t.name.ends_with("ffn_up.bias")),
            sliding_window: gguf.integer(&key("attention.sliding_window")).map(|x| x as usize),
            bos_token_id: gguf.integer("tokenizer.ggml.bos_token_id").map(|x| x as u32),
            eos_token_id: gguf.integer("tokenizer.ggml.eos_token_id").map(|x| OneOrMany::One(x as u32)),
            extra: Map::from_iter([("architectures".into(), serde_json::json!(["LlamaForCausalLM"]))]),
        };
        config.check().with_context(|| format!("{}", gguf.path.display()))?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let (nh, nkv, hs) = (self.num_attention_heads, self.kv_heads(), self.num_attention_heads.max(1));
        ensure!(
            nh > 0 && nkv > 0 && nh % nkv == 0,
            "{nh} attention heads do not share {nkv} key/value heads evenly"
        );
        ensure!(
            self.head_dim.is_some() || self.hidden_size.is_multiple_of(hs),
            "hidden_size is not a multiple of the heads"
        );
        ensure!(
            self.head_size() > 0 && self.head_size().is_multiple_of(2),
            "the head size {} is not even",
            self.head_size()
        );
        let sizes = [self.hidden_size, self.intermediate_size, self.num_hidden_layers, self.vocab_size];
        ensure!(sizes.iter().all(|&x| x > 0 && x < 1 << 24), "a size is 0 or absurd: {sizes:?}");
        ensure!(self.hidden_act == "silu", "hidden_act {} is not supported, only silu", self.hidden_act);
        Ok(())
    }

    /// NKV.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }
    /// HS.
    pub fn head_size(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }
    /// NH * HS.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_size()
    }
    /// NKV * HS.
    pub fn kv_size(&self) -> usize {
        self.kv_heads() * self.head_size()
    }
    /// End-of-sequence ids.
    pub fn eos(&self) -> Vec<u32> {
        self.eos_token_id.as_ref().map(OneOrMany::to_vec).unwrap_or_default()
    }
    /// Parameters of the whole model.
    pub fn parameters(&self) -> usize {
        let (c, f) = (self.hidden_size, self.intermediate_size);
        let layer = 2 * c * self.query_size() + 2 * c * self.kv_size() + 3 * c * f + 2 * c;
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        self.num_hidden_layers * layer + heads * self.vocab_size * c + c
    }
}

/// The f64 that prints as the f32 in the file does: 1e-5, not 9.999999747378752e-6.
fn shortest(x: f64) -> f64 {
    (x as f32).to_string().parse().unwrap_or(x)
}

fn gguf_scaling(gguf: &Gguf) -> Result<Option<Map<String, Value>>> {
    let kind = match gguf.text("llama.rope.scaling.type") {
        None | Some("none") => return Ok(None),
        Some(kind) => kind,
    };
    let mut map = Map::new();
    map.insert("rope_type".into(), kind.into());
    if let Some(x) = gguf.float("llama.rope.scaling.factor") {
        map.insert("factor".into(), x.into());
    }
    if let Some(x) = gguf.integer("llama.rope.scaling.original_context_length") {
        map.insert("original_max_position_embeddings".into(), x.into());
    }
    Ok(Some(map))
}
