//! `sdrrl merge`: a model with its adapter folded in, as a Hugging Face directory.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::pipeline::{
    identity::{Identity, Inputs},
    manifest::Manifest,
    rows::apart,
    stage::{self, Made, Open, Stage},
    work_dir::CARD,
};
use crate::{
    data::{json::read_text, tokenizer::Tokenizer},
    infer::{
        engine::{Engine, EngineOptions},
        scoring::ScoreRequest,
    },
    models::{
        transformer::lora::Lora,
        transformer::weights::Transformer,
        weights::{WeightSource, export::copy_file, hub, resolve, stored::Stored},
    },
    report::out::say,
    stages::{
        model_card::{self, Merged},
        train::card::in_words,
    },
    tensor::DType,
};

/// Arguments of `merge`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The base model: a Hugging Face directory, a .gguf file, or a name in the local Hugging Face cache
    #[arg(long)]
    pub model: String,
    /// Adapter directory (PEFT)
    #[arg(long)]
    pub adapter: PathBuf,
    /// Directory for the merged model
    #[arg(long)]
    pub out: PathBuf,
    /// Data type of the weights on disk: f32, bf16 or f16 [default: that of the base; f32 if it is quantised]
    #[arg(long)]
    pub dtype: Option<Stored>,
}

/// What makes a folder a model: none of these is ever written over.
pub(super) const MODEL_FILES: &[&str] = &[
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
];

/// What the merged model is checked on.
const PROBE: &str = "The quick brown fox jumps over the lazy dog. 0123456789 El zorro marrón salta.";

/// What an adapter's folder may have of its own.
const TEMPLATE: &str = "chat_template.jinja";

/// Merges in f32, casts once, writes, and says how far the written model's log-probabilities are from those of the merge in f32.
pub fn run(args: &Args) -> Result<()> {
    let base = resolve(&args.model)?;
    let stored = match args.dtype {
        Some(stored) => stored,
        None => WeightSource::open(&base)?.1.stored().unwrap_or(Stored::F32),
    };
    stage::run(&mut Merge { args, base, stored }).map(drop)
}

struct Merge<'a> {
    args: &'a Args,
    base: PathBuf,
    stored: Stored,
}

impl Stage for Merge<'_> {
    const NAME: &'static str = "merge";
    const FILES: &'static [&'static str] = MODEL_FILES;

    fn out(&self) -> &Path {
        &self.args.out
    }

    fn check_folder(&self, _: &Manifest) -> Result<()> {
        apart(&self.base, self.out())?;
        apart(&self.args.adapter, self.out())
    }

    fn identity(&self) -> Result<Identity> {
        Identity::of(&json!({"dtype": self.stored.to_string()}))
    }

    fn inputs(&self) -> Result<Inputs> {
        Inputs::new().model("model", &self.base)?.model("adapter", &self.args.adapter)
    }

    fn run(&mut self, _: &mut Open) -> Result<Made> {
        let (args, path) = (self.args, &self.base);
        let tokenizer = Tokenizer::load(path)?;
        let mut model = Transformer::load(path, DType::F32)?;
        let lora = Lora::load(&args.adapter, &model)?;
        let before = probe(&model, &tokenizer)?;
        finite(&before, "the base")?;
        model.apply_adapter(&lora)?;
        let merged = probe(&model, &tokenizer)?;
        finite(&merged, "the merged model")?;
        model.save_pretrained(&args.out, self.stored, path.is_dir().then_some(path.as_path()))?;
        if !path.is_dir() {
            tokenizer.save(&args.out)?;
            say!("merge: the base was a GGUF file; the merged weights are of its dequantised values");
        }
        // The template that the adapter was trained with.
        copy_file(&args.adapter, &args.out, TEMPLATE)?;
        self.write_card(&lora)?;
        drop(model);
        let written = probe(&Transformer::load(&args.out, DType::F32)?, &tokenizer)?;
        finite(&written, "the written model")?;
        let (to_merge, to_base) = (distance(&written, &merged), distance(&written, &before));
        ensure!(
            self.stored != Stored::F32 || to_merge == 0.0,
            "the model in {} differs from what was to be written by {to_merge} in its log-probabilities: is the disk broken?",
            args.out.display()
        );
        let made = Made::new(json!({"to-merge-in-f32": to_merge, "to-base": to_base}))?;
        Ok(made.saying(format!(
            "merge: written to {} as {}; largest difference of log-probabilities on a probe text: {to_merge:.2e} to the merge in f32, {to_base:.2e} to the base",
            args.out.display(),
            self.stored
        )))
    }
}

impl Merge<'_> {
    fn write_card(&self, lora: &Lora) -> Result<()> {
        let (base, _) = hub::reference(&self.args.model)?;
        let merged = Merged {
            base: &base,
            on_hub: !Path::new(&base).is_absolute(),
            adapter: in_words(&lora.config),
            dtype: self.stored.to_string(),
            card: read_text(&self.args.adapter.join(CARD)).ok(),
        };
        model_card::write(self.out(), &merged.text(), Self::NAME)
    }
}

/// The largest difference.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// An error unless every log-probability is a number.
fn finite(log_probs: &[f32], whose: &str) -> Result<()> {
    let broken = log_probs.iter().position(|x| !x.is_finite());
    broken.map_or(Ok(()), |i| Err(anyhow::anyhow!("NaN or infinity at token {i}"))).with_context(|| {
        format!("the log-probabilities of {whose} on a probe text are no numbers: its weights are broken, or too large for their type")
    })
}

fn probe(model: &Transformer, tokenizer: &Tokenizer) -> Result<Vec<f32>> {
    let mut engine = Engine::new(model, EngineOptions::default())?;
    let mut tokens = tokenizer.encode(PROBE, true)?;
    tokens.truncate(engine.context());
    Ok(engine.log_probs(&[ScoreRequest { tokens, start: 1 }], &mut |_| {})?.concat())
}
