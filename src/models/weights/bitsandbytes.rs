//! Matrices that bitsandbytes quantised, as transformers saves them: NF4 and FP4, with or without double quantisation of the scales (QLoRA,
//! arXiv 2305.14314, section 3), and LLM.int8()'s rows of 8 bits (arXiv 2208.07339, section 2).
//!
//! Values are code times scale in f32, before bitsandbytes rounds them to the type that it computes in. LLM.int8()'s products of the largest activations
//! in 16 bits have no counterpart: products read all of a matrix as it is dequantised.
use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use safetensors::Dtype;
use serde::Deserialize;

use super::safetensors::{Entry, Maps};
use crate::ops::quantize::{GgmlType, NF4};

/// Names in front of a matrix's state: quant type behind them.
const STATE: &str = ".quant_state.bitsandbytes__";

/// What the state of a matrix in 4 bits says, as bitsandbytes' `QuantState.as_dict(packed=True)` writes it.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// How a matrix is quantised, and the tensors beside it.
pub(super) enum Packed {
    /// Two values a byte, the first in the upper half; blocks of `size` values, row by row, share a scale.
    Four { size: usize, map: Entry, absmax: Entry, nested: Option<Box<Nested>> },
    /// A value a byte; each row has a scale, which is 127 times a step.
    Eight { scales: Entry },
}

/// Scales that are themselves quantised, in 8 bits.
pub(super) struct Nested {
    size: usize,
    offset: f32,
    map: Entry,
    absmax: Entry,
}

/// Takes the tensors of quantised matrices together: what is left has the names and shapes of the model.
///
/// # Errors
/// A state that cannot be read, or tensors that do not belong to it.
pub(super) fn fold(entries: &mut HashMap<String, Entry>, maps: &Maps) -> Result<()> {
    let mut states: Vec<String> = entries.keys().filter(|n| n.contains(STATE)).cloned().collect();
    states.sort();
    for name in states {
        fold_four(entries, maps, &name).with_context(|| format!("tensor {name}"))?;
    }
    let mut scales: Vec<String> = entries.keys().filter(|n| n.ends_with(".SCB")).cloned().collect();
    scales.sort();
    for name in scales {
        fold_eight(entries, maps, &name).with_context(|| format!("tensor {name}"))?;
    }
    Ok(())
}

fn take(entries: &mut HashMap<String, Entry>, name: &str) -> Result<Entry> {
    entries.remove(name).with_context(|| {
        format!("tensor {name} is not there: the checkpoint is not as bitsandbytes writes it")
    })
}

fn fold_four(entries: &mut HashMap<String, Entry>, maps: &Maps, name: &str) -> Result<()> {
    let (matrix, kind) = name.split_once(STATE).context("no state")?;
    let state = take(entries, name)?;
    let state: State = serde_json::from_slice(maps.bytes(&state)).context("it is not bitsandbytes' JSON")?;
    ensure!(
        ["nf4", "fp4"].contains(&kind) && state.quant_type == kind,
        "it says {}: nf4 and fp4 are read, each under its own name",
        state.quant_type
    );
    let values = state.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(0);
    ensure!(
        state.shape.len() == 2 && values > 0 && state.blocksize.is_power_of_two(),
        "a matrix of shape {:?} in blocks of {} was not expected",
        state.shape,
        state.blocksize
    );
    let blocks = values.div_ceil(state.blocksize);
    let mut part = |end: &str, numbers: usize, dtype: Dtype| -> Result<Entry> {
        let name = format!("{matrix}.{end}");
        let entry = take(entries, &name)?;
        let found = (entry.dtype, entry.shape.iter().product::<usize>());
        ensure!(found == (dtype, numbers), "tensor {name} is {found:?}, expected {:?}", (dtype, numbers));
        Ok(entry)
    };
    let map = part("quant_map", 16, Dtype::F32)?;
    let (absmax, nested) = match (state.nested_blocksize, state.nested_offset) {
        (Some(size), Some(offset)) if size.is_power_of_two() && offset.is_finite() => {
            let absmax = part("absmax", blocks, Dtype::U8)?;
            let map = part("nested_quant_map", 256, Dtype::F32)?;
            let of_blocks = part("nested_absmax", blocks.div_ceil(size), Dtype::F32)?;
            (absmax, Some(Box::new(Nested { size, offset, map, absmax: of_blocks })))
        }
        (None, None) => (part("absmax", blocks, Dtype::F32)?, None),
        _ => bail!("its double quantisation is said by halves"),
    };
    let entry = entries.get_mut(matrix).with_context(|| format!("tensor {matrix} is not there"))?;
    // The bytes may stand under another type (bnb_4bit_quant_storage).
    let bytes = entry.bytes;
    ensure!(bytes == values.div_ceil(2), "tensor {matrix} has {bytes} bytes for {values} values of 4 bits");
    entry.shape = state.shape;
    entry.packed = Some(Box::new(Packed::Four { size: state.blocksize, map, absmax, nested }));
    Ok(())
}

fn fold_eight(entries: &mut HashMap<String, Entry>, maps: &Maps, name: &str) -> Result<()> {
    let base = name.trim_end_matches(".SCB");
    let scales = take(entries, name)?;
    if let Some(format) = entries.remove(&format!("{base}.weight_format")) {
        let rows = maps.bytes(&format).iter().all(|&b| b == 0);
        ensure!(rows, "its values are not in the order of rows: save the model with a newer bitsandbytes");
    }
    let matrix = format!("{base}.weight");
    let entry = entries.get_mut(&matrix).with_context(|| format!("tensor {matrix} is not there"))?;
    let fits = entry.dtype == Dtype::I8 && entry.shape.len() == 2 && scales.dtype == Dtype::F32;
    ensure!(
        fits && scales.shape.iter().product::<usize>() == entry.shape[0],
        "tensor {matrix} is {:?} of {:?}, its scales {:?} of {:?}: int8 and an f32 a row were expected",
        entry.shape,
        entry.dtype,
        scales.shape,
        scales.dtype
    );
    entry.packed = Some(Box::new(Packed::Eight { scales }));
    Ok(())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The scale of each block: quantised ones are their code times the scale of 256 of them, plus their mean.
fn scales(maps: &Maps, absmax: &Entry, nested: Option<&Nested>) -> Vec<f32> {
    let Some(Nested { size, offset, map, absmax: of_blocks }) = nested else {
        return floats(maps.bytes(absmax));
    };
    let (map, of_blocks) = (floats(maps.bytes(map)), floats(maps.bytes(of_blocks)));
    let codes = maps.bytes(absmax).iter().enumerate();
    codes.map(|(i, &code)| map[code as usize] * of_blocks[i / size] + offset).collect()
}

impl Packed {
    /// Every value of `entry`, row by row, F32.
    pub(super) fn values(&self, entry: &Entry, maps: &Maps) -> Vec<f32> {
        let (rows, cols) = (entry.shape[0], entry.shape[1]);
        let (codes, mut out) = (maps.bytes(entry), vec![0.0; rows * cols]);
        match self {
            Packed::Four { size, map, absmax, nested } => {
                let (map, scales) = (floats(maps.bytes(map)), scales(maps, absmax, nested.as_deref()));
                out.par_chunks_mut(*size).zip(&scales).enumerate().for_each(|(block, (out, scale))| {
                    for (i, out) in out.iter_mut().enumerate() {
                        let at = block * size + i;
                        let code = if at % 2 == 0 { codes[at / 2] >> 4 } else { codes[at / 2] & 15 };
                        *out = map[code as usize] * scale;
                    }
                });
            }
            Packed::Eight { scales } => {
                let scales = floats(maps.bytes(scales));
                out.par_chunks_mut(cols).zip(codes.par_chunks(cols)).zip(&scales).for_each(
                    |((out, codes), scale)| {
                        out.iter_mut()
                            .zip(codes)
                            .for_each(|(o, &c)| *o = c as i8 as f32 * scale * (1.0 / 127.0));
                    },
                );
            }
        }
        out
    }

    /// The rows as blocks of [`GgmlType::Nf4`], which hold the same values; `first` and `rows` say which.
    ///
    /// # Errors
    /// Values that such blocks cannot hold, by what they are.
    pub(super) fn blocks(&self, entry: &Entry, maps: &Maps, first: usize, rows: usize) -> Result<Vec<u8>> {
        let (values, bytes) = GgmlType::Nf4.block();
        self.check_blocks(entry, maps)?;
        let Packed::Four { size, absmax, nested, .. } = self else { bail!("not of 4 bits") };
        let (cols, scales) = (entry.shape[1], scales(maps, absmax, nested.as_deref()));
        let codes = &maps.bytes(entry)[first * cols / 2..(first + rows) * cols / 2];
        let mut out = vec![0u8; rows * cols / values * bytes];
        out.par_chunks_mut(bytes).zip(codes.par_chunks(values / 2)).enumerate().for_each(
            |(i, (out, codes))| {
                let scale = scales[(first * cols + i * values) / size];
                out[..4].copy_from_slice(&scale.to_le_bytes());
                out[4..].copy_from_slice(codes);
            },
        );
        Ok(out)
    }

    /// Refuses a matrix that is not kept as it is stored.
    pub(super) fn check_blocks(&self, entry: &Entry, maps: &Maps) -> Result<()> {
        let values = GgmlType::Nf4.block().0;
        match self {
            Packed::Eight { .. } => {
                bail!("8 bits by bitsandbytes are not kept as they are stored: leave --base-dtype out")
            }
            Packed::Four { map, .. } if floats(maps.bytes(map)) != NF4 => {
                bail!(
                    "4 bits by bitsandbytes are kept as they are stored where they are NF4: leave --base-dtype out"
                )
            }
            Packed::Four { size, .. } => {
                let cols = entry.shape[1];
                ensure!(
                    cols.is_multiple_of(values) && size.is_multiple_of(values),
                    "rows of {cols} values in blocks of {size} are no whole blocks of {values}: leave --base-dtype out"
                );
                Ok(())
            }
        }
    }
}
