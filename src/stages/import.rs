//! `sdrrl import`: published PyTorch checkpoints as a safetensors directory that maps: CometKiwi's hparams.yaml + model.ckpt, or a Hugging
//! Face directory with pytorch_model.bin or its shards (NLLB-200). Nothing in the pickles is executed.
use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::error::Error;
use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::merge::MODEL_FILES;
use crate::pipeline::{
    identity::{Identity, Inputs},
    manifest::Counts,
    stage::{self, Made, Open, Stage},
};
use crate::{
    data::tokenizer::Tokenizer,
    models::weights::{
        convert::pickles_to_safetensors,
        resolve,
        safetensors::{Checkpoint, read_index},
    },
    qe::cometkiwi::{Files, HPARAMS, hparams::Hparams},
    report::out::say,
};

/// Arguments of `import`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Directory with the published files, or a name in the local Hugging Face cache
    #[arg(long)]
    pub model: String,
    /// For CometKiwi: where its encoder's config.json and tokenizer are (default: beside the model, else the name in hparams.yaml)
    #[arg(long)]
    pub encoder: Option<String>,
    /// Directory to write
    #[arg(long)]
    pub out: PathBuf,
}

/// Files that go along unchanged.
const COMPANIONS: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
];

/// What is converted.
enum Source {
    /// A published CometKiwi, and its weights' file.
    CometKiwi(Box<Files>, PathBuf),
    /// The folder of a model, and the files of its weights.
    Weights(PathBuf, Vec<PathBuf>),
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    stage::run(&mut Import { args, source: source(args)? }).map(drop)
}

struct Import<'a> {
    args: &'a Args,
    source: Source,
}

impl Stage for Import<'_> {
    const NAME: &'static str = "import";
    const FILES: &'static [&'static str] = MODEL_FILES;

    fn out(&self) -> &Path {
        &self.args.out
    }

    fn whole(&self) -> bool {
        true
    }

    fn identity(&self) -> Result<Identity> {
        Identity::of(&json!({}))
    }

    fn inputs(&self) -> Result<Inputs> {
        match &self.source {
            Source::CometKiwi(files, pickle) => {
                let inputs = Inputs::new().file("model/model.ckpt", pickle);
                let inputs = inputs.file("model/hparams.yaml", &files.dir.join(HPARAMS));
                inputs.tokenizer("encoder", &files.tokenizer)
            }
            Source::Weights(dir, files) => {
                let companions = COMPANIONS.iter().map(|name| dir.join(name)).filter(|path| path.is_file());
                let read = files.iter().cloned().chain([dir.join("config.json")]).chain(companions);
                let named = |path: PathBuf| {
                    (format!("model/{}", path.file_name().unwrap_or_default().to_string_lossy()), path)
                };
                Ok(Inputs::new().files(read.map(named).collect()))
            }
        }
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let out = open.dir();
        let (made, from) = match &self.source {
            Source::CometKiwi(files, pickle) => {
                // What scoring reads; dropout masks, taggers and position numbers stay behind.
                let wanted = |name: &str| {
                    ["encoder.", "estimator.", "layerwise_attention."].iter().any(|p| name.starts_with(p))
                        && !name.contains(".dropout_")
                };
                let made = convert(std::slice::from_ref(pickle), out, &wanted)?;
                open.write("config.json", format!("{:#}\n", files.converted_config()).as_bytes())?;
                if !files.tokenizer.join("tokenizer.json").is_file() {
                    // A SentencePiece file is laid out as the encoder's config.json says, which the new directory no longer has.
                    Tokenizer::load(&files.tokenizer)?.save(out)?;
                }
                (made, &files.tokenizer)
            }
            Source::Weights(dir, files) => {
                let made = convert(files, out, &|_| true)?;
                copy(dir, out, "config.json")?;
                (made, dir)
            }
        };
        COMPANIONS
            .iter()
            .filter(|name| from.join(name).is_file())
            .try_for_each(|name| copy(from, out, name))?;
        Ok(made.saying(format!("import: written to {}", self.args.out.display())))
    }
}

/// Finds the files; whatever is not there is an error before anything is begun.
fn source(args: &Args) -> Result<Source> {
    let dir = resolve(&args.model)?;
    let missing = || Error::not_found(&dir, format!("{} is not a directory", dir.display()));
    ensure!(dir.is_dir(), missing());
    if dir.join(HPARAMS).exists() {
        let files = Files::find(&args.model, args.encoder.as_deref())?;
        Hparams::from_value(&files.hparams)?;
        let pickle = files.pickle.clone().context("the directory is converted already")?;
        return Ok(Source::CometKiwi(Box::new(files), pickle));
    }
    let (single, index) = (dir.join("pytorch_model.bin"), dir.join("pytorch_model.bin.index.json"));
    let files: Vec<PathBuf> = if single.exists() {
        vec![single]
    } else if index.exists() {
        Checkpoint::open_shards(&index)?;
        read_index(&index)?.into_keys().map(|name| dir.join(name)).collect()
    } else {
        anyhow::bail!(
            "{} has neither {HPARAMS} nor pytorch_model.bin nor its index: there is nothing to convert{}",
            dir.display(),
            if dir.join("model.safetensors").exists() {
                " (it is a safetensors directory already)"
            } else {
                ""
            }
        )
    };
    ensure!(dir.join("config.json").exists(), "{} has no config.json", dir.display());
    Ok(Source::Weights(dir, files))
}

fn convert(files: &[PathBuf], out: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Made> {
    let done = pickles_to_safetensors(files, out, wanted)?;
    say!(
        "import: {} tensors, {:.2} GiB; {} shared with another were not written twice, {} are no weights",
        done.tensors,
        done.bytes as f64 / (1u64 << 30) as f64,
        done.aliases.len(),
        done.left_out.len()
    );
    if let [first, ..] = &done.narrowed[..] {
        let n = done.narrowed.len();
        say!("import: {n} tensors of 64-bit floats ({first} ...) were rounded to 32 bits");
    }
    let counts = Counts { read: done.read, written: done.tensors, ..Counts::default() }
        .dropping("the memory of another tensor", done.aliases.len())
        .dropping("no weights", done.left_out.len());
    let made = Made::new(
        json!({"tensors": done.tensors, "shared": done.aliases.len(), "no-weights": done.left_out.len(),
        "rounded": done.narrowed.len()}),
    )?;
    Ok(made.counting(counts))
}

fn copy(from: &Path, out: &Path, name: &str) -> Result<()> {
    let source = from.join(name);
    fs::copy(&source, out.join(name))
        .with_context(|| format!("copy {} to {}", source.display(), out.display()))?;
    Ok(())
}
