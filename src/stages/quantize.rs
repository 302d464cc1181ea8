//! `sdrrl quantize`: a model, or an adapter alone, as a GGUF file for llama.cpp and what is built on it.
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    models::weights::{
        hub, resolve,
        to_gguf::{FileType, Written, write_adapter, write_model},
    },
    report::out::say,
};

/// Arguments of `quantize`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The model: a Hugging Face directory (as `sdrrl merge` writes it), a .gguf file, or a name in the local Hugging Face cache
    #[arg(long)]
    pub model: String,
    /// Write this adapter (PEFT) of the model instead, alone, for llama.cpp's --lora
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// The new .gguf file
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M or Q4_K_S, as llama.cpp mixes them [default: Q4_K_M; of an adapter F32]
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<FileType>,
    /// Quantise a .gguf file whose weights are quantised already, though that loses more than doing it once
    #[arg(long)]
    pub requantize: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let model = resolve(&args.model)?;
    let kind = |default: &str| args.kind.map_or_else(|| default.parse(), Ok);
    let (written, kind) = match &args.adapter {
        Some(adapter) => {
            let kind = kind("F32")?;
            (write_adapter(&model, adapter, &file_name(adapter), kind, &args.out)?, kind)
        }
        None => {
            let (kind, name) = (kind("Q4_K_M")?, hub::reference(&args.model)?.0);
            (write_model(&model, &file_name(Path::new(&name)), kind, args.requantize, &args.out)?, kind)
        }
    };
    let Written { bytes, types } = written;
    let types: Vec<String> = types.iter().map(|(name, n)| format!("{n} {name}")).collect();
    say!(
        "quantize: {} written as {kind}: {:.1} MiB, tensors {}",
        args.out.display(),
        bytes as f64 / (1 << 20) as f64,
        types.join(", ")
    );
    let (out, base) = (args.out.display(), &args.model);
    match args.adapter {
        Some(_) => {
            say!("next:  llama-cli -m MODEL.gguf --lora {out}, where MODEL.gguf is {base} as a GGUF file")
        }
        None => say!("next:  llama-cli -m {out}"),
    }
    Ok(())
}

/// The last part of a path or of a hub's name.
fn file_name(path: &Path) -> String {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.into());
    whole
        .file_stem()
        .filter(|_| whole.extension().is_some_and(|e| e == "gguf"))
        .or(whole.file_name())
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
