//! Sums, gathers and broadcasts of tensors over the processes that train one model (NCCL). Each waits for its result: what follows sees it, and what hangs, hangs here.
#![allow(unsafe_code)]
use anyhow::{Context, Result, ensure};

use super::checks::check;
use crate::{
    device::nccl::Communicator,
    tensor::{DType, Tensor, refuse_overlap},
};

/// Every rank's `t` (F32, on a GPU) becomes the sum over all ranks, the same bits on each. Elements that are summed in one call: `bucket` at most.
pub fn all_reduce(ranks: &Communicator, t: &mut Tensor, bucket: usize) -> Result<()> {
    ensure!(t.dtype() == DType::F32 && bucket > 0, "all_reduce: {t:?} is not F32");
    let gpu = t.gpu().context("all_reduce: the tensor is not on a GPU")?.clone();
    let (at, n) = (t.address()?, t.len());
    for begin in (0..n).step_by(bucket) {
        // SAFETY: inside the tensor, which lives until the device was waited for below.
        unsafe { ranks.all_reduce(at + 4 * begin as u64, bucket.min(n - begin)) }?;
    }
    gpu.synchronize()
}

/// out (ranks, ...) = inp (...) of every rank, in the order of the ranks; same type, on a GPU.
pub fn all_gather(ranks: &Communicator, out: &mut Tensor, inp: &Tensor) -> Result<()> {
    let whole = out.dtype() == inp.dtype() && out.len() == inp.len() * ranks.size();
    check(whole, "all_gather", &[out, inp])?;
    refuse_overlap(&[out], &[inp])?;
    let gpu = inp.gpu().context("all_gather: the tensor is not on a GPU")?.clone();
    // SAFETY: out has inp's bytes for each rank; both live until the device was waited for.
    unsafe { ranks.all_gather(inp.address()?, out.address()?, inp.bytes()) }?;
    gpu.synchronize()
}

/// `t` becomes that of rank 0, on a GPU.
pub fn broadcast(ranks: &Communicator, t: &mut Tensor) -> Result<()> {
    let gpu = t.gpu().context("broadcast: the tensor is not on a GPU")?.clone();
    // SAFETY: inside the tensor, which lives until the device was waited for.
    unsafe { ranks.broadcast(t.address()?, t.bytes()) }?;
    gpu.synchronize()
}
