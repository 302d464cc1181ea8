//! Checkpoint formats in and out.
mod bitsandbytes;
pub mod convert;
mod elements;
pub mod export;
pub mod finite;
pub mod gguf;
pub mod hub;
pub mod peft;
pub mod pickle;
pub mod recognise;
pub mod safetensors;
mod shard_index;
pub mod stored;
pub mod to_gguf;

pub use hub::resolve;

use std::{collections::HashSet, path::Path};

use crate::error::Error;
use anyhow::{Result, bail, ensure};

use crate::{
    device::host_memory,
    models::transformer::{
        config::Config,
        gguf_fields::is_rope_factors,
        spec::Spec,
        tree::Leaf,
        weight::{ComputeType, Weight},
    },
    report::out::note,
    tensor::{Activations, DType, Tensor},
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
            let mut config = Config::from_dir(path)?;
            let mut checkpoint = safetensors::Checkpoint::open(path)?;
            settle_head(&mut config, &mut checkpoint, path)?;
            return Ok((config, WeightSource::Safetensors(checkpoint)));
        }
        let missing = || {
            format!(
                "model {} does not exist: give a Hugging Face directory, a .gguf file, or the name of a model in the local Hugging Face cache",
                path.display()
            )
        };
        ensure!(path.exists(), Error::not_found(path, missing()));
        let weights =
            |e: &std::ffi::OsStr| ["safetensors", "bin", "pt", "pth"].iter().any(|other| e == *other);
        let alone = || {
            format!(
                "{} is a file of weights alone: give the folder that holds it with its config.json and tokenizer.json",
                path.display()
            )
        };
        ensure!(!path.extension().is_some_and(weights), Error::unsupported(path.display(), alone()));
        let file = crate::data::gguf::Gguf::open(path)?;
        let config = Config::from_gguf(&file)?;
        let checkpoint = gguf::Checkpoint::new(file, &config)?;
        Ok((config, WeightSource::Gguf(checkpoint)))
    }

    /// A decoder's tensor as `dtype`: in place in the mapped file where it stands there in that type, else converted.
    pub fn leaf(&self, leaf: &Leaf, dtype: DType) -> Result<Tensor> {
        match self {
            WeightSource::Safetensors(c) => c.leaf(leaf, dtype),
            WeightSource::Gguf(c) => c.leaf(leaf, dtype),
        }
    }

    /// The matrix of `leaf` for a run that computes in `compute`; with `blocks`, a GGUF file's stays as it lies in the mapped file, whatever its
    /// type (no copy, nothing unpacked), and its products read such activations; bitsandbytes' NF4 is kept in blocks of its own.
    pub fn weight(&self, leaf: &Leaf, compute: ComputeType, blocks: Option<Activations>) -> Result<Weight> {
        match self {
            WeightSource::Gguf(c) if blocks.is_some() => c.weight(leaf, compute, blocks.unwrap_or_default()),
            WeightSource::Safetensors(c) if blocks.is_some() => match c.blocks(leaf, compute.dtype())? {
                Some(blocks) => Ok(Weight::Blocks(blocks)),
                None => self.leaf(leaf, compute.dtype()).map(Weight::Dense),
            },
            _ => self.leaf(leaf, compute.dtype()).map(Weight::Dense),
        }
    }

    /// Bytes in memory of a decoder loaded with [`WeightSource::weight`]: matrices as `compute`, or the blocks of a .gguf file or of NF4 as they are; the others F32.
    ///
    /// # Errors
    /// A tensor that is not there or of another shape.
    pub fn bytes_loaded(&self, spec: &Spec, compute: ComputeType, keep_blocks: bool) -> Result<usize> {
        let one = |leaf: &Leaf| match self {
            WeightSource::Gguf(c) if keep_blocks && leaf.place.is_matrix() => c.bytes_kept(leaf, compute),
            WeightSource::Safetensors(c) if keep_blocks && c.bytes_kept(leaf).is_some() => {
                Ok(c.bytes_kept(leaf).unwrap_or_default())
            }
            _ => {
                let dtype = if leaf.place.is_matrix() { compute.dtype() } else { DType::F32 };
                Ok(leaf.dims.iter().product::<usize>() * dtype.bytes())
            }
        };
        spec.leaves().iter().map(one).sum()
    }

    /// Refuses a checkpoint with a tensor that the decoder has no place for, which would be left out, and one that lacks tensors.
    pub fn check_leaves(&self, spec: &Spec) -> Result<()> {
        let leaves = spec.leaves();
        let (names, places): (Vec<&str>, HashSet<String>) = match self {
            WeightSource::Safetensors(c) => (
                c.names(),
                leaves.iter().map(|leaf| safetensors::canonical(leaf.stored_name()).into()).collect(),
            ),
            WeightSource::Gguf(c) => (c.names(), leaves.iter().map(Leaf::gguf_name).collect()),
        };
        // A tied head may be written twice; the rotary frequencies follow from the configuration.
        let known = |name: &str| {
            places.contains(name)
                || name.ends_with("rotary_emb.inv_freq")
                || is_rope_factors(name)
                || (spec.tied_head && name == "lm_head.weight")
        };
        let strange: Vec<&&str> = names.iter().filter(|name| !known(name)).collect();
        if let Some((name, by)) = strange.iter().find_map(|n| Some((n, recognise::quantised_by(n)?))) {
            bail!(Error::unsupported(name, recognise::quantised_tensor(name, by)));
        }
        if let Some(name) = strange.first() {
            let message =
                format!("tensor {name} has no place in this model: {}", recognise::strange_tensor(name));
            bail!(Error::unsupported(name, message));
        }
        let there: HashSet<&str> = names.iter().copied().collect();
        let mut missing: Vec<&String> =
            places.iter().filter(|place| !there.contains(place.as_str())).collect();
        missing.sort();
        if let Some(first) = missing.first() {
            bail!(
                "{} of the model's {} tensors are not there, {first} to begin with: the download may be incomplete, or config.json belongs to other weights",
                missing.len(),
                places.len()
            );
        }
        Ok(())
    }
}

/// Tied weights as transformers reads them: a head of its own that differs from the embedding counts, whatever the configuration says; where only one of the two
/// is there, it is both.
fn settle_head(config: &mut Config, checkpoint: &mut safetensors::Checkpoint, path: &Path) -> Result<()> {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    const HEAD: &str = "lm_head.weight";
    if !config.tie_word_embeddings || !checkpoint.has(HEAD) {
        return Ok(());
    }
    if !checkpoint.has(EMBEDDING) {
        checkpoint.rename(HEAD, EMBEDDING);
    } else if !checkpoint.equal(HEAD, EMBEDDING)? {
        note!(
            "{}: config.json ties the head to the embedding, but the file has a head of its own with other values: that one is used",
            path.display()
        );
        config.tie_word_embeddings = false;
    }
    Ok(())
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

/// Rows of the embedding that a model's configuration says; `None` where there is none that can be read, as beside a tokenizer alone.
pub fn embedding_rows(path: &Path) -> Option<usize> {
    Config::of_model(path).ok().map(|c| c.vocab_size)
}
