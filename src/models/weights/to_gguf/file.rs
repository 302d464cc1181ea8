//! A GGUF file written tensor by tensor, some rows at a time, on all threads: memory is a few megabytes whatever the model's size.
use std::{
    borrow::Cow,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::super::finite::check_blocks;
use crate::{
    data::{
        files::{partial_of, remove_if_there, sweep, sync_folder, write_error},
        gguf::writer::{ALIGNMENT, DirectoryEntry, Metadata, head},
    },
    error::Error,
    ops::quantize::{GgmlType, PackedType, RowOrder},
    pipeline::interrupt::interrupted,
    report::progress::Progress,
};

/// Values that are held as F32 and as blocks at a time.
const SLAB: usize = 1 << 22;
/// Values of one task: enough to be worth it.
const TASK: usize = 1 << 15;

/// Where the values of a tensor come from.
pub(super) enum Values<'a> {
    /// Numbers of 1 value or blocks.
    Blocks(GgmlType, Cow<'a, [u8]>),
    /// Blocks of a type that is never computed with.
    Packed(PackedType, &'a [u8]),
}

/// A tensor's values, row by row.
pub(super) struct Rows<'a> {
    pub values: Values<'a>,
    /// Where the file's rows stand among those of `values`.
    pub order: RowOrder,
    /// Multiplied with each value.
    pub factor: f32,
    /// Added to each value.
    pub offset: f32,
}

impl<'a> Rows<'a> {
    /// Values as they are.
    pub fn plain(values: Values<'a>) -> Rows<'a> {
        Rows { values, order: RowOrder::Straight, factor: 1.0, offset: 0.0 }
    }

    /// Values in memory.
    pub fn of(values: &[f32]) -> Rows<'static> {
        let bytes = bytemuck::cast_slice(values).to_vec();
        Rows::plain(Values::Blocks(GgmlType::F32, bytes.into()))
    }

    /// out = the file's row `row`.
    fn read(&self, row: usize, out: &mut [f32]) {
        let row = self.order.own(row);
        let part = |(values, size): (usize, usize)| {
            let bytes = out.len() / values * size;
            row * bytes..(row + 1) * bytes
        };
        match &self.values {
            Values::Blocks(kind, bytes) => kind.dequantize(&bytes[part(kind.block())], out),
            Values::Packed(kind, bytes) => kind.dequantize(&bytes[part(kind.block())], out),
        }
        if self.factor != 1.0 {
            out.iter_mut().for_each(|x| *x *= self.factor);
        }
        if self.offset != 0.0 {
            out.iter_mut().for_each(|x| *x += self.offset);
        }
    }
}

/// A tensor to be written.
pub(super) struct Outgoing<'a> {
    /// ggml's name.
    pub name: String,
    /// Hugging Face's order: the contiguous dimension last.
    pub dims: Vec<usize>,
    pub kind: GgmlType,
    /// Called when its turn comes.
    pub open: Box<dyn Fn() -> Result<Rows<'a>> + 'a>,
}

impl Outgoing<'_> {
    /// Values of a row; a vector's rows are its values, since those of a bias stand as the rows of its matrix do.
    fn cols(&self) -> usize {
        if self.dims.len() < 2 { 1 } else { self.dims[self.dims.len() - 1] }
    }
    fn rows(&self) -> usize {
        self.dims.iter().product::<usize>() / self.cols().max(1)
    }
    fn row_bytes(&self) -> Result<usize> {
        let cols = self.cols();
        let bytes = self.kind.row_bytes(cols);
        bytes.with_context(|| {
            format!("tensor {}: rows of {cols} are no whole blocks of {}", self.name, self.kind.name())
        })
    }
    fn entry(&self) -> Result<DirectoryEntry> {
        Ok(DirectoryEntry {
            name: self.name.clone(),
            dims: self.dims.iter().rev().copied().collect(),
            ggml_type: self.kind.number(),
            bytes: self.rows() * self.row_bytes()?,
        })
    }
}

/// A file under its temporary name, which goes with it unless it is finished.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = remove_if_there(&self.0);
    }
}

/// Writes `path`, whole or not at all. The first `settled` tensors are written before `check` sees the file, of which the rest is zeros then.
///
/// # Errors
/// A file that is there; values that are no numbers, or beyond what their type holds, by the tensor's name.
pub(super) fn write(
    path: &Path,
    metadata: &Metadata,
    tensors: &[Outgoing],
    settled: usize,
    check: &dyn Fn(&Path) -> Result<()>,
) -> Result<u64> {
    refuse_existing(path)?;
    sweep(path.parent().unwrap_or(Path::new(".")));
    let entries = tensors.iter().map(Outgoing::entry).collect::<Result<Vec<_>>>()?;
    let head = head(metadata, &entries)?;
    let size = entries.iter().map(|e| e.bytes.next_multiple_of(ALIGNMENT)).sum::<usize>() + head.len();
    let partial = partial_of(path);
    remove_if_there(&partial)?;
    let mut file = File::create_new(&partial).map_err(|e| write_error(path, e))?;
    let guard = Unfinished(partial);
    file.write_all(&head).and_then(|()| file.set_len(size as u64)).map_err(|e| write_error(path, e))?;
    let values = tensors.iter().map(|t| t.rows() * t.cols()).sum::<usize>();
    // Megavalues, which fit a bar.
    let mut progress = Progress::new("quantize", values.div_ceil(1 << 20));
    let mut done = 0;
    for (i, t) in tensors.iter().enumerate() {
        if i == settled {
            check(&guard.0)?;
        }
        let mut advance = |n: usize| {
            progress.advance(((done + n) >> 20) - (done >> 20));
            done += n;
        };
        write_tensor(&mut file, path, t, &mut advance)?;
    }
    if tensors.len() <= settled {
        check(&guard.0)?;
    }
    progress.finish();
    file.sync_all().map_err(|e| write_error(path, e))?;
    refuse_existing(path)?;
    fs::rename(&guard.0, path).map_err(|e| write_error(path, e))?;
    sync_folder(path);
    Ok(size as u64)
}

/// Refuses to write where something stands.
pub(super) fn refuse_existing(path: &Path) -> Result<()> {
    let message = || format!("{} is there already: remove it, or choose another name", path.display());
    ensure!(path.symlink_metadata().is_err(), Error::exists(path, message()));
    Ok(())
}

fn write_tensor(file: &mut File, path: &Path, t: &Outgoing, advance: &mut dyn FnMut(usize)) -> Result<()> {
    let (rows, cols, row_bytes) = (t.rows(), t.cols(), t.row_bytes()?);
    // The closure that opens it is not shared between threads.
    let (name, kind, source) = (&t.name, t.kind, (t.open)()?);
    let at_once = (SLAB / cols.max(1)).clamp(1, rows.max(1));
    let by_task = (TASK / cols.max(1)).clamp(1, at_once);
    let mut bytes = vec![0u8; at_once * row_bytes];
    for first in (0..rows).step_by(at_once) {
        ensure!(!interrupted(), Error::interrupted("stopped: nothing was written"));
        let n = at_once.min(rows - first);
        let bytes = &mut bytes[..n * row_bytes];
        bytes.par_chunks_mut(by_task * row_bytes).enumerate().try_for_each(|(i, part)| {
            let mut values = vec![0.0f32; part.len() / row_bytes * cols];
            let first = first + i * by_task;
            values.chunks_mut(cols).enumerate().for_each(|(r, out)| source.read(first + r, out));
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                let (row, col) = (first + at / cols, at % cols);
                let what = format!(
                    "tensor {} holds {} at [{row}, {col}]: the weights are damaged; fetch or make them anew",
                    name, values[at]
                );
                return Err(anyhow::Error::from(Error::bad_input(name, what)));
            }
            kind.quantize(&values, part);
            Ok(())
        })?;
        check_blocks(name, kind, bytes).with_context(|| {
            format!("its values are beyond what {} can hold: use F32 or BF16", kind.name())
        })?;
        file.write_all(bytes).map_err(|e| write_error(path, e))?;
        advance(n * cols);
    }
    let written = rows * row_bytes;
    file.write_all(&vec![0; written.next_multiple_of(ALIGNMENT) - written]).map_err(|e| write_error(path, e))
}
