//! `sdrrl merge`: a model with its adapter folded in, as a Hugging Face directory.
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::pipeline::placement::parse_dtype;
use crate::{
    data::tokenizer::Tokenizer,
    infer::{
        engine::{Engine, EngineOptions},
        scoring::ScoreRequest,
    },
    models::{transformer::lora::Lora, transformer::weights::Llama, weights::resolve},
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
    /// Data type of the weights on disk: f32 or bf16
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    pub dtype: DType,
}

/// What the merged model is checked on.
const PROBE: &str = "The quick brown fox jumps over the lazy dog. 0123456789 El zorro marrón salta.";

/// Merges in f32, casts once, writes, and says how far the written model's log-probabilities are from those of the merge in f32.
pub fn run(args: &Args) -> Result<()> {
    let path = resolve(&args.model)?;
    ensure!(args.out != path, "{} is the base model itself: choose another --out", path.display());
    let tokenizer = Tokenizer::load(&path)?;
    let mut model = Llama::load(&path, DType::F32)?;
    let lora = Lora::load(&args.adapter, &model)?;
    let before = probe(&model, &tokenizer)?;
    model.apply_adapter(&lora)?;
    let merged = probe(&model, &tokenizer)?;
    model.save_pretrained(&args.out, args.dtype, path.is_dir().then_some(path.as_path()))?;
    if !path.is_dir() {
        tokenizer.save(&args.out)?;
        println!("merge: the base was quantised; the merged weights are of its dequantised values");
    }
    drop(model);
    let written = probe(&Llama::load(&args.out, args.dtype)?, &tokenizer)?;
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0f32, f32::max);
    println!(
        "merge: written to {} as {}; largest difference of log-probabilities on a probe text: {:.2e} to the merge in f32, {:.2e} to the base",
        args.out.display(),
        args.dtype.suffix(),
        distance(&written, &merged),
        distance(&written, &before)
    );
    Ok(())
}

fn probe(model: &Llama, tokenizer: &Tokenizer) -> Result<Vec<f32>> {
    let mut engine = Engine::new(model, EngineOptions::default())?;
    let mut tokens = tokenizer.encode(PROBE, true)?;
    tokens.truncate(engine.context());
    Ok(engine.log_probs(&[ScoreRequest { tokens, start: 1 }], &mut |_| {})?.concat())
}
