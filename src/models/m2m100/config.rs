//! `config.json` of an M2M100 checkpoint (NLLB-200 in all sizes), and how it is decoded.
use std::path::Path;

use crate::data::files::FileContext;
use crate::error::{Error, Kind};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ops::{activation::Activation, beam_step::MAX_BEAMS};

/// The model's shape, under Hugging Face's field names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct M2m100Config {
    /// `m2m_100`.
    pub model_type: String,
    /// C.
    pub d_model: usize,
    /// Layers of the encoder.
    pub encoder_layers: usize,
    /// Layers of the decoder.
    pub decoder_layers: usize,
    /// NH of the encoder.
    pub encoder_attention_heads: usize,
    /// NH of the decoder, in both of its attentions.
    pub decoder_attention_heads: usize,
    /// F of the encoder.
    pub encoder_ffn_dim: usize,
    /// F of the decoder.
    pub decoder_ffn_dim: usize,
    /// V.
    pub vocab_size: usize,
    /// Longest sequence.
    #[serde(default = "default_positions")]
    pub max_position_embeddings: usize,
    /// `relu` or `gelu`.
    #[serde(default = "default_activation")]
    pub activation_function: String,
    /// Embeddings are multiplied by sqrt(C).
    #[serde(default = "yes")]
    pub scale_embedding: bool,
    /// Positions count from here on, exclusive.
    #[serde(default = "default_pad")]
    pub pad_token_id: u32,
    /// Ends a sentence.
    #[serde(default = "default_eos")]
    pub eos_token_id: u32,
    /// What the decoder is given first.
    #[serde(default = "default_eos")]
    pub decoder_start_token_id: u32,
    /// Everything else in the file.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

fn default_positions() -> usize {
    1024
}
fn default_activation() -> String {
    "relu".into()
}
fn yes() -> bool {
    true
}
fn default_pad() -> u32 {
    1
}
fn default_eos() -> u32 {
    2
}

/// Numbers of the table of positions; NLLB's has a million.
const MOST_POSITIONS: usize = 1 << 26;

impl M2m100Config {
    /// Reads `DIR/config.json`.
    pub fn from_dir(dir: &Path) -> Result<M2m100Config> {
        let path = dir.join("config.json");
        let text = crate::data::json::read_text(&path).at(&path, || {
            format!(
                "read {}: an NLLB model is a directory with config.json, model.safetensors or pytorch_model*.bin, and tokenizer.json or \
                 sentencepiece.bpe.model (facebook/nllb-200-distilled-600M, -1.3B, nllb-200-3.3B; licence CC-BY-NC-4.0)",
                path.display()
            )
        })?;
        let config = M2m100Config::from_json(&text).with_context(|| format!("{}", path.display()));
        config.or_kind(|message| Error::unsupported(path.display(), message))
    }

    /// Parses and checks a `config.json`.
    pub fn from_json(text: &str) -> Result<M2m100Config> {
        let value: Value = serde_json::from_str(text).context("not valid JSON")?;
        let model_type = value["model_type"].as_str().unwrap_or("absent");
        ensure!(
            model_type == "m2m_100",
            "model_type is {model_type}; `m2m_100` (M2M100 and NLLB-200) was expected"
        );
        let config: M2m100Config = serde_json::from_value(value)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let c = self.d_model;
        let sizes = [
            c,
            self.encoder_layers,
            self.decoder_layers,
            self.encoder_ffn_dim,
            self.decoder_ffn_dim,
            self.vocab_size,
        ];
        ensure!(sizes.iter().all(|&x| x > 0 && x < 1 << 24), "a size is 0 or absurd: {sizes:?}");
        let widths = [c, self.encoder_ffn_dim, self.decoder_ffn_dim];
        ensure!(widths.iter().all(|&x| x < 1 << 20), "a size is absurd: {widths:?}");
        let layers = [self.encoder_layers, self.decoder_layers];
        ensure!(layers.iter().all(|&x| x < 1 << 12), "absurdly many layers: {layers:?}");
        // They are computed, (positions, d_model), and not in the file, whose size would bound them.
        let positions = self.max_position_embeddings;
        ensure!(
            positions > 0 && positions.saturating_mul(c) <= MOST_POSITIONS,
            "max_position_embeddings {positions}: none, or more than a table of {MOST_POSITIONS} numbers holds"
        );
        ensure!(self.pad_token_id < 1 << 10, "pad_token_id {}: positions begin behind it", self.pad_token_id);
        for heads in [self.encoder_attention_heads, self.decoder_attention_heads] {
            ensure!(heads > 0 && c.is_multiple_of(heads), "d_model {c} is not a multiple of {heads} heads");
        }
        ensure!(c.is_multiple_of(2) && c >= 4, "d_model {c} does not split into sines and cosines");
        ensure!(
            self.extra.get("tie_word_embeddings") != Some(&Value::Bool(false)),
            "only tied heads can be read"
        );
        for (name, id) in [
            ("eos_token_id", self.eos_token_id),
            ("pad_token_id", self.pad_token_id),
            ("decoder_start_token_id", self.decoder_start_token_id),
        ] {
            ensure!(
                (id as usize) < self.vocab_size,
                "{name} {id} is beyond the vocabulary of {}",
                self.vocab_size
            );
        }
        self.activation().map(drop)
    }

    /// The function between the two linears of a feed-forward block.
    pub fn activation(&self) -> Result<Activation> {
        match self.activation_function.as_str() {
            "relu" => Ok(Activation::Relu),
            "gelu" => Ok(Activation::Gelu),
            other => anyhow::bail!("activation_function {other} is not supported (relu and gelu are)"),
        }
    }

    /// Factor of the embeddings.
    pub fn embedding_scale(&self) -> f32 {
        if self.scale_embedding { (self.d_model as f32).sqrt() } else { 1.0 }
    }

    /// Parameters of the whole model.
    pub fn parameters(&self) -> usize {
        let c = self.d_model;
        let attention = 4 * c * (c + 1);
        let feed_forward = |f: usize| 2 * c * f + f + c;
        let encoder = attention + feed_forward(self.encoder_ffn_dim) + 4 * c;
        let decoder = 2 * attention + feed_forward(self.decoder_ffn_dim) + 6 * c;
        self.encoder_layers * encoder + self.decoder_layers * decoder + 4 * c + self.vocab_size * c
    }
}

/// When beam search stops looking for better hypotheses, as transformers has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum BeamStopping {
    /// When the best running hypothesis, at its present length, is worse than every finished one (transformers: False).
    #[default]
    Heuristic,
    /// As soon as there are as many finished hypotheses as beams (True).
    FirstComplete,
    /// When no running hypothesis can win, even at the greatest length ("never").
    Never,
}

/// How target sentences are searched.
#[derive(Clone, Debug, PartialEq)]
pub struct BeamParams {
    /// Hypotheses kept; 1 is greedy.
    pub num_beams: usize,
    /// A hypothesis' score is its log-probability over (generated length ^ this).
    pub length_penalty: f32,
    /// When to stop.
    pub early_stopping: BeamStopping,
    /// No n-gram of this size occurs twice; 0 allows all.
    pub no_repeat_ngram_size: usize,
    /// Tokens at most, with the start token and the end token.
    pub max_length: usize,
    /// The last token of a hypothesis that reaches `max_length`, whatever the model thinks (`forced_eos_token_id`).
    pub forced_eos: Option<u32>,
}

impl Default for BeamParams {
    fn default() -> BeamParams {
        BeamParams {
            num_beams: 4,
            length_penalty: 1.0,
            early_stopping: BeamStopping::Heuristic,
            no_repeat_ngram_size: 0,
            max_length: 200,
            forced_eos: None,
        }
    }
}

impl BeamParams {
    /// What `DIR/generation_config.json` (or, in older directories, config.json) says, else the defaults.
    pub fn from_dir(dir: &Path) -> Result<BeamParams> {
        let (file, old) = (dir.join("generation_config.json"), dir.join("config.json"));
        let path = if file.exists() { file } else { old };
        let text = crate::data::json::read_text(&path).reading(&path)?;
        let json: Value =
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
        let token = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
        let number = |key: &str, default: usize| json[key].as_u64().map_or(default, |x| x as usize);
        let default = BeamParams::default();
        let forced_eos = match &json["forced_eos_token_id"] {
            Value::Null => None,
            Value::Array(ids) if ids.len() == 1 => token(&ids[0]),
            other => token(other),
        };
        ensure!(
            forced_eos.is_some() || json["forced_eos_token_id"].is_null(),
            "{}: forced_eos_token_id is {}: the id of one token was expected",
            path.display(),
            json["forced_eos_token_id"]
        );
        Ok(BeamParams {
            forced_eos,
            num_beams: number("num_beams", default.num_beams),
            length_penalty: json["length_penalty"].as_f64().map_or(default.length_penalty, |x| x as f32),
            early_stopping: match &json["early_stopping"] {
                Value::Bool(true) => BeamStopping::FirstComplete,
                Value::String(_) => BeamStopping::Never,
                _ => BeamStopping::Heuristic,
            },
            no_repeat_ngram_size: number("no_repeat_ngram_size", default.no_repeat_ngram_size),
            max_length: json["max_new_tokens"]
                .as_u64()
                .map_or(number("max_length", default.max_length), |n| n as usize + 1),
        })
    }

    /// Errors where a number makes no sense, or the model cannot hold `max_length` positions.
    pub fn check(&self, config: &M2m100Config) -> Result<()> {
        ensure!(
            (1..=MAX_BEAMS).contains(&self.num_beams) && 2 * self.num_beams <= config.vocab_size,
            "num-beams is {}; 1 to {MAX_BEAMS} can be searched",
            self.num_beams
        );
        ensure!(
            self.forced_eos.is_none_or(|id| (id as usize) < config.vocab_size),
            "forced_eos_token_id {:?} is beyond the vocabulary of {}",
            self.forced_eos,
            config.vocab_size
        );
        ensure!(self.length_penalty.is_finite(), "length-penalty is {}", self.length_penalty);
        ensure!(
            (3..=config.max_position_embeddings).contains(&self.max_length),
            "max-length is {}; 3 to {} tokens fit this model",
            self.max_length,
            config.max_position_embeddings
        );
        Ok(())
    }
}
