//! A model's configuration, under Hugging Face's field names; keys that we do not know survive a rewrite.
use std::path::Path;

use crate::data::files::FileContext;
use crate::error::{Error, Kind};
use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{registry, spec::Spec};
use crate::{
    data::gguf::Gguf,
    models::weights::{recognise, stored::check_dtype_keys},
};

/// `config.json` of a decoder: the fields that most families share; a family's own ones are in `extra`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The family: see `registry`.
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
    /// The gate's activation: `silu`, or `gelu_pytorch_tanh`.
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
    /// A token sees this many tokens, itself included, in the layers where the family has a window.
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
        recognise::refuse_other_folders(dir)?;
        let text = crate::data::json::read_text(&path).at(&path, || {
            format!(
                "read {}: a model is a Hugging Face directory with config.json, or a .gguf file",
                path.display()
            )
        })?;
        let config = Config::from_json(&text).with_context(|| format!("{}", path.display()));
        config.or_kind(|message| Error::bad_input(path.display(), message))
    }

    /// Parses and checks a `config.json`.
    pub fn from_json(text: &str) -> Result<Config> {
        Config::from_value(serde_json::from_str(text).context("not valid JSON")?)
    }

    /// From a GGUF file's metadata.
    pub fn from_gguf(gguf: &Gguf) -> Result<Config> {
        registry::config_of_gguf(gguf)
            .and_then(Config::from_value)
            .with_context(|| format!("{}", gguf.path.display()))
            .or_kind(|message| Error::bad_input(gguf.path.display(), message))
    }

    /// Of a Hugging Face directory or a `.gguf` file.
    pub fn of_model(path: &Path) -> Result<Config> {
        if path.is_dir() { Config::from_dir(path) } else { Config::from_gguf(&Gguf::open(path)?) }
    }

    /// Checks a `config.json`; what it leaves out gets its family's defaults.
    pub fn from_value(mut value: Value) -> Result<Config> {
        let fields = value.as_object_mut().context("not a JSON object")?;
        recognise::refuse_other_models(fields)?;
        let family = registry::family(fields.get("model_type").and_then(Value::as_str).unwrap_or("absent"))?;
        recognise::take_quantisation(fields)?;
        registry::check_fields(family, fields)?;
        check_dtype_keys(fields)?;
        for (key, default) in (family.defaults)() {
            fields.entry(key).or_insert(default);
        }
        let config: Config =
            serde_json::from_value(value.clone()).map_err(|e| anyhow!("{}{e}", misfit(&value, &e)))?;
        config.spec()?;
        Ok(config)
    }

    /// What the model computes.
    pub fn spec(&self) -> Result<Spec> {
        let heads = self.num_attention_heads.max(1);
        ensure!(
            self.head_dim.is_some() || self.hidden_size.is_multiple_of(heads),
            "hidden_size is not a multiple of the heads"
        );
        // With these bounds no product of sizes, up to the bytes of the whole model, leaves 64 bits.
        let sizes = [self.hidden_size, self.intermediate_size, self.vocab_size];
        ensure!(sizes.iter().all(|&x| x > 0 && x < 1 << 24), "a size is 0 or absurd: {sizes:?}");
        let widths = [self.hidden_size, self.intermediate_size];
        ensure!(widths.iter().all(|&x| x < 1 << 20), "a size is absurd: {widths:?}");
        let layers = self.num_hidden_layers;
        ensure!(layers > 0 && layers < 1 << 12, "{layers} layers: none, or absurdly many");
        let context = self.max_position_embeddings;
        ensure!(context > 0 && context < 1 << 31, "max_position_embeddings {context} is 0 or absurd");
        ensure!(
            self.sliding_window.is_none_or(|w| w < 1 << 31),
            "a sliding_window of {} is absurd",
            self.sliding_window.unwrap_or(0)
        );
        let attention = [self.num_attention_heads, self.kv_heads(), self.head_size()];
        ensure!(
            attention.iter().all(|&x| x < 1 << 12),
            "heads, key/value heads or the head size are absurd: {attention:?}"
        );
        let spec = (registry::family(&self.model_type)?.spec)(self)
            .and_then(|spec| spec.check().map(|()| spec))
            .or_kind(|message| Error::unsupported(&self.model_type, message))?;
        Ok(spec)
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
    /// Parameters of the whole model; 0 if the configuration describes none.
    pub fn parameters(&self) -> usize {
        self.spec().map_or(0, |spec| spec.parameters())
    }

    /// The number at `key` of the family's own fields; `None` if absent or null.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.extra.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let number =
                    value.as_f64().with_context(|| format!("{key} is {value}: a number was expected"))?;
                Ok(Some(number))
            }
        }
    }
    /// The same, a whole number.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        let whole = |value: &Value| {
            let n = value.as_u64().filter(|n| *n < 1 << 31).map(|n| n as usize);
            n.with_context(|| format!("{key} is {value}: a whole number was expected"))
        };
        self.extra.get(key).filter(|value| !value.is_null()).map(whole).transpose()
    }
    /// The truth value at `key` of the family's own fields; `false` if absent or null.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        match self.extra.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(value) => {
                value.as_bool().with_context(|| format!("{key} is {value}: true or false was expected"))
            }
        }
    }
    /// The kinds of attention by layer (`layer_types`), if the file has them.
    pub(super) fn layer_types(&self) -> Result<Option<Vec<bool>>> {
        let value = match self.extra.get("layer_types") {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let list =
            value.as_array().with_context(|| format!("layer_types is {value}: a list was expected"))?;
        ensure!(
            list.len() == self.num_hidden_layers,
            "layer_types has {} entries for {} layers",
            list.len(),
            self.num_hidden_layers
        );
        let slides = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => anyhow::bail!("layer_types has {kind}: full_attention and sliding_attention are supported"),
        };
        list.iter().map(slides).collect::<Result<_>>().map(Some)
    }
}
/// "FIELD: " of the field that does not fit: without it there is no such error.
fn misfit(config: &Value, error: &serde_json::Error) -> String {
    let same = |without: &str| {
        let mut rest = config.clone();
        rest.as_object_mut().map(|map| map.shift_remove(without));
        serde_json::from_value::<Config>(rest).is_err_and(|e| e.to_string() == error.to_string())
    };
    let mut fields = config.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    fields.find(|key| !same(key)).map_or(String::new(), |key| format!("{key}: "))
}
