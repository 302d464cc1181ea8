//! CometKiwi (Rei et al. 2022), reference-free: an XLM-R encoder reads translation and source, its layers' first states are mixed, and a small
//! network gives the score.
//!
//! score = ff(gamma Σ_l softmax(scalars)_l h_l), h_l the state of `<s>` in layer l (the embeddings are layer 0), ff linear layers with tanh
//! between them. No sigmoid and no bounds: scores can leave 0..1. A pair's score does not depend on the pairs beside it.
pub mod hparams;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::data::files::FileContext;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use self::hparams::Hparams;
use super::{EncodedPair, PairEncoder, Scorer, encode_all};
use crate::{
    data::tokenizer::Tokenizer,
    device::Device,
    models::{
        transformer::weights::DenseLinear as Linear,
        weights::{resolve, safetensors::Checkpoint},
        xlm_roberta::{Encoder, LastLayer, XlmRoberta, XlmRobertaConfig, batches},
    },
    ops::{
        activation::{Activation, activation_forward},
        gemm::linear_forward,
        mix::mix,
        rows::cast,
    },
    tensor::{DType, Tensor},
};

/// The published layout's files.
pub const HPARAMS: &str = "hparams.yaml";
/// The published layout's weights, of Lightning's form.
pub const CHECKPOINT: &str = "checkpoints/model.ckpt";
/// `model_type` of a converted directory's config.json.
pub const MODEL_TYPE: &str = "cometkiwi";

/// The hub's name of the published model.
pub const PUBLISHED: &str = "Unbabel/wmt22-cometkiwi-da";

/// What to fetch, from where, under which terms.
const WHAT_IS_NEEDED: &str = "CometKiwi needs hparams.yaml and checkpoints/model.ckpt of Unbabel/wmt22-cometkiwi-da (gated: accept its licence, CC-BY-NC-SA-4.0, \
    non-commercial, on its page, then `hf download Unbabel/wmt22-cometkiwi-da`), and config.json with tokenizer.json or sentencepiece.bpe.model of \
    microsoft/infoxlm-large (`hf download microsoft/infoxlm-large`); or a directory that `sdrrl import` made of them";

/// A CometKiwi model's files, found and read, the weights only mapped.
pub struct Files {
    /// The encoder's config.json.
    pub encoder: Value,
    /// hparams.yaml.
    pub hparams: Value,
    /// The weights' file, where they are Lightning's.
    pub pickle: Option<PathBuf>,
    /// Where the tokenizer's files are.
    pub tokenizer: PathBuf,
    /// The model's directory.
    pub dir: PathBuf,
}

impl Files {
    /// Finds the files of `model`: a converted directory, or one of the published layout, whose encoder's config.json and tokenizer stand
    /// beside hparams.yaml, in `encoder`, or in the local Hugging Face cache under the name that hparams.yaml gives.
    pub fn find(model: &str, encoder: Option<&str>) -> Result<Files> {
        Files::look(model, encoder).context(WHAT_IS_NEEDED)
    }

    fn look(model: &str, encoder: Option<&str>) -> Result<Files> {
        let dir = resolve(model)?;
        let config = dir.join("config.json");
        if config.exists() {
            let value: Value = serde_json::from_str(&read(&config)?)
                .with_context(|| format!("{} is not JSON", config.display()))?;
            if value["model_type"] == MODEL_TYPE {
                let [encoder, hparams] = ["encoder", "hparams"].map(|key| value[key].clone());
                return Ok(Files { encoder, hparams, pickle: None, tokenizer: dir.clone(), dir });
            }
        }
        let yaml = dir.join(HPARAMS);
        let hparams = hparams::parse_yaml(&read(&yaml)?).with_context(|| format!("{}", yaml.display()))?;
        let pickle = dir.join(CHECKPOINT);
        ensure!(pickle.exists(), "{} does not exist", pickle.display());
        let pretrained =
            Hparams::from_value(&hparams).with_context(|| format!("{}", yaml.display()))?.pretrained_model;
        let source = match (encoder, config.exists()) {
            (Some(encoder), _) => resolve(encoder)?,
            (None, true) => dir.clone(),
            (None, false) => resolve(&pretrained).with_context(|| format!("the encoder {pretrained}"))?,
        };
        let config = source.join("config.json");
        let encoder: Value = serde_json::from_str(&read(&config)?)
            .with_context(|| format!("{} is not JSON", config.display()))?;
        Ok(Files { encoder, hparams, pickle: Some(pickle), tokenizer: source, dir })
    }

    fn config(&self) -> Result<XlmRobertaConfig> {
        XlmRobertaConfig::from_value(self.encoder.clone()).context("the encoder's config.json")
    }

    /// The config.json of a converted directory.
    pub fn converted_config(&self) -> Value {
        json!({"model_type": MODEL_TYPE, "encoder": self.encoder, "hparams": self.hparams})
    }
}

/// Longest text file of settings that is read, bytes.
const LONGEST: u64 = 1 << 20;

fn read(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path).reading(path)?.len();
    ensure!(size <= LONGEST, "{} has {size} bytes: no settings are that long", path.display());
    crate::data::json::read_text(path).reading(path)
}

/// Tokenizer and limits of a model.
pub struct KiwiText {
    tokenizer: Tokenizer,
    /// Tokens of a pair at most.
    longest: usize,
    bos: u32,
    eos: u32,
    pad: u32,
}

impl KiwiText {
    /// Reads the tokenizer of `files`.
    pub fn load(files: &Files) -> Result<KiwiText> {
        let config = files.config()?;
        let tokenizer = Tokenizer::load(&files.tokenizer).context(WHAT_IS_NEEDED)?;
        ensure!(
            tokenizer.vocab_size() <= config.vocab_size,
            "the tokenizer has {} tokens, the encoder {}: do they belong together?",
            tokenizer.vocab_size(),
            config.vocab_size
        );
        let (bos, eos, pad) = (config.bos_token_id, config.eos_token_id, config.pad_token_id);
        Ok(KiwiText { tokenizer, longest: config.max_tokens(), bos, eos, pad })
    }
}

impl PairEncoder for KiwiText {
    /// `<s> translation </s></s> source </s>`, as unbabel-comet makes it: either side is cut to what is left of the positions less 2 with
    /// its own `<s>` and `</s>`, then the whole to the positions. The text of special tokens counts as such, and padding is dropped.
    fn encode(&self, source: &str, translation: &str) -> Result<EncodedPair> {
        let mut cut = false;
        let mut side = |text: &str| -> Result<Vec<u32>> {
            let mut ids = self.tokenizer.encode_with_special(text)?;
            cut |= ids.len() > self.longest.saturating_sub(4);
            ids.truncate(self.longest.saturating_sub(4));
            ids.retain(|&id| id != self.pad);
            Ok(ids)
        };
        let (bos, eos) = (self.bos, self.eos);
        let mut ids = [&[bos], &side(translation)?[..], &[eos, eos], &side(source)?[..], &[eos]].concat();
        cut |= ids.len() > self.longest;
        ids.truncate(self.longest);
        Ok(EncodedPair { ids: vec![ids], cut })
    }
}

/// The scorer.
pub struct CometKiwi {
    name: String,
    model: XlmRoberta,
    encoder: Encoder,
    text: Arc<KiwiText>,
    /// Of each hidden state, gamma included.
    layer_weights: Vec<f32>,
    estimator: Vec<Linear>,
    batch_tokens: usize,
    cut: usize,
}

impl CometKiwi {
    /// Loads `files` with matrices as `dtype` onto `device`; `batch_tokens` are encoded at once.
    pub fn load(files: &Files, dtype: DType, device: &Device, batch_tokens: usize) -> Result<CometKiwi> {
        CometKiwi::with_text(files, Arc::new(KiwiText::load(files)?), dtype, device, batch_tokens)
    }

    /// As [`CometKiwi::load`], where the texts' part is loaded already.
    pub fn with_text(
        files: &Files,
        text: Arc<KiwiText>,
        dtype: DType,
        device: &Device,
        batch_tokens: usize,
    ) -> Result<CometKiwi> {
        let (hparams, config) = (Hparams::from_value(&files.hparams)?, files.config()?);
        let checkpoint = match &files.pickle {
            Some(path) => Checkpoint::open_file(path)?,
            None => Checkpoint::open(&files.dir)?,
        };
        let states = config.num_hidden_layers + 1;
        let scalar = |name: &str| -> Result<f32> {
            let t = checkpoint.tensor(&format!("layerwise_attention.{name}"), &[1], DType::F32)?;
            Ok(t.f32()?[0])
        };
        let layer_weights = if hparams.sent_layer == "mix" {
            let scalars: Vec<f32> =
                (0..states).map(|i| scalar(&format!("scalar_parameters.{i}"))).collect::<Result<_>>()?;
            let extra = format!("layerwise_attention.scalar_parameters.{states}");
            ensure!(!checkpoint.has(&extra), "there are more scalars than the encoder's {states} states");
            hparams.layer_weights(&scalars, scalar("gamma")?)?
        } else {
            hparams.layer_weights(&vec![0.0; states], 1.0)?
        };
        let estimator = estimator(&checkpoint, &hparams, config.hidden_size, dtype)?;
        let model = XlmRoberta::from_checkpoint(config, &checkpoint, dtype)?;
        let (model, estimator) = match device {
            Device::Cpu => (model, estimator),
            Device::Cuda(_) => {
                let put = |l: &Linear| -> Result<Linear> {
                    let bias = l.bias.as_ref().map(|b| b.to_device(device)).transpose()?;
                    Ok(Linear { weight: l.weight.to_device(device)?, bias })
                };
                (model.to_device(device)?, estimator.iter().map(put).collect::<Result<_>>()?)
            }
        };
        let batch_tokens = batch_tokens.max(model.config.max_tokens());
        let encoder = Encoder::new(&model, batch_tokens, LastLayer::First)?;
        let name = files.dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let name = format!("cometkiwi {name}");
        Ok(CometKiwi { name, model, encoder, text, layer_weights, estimator, batch_tokens, cut: 0 })
    }

    /// The ids that the encoder reads of a pair.
    pub fn token_ids(&self, source: &str, translation: &str) -> Result<Vec<u32>> {
        Ok(self.text.encode(source, translation)?.ids.concat())
    }

    /// The scores of pairs that are token ids.
    pub fn score_ids(&mut self, pairs: &[&[u32]]) -> Result<Vec<f32>> {
        let lengths: Vec<usize> = pairs.iter().map(|p| p.len()).collect();
        let mut scores = vec![0.0; pairs.len()];
        for batch in batches(&lengths, self.batch_tokens) {
            let sentences: Vec<&[u32]> = batch.iter().map(|&i| pairs[i]).collect();
            let mixed = self.mixed(&sentences)?;
            for (i, score) in batch.into_iter().zip(self.estimate(mixed)?) {
                scores[i] = score;
            }
        }
        Ok(scores)
    }

    /// gamma Σ_l w_l h_l of each sentence's first token, (sentences, C) of the activations' type.
    fn mixed(&mut self, sentences: &[&[u32]]) -> Result<Tensor> {
        let (n, c) = (sentences.len(), self.model.config.hidden_size);
        let mut sum = Tensor::zeros_on(&self.model.device(), "mixed", DType::F32, &[n, c])?;
        let mut acts = None;
        let weights = &self.layer_weights;
        self.encoder.forward(&self.model, sentences, &mut |s| {
            acts = Some(s.states.dtype());
            mix(&mut sum, s.states, s.first, weights[s.layer])
        })?;
        let acts = acts.context("no sentences")?;
        if acts == DType::F32 {
            return Ok(sum);
        }
        let mut mixed = Tensor::zeros_on(&sum.device(), "mixed", acts, &[n, c])?;
        cast(&mut mixed, &sum, 1.0)?;
        Ok(mixed)
    }

    fn estimate(&self, mixed: Tensor) -> Result<Vec<f32>> {
        let (n, _) = mixed.rows_cols();
        let mut x = mixed;
        for (i, layer) in self.estimator.iter().enumerate() {
            let dims = [n, layer.weight.shape()[0]];
            let make = || Tensor::zeros_on(&x.device(), "estimator", x.dtype(), &dims);
            let mut out = make()?;
            linear_forward(&mut out, &x, &layer.weight, layer.bias.as_ref())?;
            if i + 1 < self.estimator.len() {
                let mut act = make()?;
                activation_forward(&mut act, &out, Activation::Tanh)?;
                out = act;
            }
            x = out;
        }
        x.to_f32_vec()
    }
}

/// The estimator's linear layers; `estimator.ff` counts activations and dropouts too.
fn estimator(checkpoint: &Checkpoint, hparams: &Hparams, inp: usize, dtype: DType) -> Result<Vec<Linear>> {
    let mut inp = inp;
    let mut layers = vec![];
    for (i, &out) in hparams.hidden_sizes.iter().chain([&1]).enumerate() {
        let name = |kind: &str| format!("estimator.ff.{}.{kind}", 3 * i);
        let weight = checkpoint.tensor(&name("weight"), &[out, inp], dtype)?;
        layers.push(Linear { weight, bias: Some(checkpoint.tensor(&name("bias"), &[out], DType::F32)?) });
        inp = out;
    }
    Ok(layers)
}

impl Scorer for CometKiwi {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn score(&mut self, pairs: &[(String, String)]) -> Result<Vec<f64>> {
        let encoded = encode_all(&*self.text, pairs)?;
        self.score_encoded(pairs, &encoded)
    }

    fn score_encoded(&mut self, pairs: &[(String, String)], encoded: &[EncodedPair]) -> Result<Vec<f64>> {
        self.cut += encoded.iter().filter(|e| e.cut).count();
        let ids: Vec<&[u32]> = encoded.iter().flat_map(|e| &e.ids).map(Vec::as_slice).collect();
        let scores = self.score_ids(&ids)?;
        if let Some(i) = scores.iter().position(|s| !s.is_finite()) {
            anyhow::bail!(
                "{}: the score of {:?} is {}: are the weights damaged?",
                self.name,
                pairs[i],
                scores[i]
            );
        }
        Ok(scores.into_iter().map(f64::from).collect())
    }

    fn cut(&self) -> usize {
        self.cut
    }
}
