//! Rows gathered and scattered, tensors added and cast: what holds the larger ops together.
#![allow(unsafe_code)]
use anyhow::{Result, bail, ensure};

use crate::{
    ops::parallel::map_chunks,
    tensor::{DType, Tensor, refuse_overlap},
};

use super::{
    checks::check,
    kernels,
    launch::{Grid, check_dtype, gpu_of},
};

/// out (C) += the column sums of inp (N, C), F32 or Bf16; out F32. On a GPU.
pub(crate) fn sum_rows(out: &mut Tensor, inp: &Tensor) -> Result<()> {
    let (rows, cols) = inp.rows_cols();
    check(out.len() == cols, "sum_rows", &[out, inp])?;
    refuse_overlap(&[out], &[inp])?;
    let Some(gpu) = gpu_of("sum_rows", &[out, inp])? else { bail!("sum_rows runs on a GPU only") };
    // SAFETY: shapes were checked.
    unsafe { kernels::reduce_rows(&gpu, Grid::covering(cols), out, inp, rows, cols) }
}

/// out += inp, element by element; both F32 or, on a GPU, both Bf16.
pub fn add(out: &mut Tensor, inp: &Tensor) -> Result<()> {
    check(out.len() == inp.len(), "add", &[out, inp])?;
    refuse_overlap(&[out], &[inp])?;
    if let Some(gpu) = gpu_of("add", &[out, inp])? {
        let (grid, n) = (Grid::vectors(out), out.len() as u64);
        // SAFETY: lengths were checked.
        return unsafe { kernels::add(&gpu, grid, out, inp, n) };
    }
    let inp = inp.f32()?;
    map_chunks(out.f32_mut()?, 1 << 15, inp.len(), |i, out| {
        out.iter_mut().zip(&inp[i << 15..]).for_each(|(o, x)| *o += x);
    });
    Ok(())
}

/// out = scale * inp, rounded to out's dtype; each F32 or Bf16.
pub fn cast(out: &mut Tensor, inp: &Tensor, scale: f32) -> Result<()> {
    check(out.len() == inp.len(), "cast", &[out, inp])?;
    refuse_overlap(&[out], &[inp])?;
    let Some(gpu) = gpu_of("cast", &[out, inp])? else {
        let scaled: Vec<f32> = inp.to_f32_vec()?.into_iter().map(|x| x * scale).collect();
        return out.write_f32(&scaled);
    };
    let (grid, n) = (Grid::tiles([out.len(), 1, 1]), out.len() as u64);
    // SAFETY: lengths were checked.
    unsafe { kernels::cast(&gpu, grid, out, inp, scale, n) }
}

/// Casts of many tensors on a GPU in one launch, again and again: out (Bf16) = scale * inp (F32).
pub struct CastTable {
    /// Kept alive: the table holds their addresses.
    tensors: Vec<(Tensor, Tensor)>,
    /// (tensors, 8) words of rows.cu's `CastEntry`.
    entries: Tensor,
    blocks: usize,
}

impl CastTable {
    /// Lays out casts (out, inp, scale), one at least, all on one GPU.
    pub fn new(casts: Vec<(Tensor, Tensor, f32)>) -> Result<CastTable> {
        const OP: &str = "cast_many";
        let (mut words, mut blocks): (Vec<u32>, usize) = (vec![], 0);
        for (out, inp, scale) in &casts {
            check(out.len() == inp.len(), OP, &[out, inp])?;
            check_dtype(OP, DType::Bf16, &[out])?;
            check_dtype(OP, DType::F32, &[inp])?;
            refuse_overlap(&[out], &[inp])?;
            gpu_of(OP, &[&casts[0].0, out, inp])?;
            for x in [out.address()?, inp.address()?, out.len() as u64] {
                words.extend([x as u32, (x >> 32) as u32]);
            }
            words.extend([u32::try_from(blocks)?, scale.to_bits()]);
            blocks += out.len().div_ceil(kernels::cast_many_block());
        }
        ensure!(!casts.is_empty(), "{OP}: there is nothing to cast");
        ensure!(
            words.len() * 4 == casts.len() * kernels::cast_many_entry_bytes(),
            "{OP}: rows.cu's CastEntry is another"
        );
        let mut entries = Tensor::zeros_on(&casts[0].0.device(), "cast_table", DType::U32, &[words.len()])?;
        entries.write_u32(&words)?;
        let tensors = casts.into_iter().map(|(out, inp, _)| (out, inp)).collect();
        Ok(CastTable { tensors, entries, blocks })
    }

    /// Does all of them.
    pub fn run(&mut self) -> Result<()> {
        let Some(gpu) = self.entries.gpu() else { bail!("cast_many runs on a GPU only") };
        // SAFETY: `new` checked every tensor of the table, which keeps them alive.
        unsafe { kernels::cast_many(gpu, Grid::new(self.blocks), &self.entries, self.tensors.len()) }
    }
}

/// out (N, P) = scale * inp (N, C), P a multiple of 8 and at least C, zeros behind; out Bf16, inp F32 or Bf16. On a GPU.
pub(crate) fn pad_rows(out: &mut Tensor, inp: &Tensor, scale: f32) -> Result<()> {
    let ((rows, padded), (n, cols)) = (out.rows_cols(), inp.rows_cols());
    check(n == rows && cols <= padded && padded.is_multiple_of(8), "pad_rows", &[out, inp])?;
    refuse_overlap(&[out], &[inp])?;
    let Some(gpu) = gpu_of("pad_rows", &[out, inp])? else { bail!("pad_rows runs on a GPU only") };
    let grid = Grid::tiles([rows * padded, 1, 1]);
    // SAFETY: shapes were checked, and out's rows are multiples of 16 bytes.
    unsafe { kernels::pad_rows(&gpu, grid, out, inp, scale, rows, cols, padded) }
}

/// out = inp, bytes and all.
pub fn copy(out: &mut Tensor, inp: &Tensor) -> Result<()> {
    check(out.bytes() == inp.bytes(), "copy", &[out, inp])?;
    check_dtype("copy", inp.dtype(), &[out])?;
    refuse_overlap(&[out], &[inp])?;
    let Some(gpu) = gpu_of("copy", &[out, inp])? else {
        ensure!(inp.dtype() == DType::F32, "copy: {inp:?} must be F32 on the CPU");
        out.f32_mut()?.copy_from_slice(inp.f32()?);
        return Ok(());
    };
    if !out.bytes().is_multiple_of(4) {
        return cast(out, inp, 1.0);
    }
    let words = out.bytes() / 4;
    let grid = Grid::vectors(out);
    // SAFETY: lengths were checked.
    unsafe { kernels::copy_u32(&gpu, grid, out, inp, words as u64) }
}

/// out row i = inp row map\[i\], zeros where map\[i\] is `u32::MAX`; map (rows of out). Other entries must be below inp's rows.
pub fn gather_rows(out: &mut Tensor, inp: &Tensor, map: &Tensor) -> Result<()> {
    move_rows("gather_rows", out, inp, map, false)
}

/// out row map\[i\] = inp row i, nothing where map\[i\] is `u32::MAX`; map (rows of inp). Other entries must be different rows of out.
pub fn scatter_rows(out: &mut Tensor, inp: &Tensor, map: &Tensor) -> Result<()> {
    move_rows("scatter_rows", out, inp, map, true)
}

fn move_rows(op: &'static str, out: &mut Tensor, inp: &Tensor, map: &Tensor, scatter: bool) -> Result<()> {
    let ((out_rows, c), (inp_rows, inp_c)) = (out.rows_cols(), inp.rows_cols());
    let (moved, other) = if scatter { (inp_rows, out_rows) } else { (out_rows, inp_rows) };
    check(c == inp_c && map.len() == moved, op, &[out, inp, map])?;
    check_dtype(op, inp.dtype(), &[out])?;
    refuse_overlap(&[out], &[inp, map])?;
    let width = c * inp.dtype().bytes();
    if let Some(gpu) = gpu_of(op, &[out, inp, map])? {
        let run = match (scatter, width % 4) {
            (false, 0) => kernels::gather_rows_u32,
            (true, 0) => kernels::scatter_rows_u32,
            (false, _) => kernels::gather_rows_u16,
            (true, _) => kernels::scatter_rows_u16,
        };
        let words = width / if width.is_multiple_of(4) { 4 } else { 2 };
        // SAFETY: shapes were checked, the map's entries are the caller's promise as documented.
        return unsafe { run(&gpu, Grid::new(moved), out, inp, map, words) };
    }
    let map = map.u32()?;
    if let Some(i) = map.iter().position(|&j| j != u32::MAX && j as usize >= other) {
        bail!("{op}: entry {i} of the map is {}, but there are {other} rows", map[i]);
    }
    ensure!(inp.dtype() == DType::F32, "{op}: {inp:?} must be F32 on the CPU");
    let (inp, out) = (inp.f32()?, out.f32_mut()?);
    for (i, &j) in map.iter().enumerate() {
        let (to, from) = if scatter { (j, i as u32) } else { (i as u32, j) };
        if to == u32::MAX {
            continue;
        }
        let to = &mut out[to as usize * c..][..c];
        if from == u32::MAX { to.fill(0.0) } else { to.copy_from_slice(&inp[from as usize * c..][..c]) }
    }
    Ok(())
}
