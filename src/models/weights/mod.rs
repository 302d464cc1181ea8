//! Checkpoint formats in and out.
pub mod convert;
pub mod export;
pub mod gguf;
pub mod peft;
pub mod pickle;
pub mod safetensors;

use std::{collections::HashSet, path::Path};

use crate::error::Error;
use anyhow::{Context, Result, bail, ensure};

use crate::{
    device::host_memory,
    models::transformer::{
        config::Config,
        spec::Spec,
        tree::Leaf,
        weight::{ComputeType, Weight},
    },
    tensor::{DType, Tensor},
};

/// Where a decoder's tensors are read from.
pub enum WeightSource {
    /// A directory with model.safetensors or pytorch_model.bin, or shards of either and their index.
    Safetensors(safetensors::Checkpoint),
    /// One .gguf file.
    Gguf(gguf::Checkpoint),
}

impl WeightSource {
    /// Opens a Hugging Face directory or a `.gguf` file and reads its configuration.
    pub fn open(path: &Path) -> Result<(Config, WeightSource)> {
        if path.is_dir() {
            let config = Config::from_dir(path)?;
            return Ok((config, WeightSource::Safetensors(safetensors::Checkpoint::open(path)?)));
        }
        let missing = || {
            format!(
                "model {} does not exist: give a Hugging Face directory, a .gguf file, or the name of a model in the local Hugging Face cache",
                path.display()
            )
        };
        ensure!(path.exists(), Error::not_found(path, missing()));
        let file = crate::data::gguf::Gguf::open(path)?;
        let config = Config::from_gguf(&file)?;
        let checkpoint = gguf::Checkpoint::new(file, &config)?;
        Ok((config, WeightSource::Gguf(checkpoint)))
    }

    /// A decoder's tensor as `dtype`: in place in the mapped file where it stands there in that type, else converted.
    pub fn leaf(&self, leaf: &Leaf, dtype: DType) -> Result<Tensor> {
        match self {
            WeightSource::Safetensors(c) => c.tensor(&leaf.name, &leaf.dims, dtype),
            WeightSource::Gguf(c) => c.leaf(leaf, dtype),
        }
    }

    /// The matrix of `leaf` for a run that computes in `compute`; with `keep_blocks`, a GGUF file's stays as it lies in the mapped file, whatever its
    /// type: no copy, nothing unpacked.
    pub fn weight(&self, leaf: &Leaf, compute: ComputeType, keep_blocks: bool) -> Result<Weight> {
        match self {
            WeightSource::Gguf(c) if keep_blocks => c.weight(leaf, compute),
            _ => self.leaf(leaf, compute.dtype()).map(Weight::Dense),
        }
    }

    /// Refuses a checkpoint with a tensor that the decoder has no place for: what it does with it would be left out.
    pub fn check_leaves(&self, spec: &Spec) -> Result<()> {
        let leaves = spec.leaves();
        let (names, places): (Vec<&str>, HashSet<String>) = match self {
            WeightSource::Safetensors(c) => {
                (c.names(), leaves.iter().map(|leaf| safetensors::canonical(&leaf.name).into()).collect())
            }
            WeightSource::Gguf(c) => (c.names(), leaves.iter().map(|leaf| leaf.place.gguf()).collect()),
        };
        // A tied head may be written twice; the rotary frequencies follow from the configuration.
        let known = |name: &str| {
            places.contains(name)
                || name.ends_with("rotary_emb.inv_freq")
                || (spec.tied_head && name == "lm_head.weight")
        };
        if let Some(name) = names.iter().find(|name| !known(name)) {
            let message = format!(
                "tensor {name} has no place in this model: its configuration does not tell what it is for"
            );
            bail!(Error::unsupported(name, message));
        }
        Ok(())
    }
}

/// Refuses to start what cannot fit: `bytes` against what the machine has free.
pub fn check_memory(what: &str, bytes: usize) -> Result<()> {
    let Some((_, available)) = host_memory() else { return Ok(()) };
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let message = || {
        format!(
            "{what} needs {:.2} GiB, but only {:.2} GiB of memory are available: use --dtype bf16, a smaller model or a smaller batch",
            gib(bytes as u64),
            gib(available)
        )
    };
    ensure!(bytes as u64 <= available, Error::out_of_memory(message()));
    Ok(())
}

/// The directory or file that `model` names: a path, or a model of the local Hugging Face cache (`org/name`).
pub fn resolve(model: &str) -> Result<std::path::PathBuf> {
    let path = Path::new(model);
    if path.exists() || model.split('/').count() != 2 || model.starts_with(['.', '/']) {
        return Ok(path.into());
    }
    let home = std::env::var_os("HF_HOME")
        .map(Into::into)
        .or_else(|| std::env::var_os("HOME").map(|h| Path::new(&h).join(".cache/huggingface")));
    let cache: std::path::PathBuf = home.context("neither HF_HOME nor HOME is set")?;
    let snapshots = cache.join("hub").join(format!("models--{}", model.replace('/', "--"))).join("snapshots");
    let mut found: Vec<_> = std::fs::read_dir(&snapshots)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.join("config.json").exists() || p.join("hparams.yaml").exists())
        .collect();
    found.sort();
    let missing = || {
        format!(
            "model {model} is neither a path nor in the local cache {}; fetch it once with `huggingface-cli download {model}`",
            snapshots.display()
        )
    };
    found.pop().ok_or_else(|| Error::not_found(path, missing()).into())
}
