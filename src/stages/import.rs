//! `sdrrl import`: published PyTorch checkpoints as a safetensors directory that maps: CometKiwi's hparams.yaml + model.ckpt, or a Hugging
//! Face directory with pytorch_model.bin or its shards (NLLB-200). Nothing in the pickles is executed.
use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::error::Error;
use anyhow::{Context, Result, ensure};

use crate::{
    data::{
        files::{write_atomic, write_error},
        tokenizer::Tokenizer,
    },
    models::weights::{convert::pickles_to_safetensors, resolve, safetensors::shard_names},
    pipeline::lock,
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

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    let dir = resolve(&args.model)?;
    let missing = || Error::not_found(&dir, format!("{} is not a directory", dir.display()));
    ensure!(dir.is_dir(), missing());
    let there = || format!("{} exists: choose another --out, or remove it", args.out.display());
    ensure!(!args.out.exists(), Error::exists(&args.out, there()));
    let name = args.out.file_name().context("--out has no name")?.to_string_lossy();
    // Beside the result, so that it can be renamed; nobody else has this name, so that what a killed run left there is ours.
    let partial = args.out.with_file_name(format!(".{name}.sdrrl-import.partial"));
    let beside = args.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(beside).map_err(|e| write_error(beside, e))?;
    let _held = lock::beside(&args.out, "import")?;
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(|e| write_error(&partial, e))?;
    }
    fs::create_dir_all(&partial).map_err(|e| write_error(&partial, e))?;
    let result = if dir.join(HPARAMS).exists() { cometkiwi(args, &partial) } else { plain(&dir, &partial) };
    if result.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    result?;
    fs::rename(&partial, &args.out).map_err(|e| write_error(&args.out, e))?;
    say!("import: written to {}", args.out.display());
    Ok(())
}

fn cometkiwi(args: &Args, out: &Path) -> Result<()> {
    let files = Files::find(&args.model, args.encoder.as_deref())?;
    Hparams::from_value(&files.hparams)?;
    let pickle = files.pickle.clone().context("the directory is converted already")?;
    // What scoring reads; dropout masks, taggers and position numbers stay behind.
    let wanted = |name: &str| {
        ["encoder.", "estimator.", "layerwise_attention."].iter().any(|p| name.starts_with(p))
            && !name.contains(".dropout_")
    };
    convert(&[pickle], out, &wanted)?;
    write_atomic(&out.join("config.json"), format!("{:#}\n", files.converted_config()).as_bytes())?;
    if !files.tokenizer.join("tokenizer.json").is_file() {
        // A SentencePiece file is laid out as the encoder's config.json says, which the new directory no longer has.
        Tokenizer::load(&files.tokenizer)?.save(out)?;
    }
    companions(&files.tokenizer, out)
}

fn plain(dir: &Path, out: &Path) -> Result<()> {
    let (single, index) = (dir.join("pytorch_model.bin"), dir.join("pytorch_model.bin.index.json"));
    let files: Vec<PathBuf> = if single.exists() {
        vec![single]
    } else if index.exists() {
        shard_names(&index)?.into_iter().map(|name| dir.join(name)).collect()
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
    convert(&files, out, &|_| true)?;
    copy(dir, out, "config.json")?;
    companions(dir, out)
}

fn convert(files: &[PathBuf], out: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
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
    Ok(())
}

fn companions(from: &Path, out: &Path) -> Result<()> {
    COMPANIONS.iter().filter(|name| from.join(name).is_file()).try_for_each(|name| copy(from, out, name))
}

fn copy(from: &Path, out: &Path, name: &str) -> Result<()> {
    let source = from.join(name);
    fs::copy(&source, out.join(name))
        .with_context(|| format!("copy {} to {}", source.display(), out.display()))?;
    Ok(())
}
