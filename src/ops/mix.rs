//! A mixture of layers: states of some tokens, weighted and added up in f32, a layer at a time.
#![allow(unsafe_code)]
use anyhow::Result;

use super::{
    checks::{check, check_ids},
    kernels,
    launch::{Grid, gpu_of},
    parallel::map_chunks,
};
use crate::tensor::{DType, Tensor, refuse_overlap};

/// sum (N, C), F32 += weight states (M, C)`[rows (N)]`; states F32 or, on a GPU, Bf16. The same bits on every device. Errors name the first row that is not
/// below M; on a GPU such a row of the sum is NaN.
pub fn mix(sum: &mut Tensor, states: &Tensor, rows: &Tensor, weight: f32) -> Result<()> {
    const OP: &str = "mix";
    let ((n, c), (m, width)) = (sum.rows_cols(), states.rows_cols());
    let fits = sum.dtype() == DType::F32 && rows.dtype() == DType::U32 && rows.len() == n && width == c;
    check(fits, OP, &[sum, states, rows])?;
    refuse_overlap(&[sum], &[states, rows])?;
    if let Some(gpu) = gpu_of(OP, &[sum, states, rows])? {
        // SAFETY: shapes were checked, rows are checked by the kernel.
        return unsafe { kernels::mix(&gpu, Grid::new(n), sum, states, rows, weight, c, m) };
    }
    let (ids, states) = (rows.u32()?, states.f32()?);
    check_ids(OP, rows, ids, m, &"the tensor of states")?;
    map_chunks(sum.f32_mut()?, c.max(1), 2 * n * c, |i, sum| {
        let row = &states[ids[i] as usize * c..][..c];
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
    });
    Ok(())
}

/// The naive oracle, in f32: the op's bits.
pub mod reference {
    /// sum (n, c) += weight states (m, c)`[rows (n)]`.
    pub fn mix(sum: &mut [f32], states: &[f32], rows: &[usize], weight: f32) {
        let c = sum.len() / rows.len();
        for (i, &row) in rows.iter().enumerate() {
            (0..c).for_each(|j| sum[i * c + j] += weight * states[row * c + j]);
        }
    }
}
