//! Sums, gathers and broadcasts of tensors over the processes that train one model (NCCL). What begins with `start` runs beside the computation, behind everything that was asked
//! for before it; its tensors are nobody's until [`finish`]. All others wait for their result: what follows sees it, and what hangs, hangs here.
#![allow(unsafe_code)]
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::checks::check;
use crate::{
    device::{
        Gpu, Mark,
        nccl::{Communicator, Number},
    },
    tensor::{DType, Tensor, refuse_overlap},
};

fn gpu_of(t: &Tensor, op: &str) -> Result<Arc<Gpu>> {
    Ok(t.gpu().with_context(|| format!("{op}: {t:?} is not on a GPU"))?.clone())
}

/// Each of `parts` (F32 or Bf16, on one GPU) becomes the sum over all ranks, the same bits on each; one with an owner that rank's alone, and the others' is undefined. One call of NCCL.
///
/// The tensors live until [`finish`].
pub fn start_sums(ranks: &Communicator, parts: &mut [(Tensor, Option<usize>)]) -> Result<()> {
    let Some(gpu) = parts.first().map(|(t, _)| gpu_of(t, "sum")).transpose()? else { return Ok(()) };
    let beside = gpu.beside()?;
    ranks.together(|| {
        parts.iter().try_for_each(|(t, owner)| {
            ensure!(t.gpu().is_some_and(|own| Arc::ptr_eq(own, &gpu)), "sum: {t:?} is on another device");
            let number = match t.dtype() {
                DType::F32 => Number::F32,
                DType::Bf16 => Number::Bf16,
                DType::U32 => bail!("sum: {t:?} holds integers"),
            };
            // SAFETY: the tensor's own memory, which lives until the exchanges were waited for.
            unsafe { ranks.sum((t.address()?, t.len()), number, *owner, beside) }
        })
    })
}

/// whole = the `part`s of all ranks, in their order, once the mark is passed; `part` is this rank's and apart from it. Both live until then.
pub(crate) fn start_gather(ranks: &Communicator, whole: &mut Tensor, part: &Tensor) -> Result<Mark> {
    let fits = whole.dtype() == part.dtype() && whole.len() == part.len() * ranks.size();
    check(fits, "gather", &[whole, part])?;
    refuse_overlap(&[whole], &[part])?;
    let gpu = gpu_of(part, "gather")?;
    // SAFETY: `whole` has part's bytes for each rank; both live until the exchanges were waited for.
    unsafe { ranks.all_gather(part.address()?, whole.address()?, part.bytes(), gpu.beside()?) }?;
    gpu.mark()
}

/// Waits for everything, exchanges included, on the tensors' GPU.
pub fn finish(ranks: &Communicator, gpu: &Gpu) -> Result<()> {
    gpu.after(&gpu.mark()?)?;
    gpu.synchronize()?;
    ranks.sound()
}

/// out (ranks, ...) = inp (...) of every rank, in the order of the ranks; same type, on a GPU.
pub fn all_gather(ranks: &Communicator, out: &mut Tensor, inp: &Tensor) -> Result<()> {
    start_gather(ranks, out, inp)?;
    finish(ranks, &*gpu_of(inp, "all_gather")?)
}

/// Each of `parts` becomes that of its rank, on every rank; all on one GPU.
pub fn broadcast(ranks: &Communicator, parts: &mut [(Tensor, usize)]) -> Result<()> {
    let Some(gpu) = parts.first().map(|(t, _)| gpu_of(t, "broadcast")).transpose()? else { return Ok(()) };
    let beside = gpu.beside()?;
    ranks.together(|| {
        parts.iter().try_for_each(|(t, root)| {
            ensure!(
                t.gpu().is_some_and(|own| Arc::ptr_eq(own, &gpu)),
                "broadcast: {t:?} is on another device"
            );
            // SAFETY: the tensor's own memory, which lives until the exchanges were waited for below.
            unsafe { ranks.broadcast(t.address()?, t.bytes(), *root, beside) }
        })
    })?;
    finish(ranks, &gpu)
}
