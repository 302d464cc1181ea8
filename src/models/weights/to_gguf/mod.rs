//! Models and adapters as GGUF files, for llama.cpp and what is built on it: the inverse of reading them, by the same names, layouts and orders of rows.
mod adapter;
mod file;
mod mix;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail, ensure};

use self::file::{Outgoing, Rows, Values};
pub use self::{adapter::write_adapter, mix::FileType};
use super::{WeightSource, safetensors};
use crate::{
    data::{
        gguf::{
            Gguf, GgufTensor,
            writer::{Metadata, values},
        },
        tokenizer::Tokenizer,
    },
    error::{Error, Kind},
    models::transformer::{
        config::Config,
        gguf_keys::{self, layout},
        spec::Spec,
        tree::{Leaf, Place},
    },
    ops::quantize::{GgmlType, PackedType, RowOrder},
    report::out::note,
};

/// llama.cpp's number for the blocks of today.
const QUANTIZATION_VERSION: usize = 2;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Of the file.
    pub bytes: u64,
    /// Tensors by the name of their type.
    pub types: BTreeMap<&'static str, usize>,
}

impl Written {
    fn of(tensors: &[Outgoing], bytes: u64) -> Written {
        let mut types = BTreeMap::new();
        tensors.iter().for_each(|t| *types.entry(t.kind.name()).or_default() += 1);
        Written { bytes, types }
    }
}

/// Writes the model in `source`, a Hugging Face directory or a `.gguf` file, to the new file `out`, under the name `name`. A file whose blocks would be made anew from blocks is refused
/// unless `requantize`, as llama.cpp does.
///
/// # Errors
/// What a GGUF file has no place for: fields, tensors, tokenizers; damaged weights; a file that is there. Nothing is left of a file that could not be finished.
pub fn write_model(
    source: &Path,
    name: &str,
    kind: FileType,
    requantize: bool,
    out: &Path,
) -> Result<Written> {
    file::refuse_existing(out)?;
    let (config, weights) = WeightSource::open(source)?;
    let spec = config.spec()?;
    weights.check_leaves(&spec).with_context(|| format!("model {}", source.display()))?;
    match &weights {
        WeightSource::Safetensors(c) => {
            let tokenizer = Tokenizer::load(source)?;
            let (metadata, tensors, settled) = of_directory(c, &config, &spec, &tokenizer, (name, kind))
                .with_context(|| format!("{} as a GGUF file", source.display()))
                .or_kind(|message| Error::unsupported(source.display(), message))?;
            let check = |path: &Path| {
                let gguf = Gguf::open(path)?;
                gguf_keys::check_read(&gguf, &spec)?;
                tokenizer.check_same(&Tokenizer::from_gguf(&gguf)?)
            };
            Ok(Written::of(&tensors, file::write(out, &metadata, &tensors, settled, &check)?))
        }
        WeightSource::Gguf(c) => {
            let (metadata, tensors) = of_gguf(c.file(), &config, &spec, kind, requantize)
                .with_context(|| source.display().to_string())?;
            let check = |path: &Path| gguf_keys::check_read(&Gguf::open(path)?, &spec);
            Ok(Written::of(&tensors, file::write(out, &metadata, &tensors, tensors.len(), &check)?))
        }
    }
}

/// The keys that every file of ours begins with.
fn general(architecture: &str, kind: &str, name: &str) -> Metadata {
    let mut m = Metadata::default();
    m.text("general.architecture", architecture);
    m.text("general.type", kind);
    m.text("general.name", name);
    m
}

/// The order in which a GGUF file has the rows of the tensor at `place`, and what is added to its values.
fn kept(config: &Config, place: Place) -> Result<(RowOrder, f32)> {
    let layout = layout(config)?;
    let rotated = matches!(place, Place::Weight(_, id) | Place::Bias(_, id) if id.is_rotated());
    let order = match rotated && layout.permuted {
        true => RowOrder::Interleaved(config.head_size()),
        false => RowOrder::Straight,
    };
    let gain = matches!(place, Place::Norm(..) | Place::FinalNorm);
    Ok((order, if gain { layout.gain_offset } else { 0.0 }))
}

/// Metadata and tensors of a directory; the first tensors, as many as the number says, belong to the settings.
fn of_directory<'a>(
    checkpoint: &'a safetensors::Checkpoint,
    config: &Config,
    spec: &Spec,
    tokenizer: &Tokenizer,
    (name, kind): (&str, FileType),
) -> Result<(Metadata, Vec<Outgoing<'a>>, usize)> {
    let architecture = layout(config)?.architecture;
    let mut m = general(architecture, "model", name);
    let factors = gguf_keys::write(config, spec, &mut m)?;
    m.count("general.file_type", kind.number())?;
    m.count("general.quantization_version", QUANTIZATION_VERSION)?;
    for left_out in tokenizer.to_gguf(spec.vocab_size, &mut m).context("its tokenizer")? {
        note!("quantize: {left_out}");
    }
    let settled = factors.len();
    let mut tensors: Vec<Outgoing> = factors
        .into_iter()
        .map(|(name, values)| Outgoing {
            name: name.into(),
            dims: vec![values.len()],
            kind: GgmlType::F32,
            open: Box::new(move || Ok(Rows::of(&values))),
        })
        .collect();
    for leaf in spec.leaves() {
        let cols = leaf.dims.last().copied().unwrap_or(1);
        let (order, offset) = kept(config, leaf.place)?;
        tensors.push(Outgoing {
            name: leaf.place.gguf(),
            dims: leaf.dims.clone(),
            kind: kind.of(leaf.place, cols, spec, architecture),
            open: Box::new(move || {
                let (kind, bytes) = checkpoint.numbers(&leaf.name, &leaf.dims)?;
                Ok(Rows { order, offset, ..Rows::plain(Values::Blocks(kind, bytes)) })
            }),
        });
    }
    Ok((m, tensors, settled))
}

/// Metadata and tensors of a file, as they are but for the types of the matrices.
fn of_gguf<'a>(
    gguf: &'a Gguf,
    config: &Config,
    spec: &Spec,
    kind: FileType,
    requantize: bool,
) -> Result<(Metadata, Vec<Outgoing<'a>>)> {
    let architecture = layout(config)?.architecture;
    let mut m = Metadata::default();
    let Some(map) = gguf.maps.first() else { bail!("it has no metadata") };
    for (key, place) in values(map)? {
        let own = ["general.file_type", "general.quantization_version", "general.alignment"];
        if !own.contains(&key.as_str()) && !key.starts_with("split.") {
            m.copy(&key, &map[place]);
        }
    }
    m.count("general.file_type", kind.number())?;
    m.count("general.quantization_version", QUANTIZATION_VERSION)?;
    let leaves: BTreeMap<String, Leaf> = spec.leaves().into_iter().map(|l| (l.place.gguf(), l)).collect();
    let mut tensors = vec![];
    for t in &gguf.tensors {
        let cols = t.dims[0];
        let matrix = leaves.get(&t.name).filter(|leaf| leaf.place.is_matrix());
        let to = match matrix {
            Some(leaf) => kind.of(leaf.place, cols, spec, architecture),
            None => GgmlType::readable(t.ggml_type).with_context(|| format!("tensor {}", t.name))?,
        };
        let plain = |n: u32| [GgmlType::F32, GgmlType::F16, GgmlType::Bf16].iter().any(|k| k.number() == n);
        let same = t.ggml_type == to.number();
        let message = || {
            format!(
                "tensor {} is quantised already ({}): blocks made of it lose more than blocks made of the original model, so use that; --requantize does it nevertheless",
                t.name,
                type_name(t.ggml_type)
            )
        };
        ensure!(same || plain(t.ggml_type) || requantize, Error::setting("requantize", message()));
        tensors.push(Outgoing {
            name: t.name.clone(),
            dims: t.dims.iter().rev().copied().collect(),
            kind: to,
            open: Box::new(move || rows_of(gguf, t)),
        });
    }
    Ok((m, tensors))
}

fn type_name(number: u32) -> &'static str {
    let packed = PackedType::from_number(number).map(|kind| kind.name());
    packed.or(GgmlType::from_number(number).map(|kind| kind.name())).unwrap_or("of an unknown type")
}

fn rows_of<'a>(gguf: &'a Gguf, t: &GgufTensor) -> Result<Rows<'a>> {
    let packed = PackedType::from_number(t.ggml_type);
    let (values, size) = match packed {
        Some(kind) => kind.block(),
        None => GgmlType::readable(t.ggml_type)?.block(),
    };
    let cols = t.dims[0];
    ensure!(cols.is_multiple_of(values), "tensor {}: its rows are no whole blocks", t.name);
    let all = t.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let end = all.and_then(|n| (n / values).checked_mul(size)).and_then(|n| n.checked_add(t.offset));
    let bytes = end.and_then(|end| gguf.maps[t.part].get(t.offset..end));
    let bytes = bytes.with_context(|| format!("tensor {} leaves the file: it is truncated", t.name))?;
    Ok(Rows::plain(match packed {
        Some(kind) => Values::Packed(kind, bytes),
        None => Values::Blocks(GgmlType::readable(t.ggml_type)?, bytes.into()),
    }))
}
