//! Products of few rows on a GPU, as decoding makes them: which of gemm.cu's `gemm_few_*`.
use super::Layout;
use crate::{
    device::{Geometry, Kernel},
    ops::launch::kernel,
    tensor::DType,
};

/// Rows that the kernels take at most.
const MOST: usize = 64;

/// True if out (n, m) = a b of these layout and type of a can go to the kernels for few rows. Any m, depth, tail and type of b.
pub(super) fn takes(layout: Layout, a: DType, n: usize) -> bool {
    layout == Layout::NT && a == DType::Bf16 && n <= MOST
}

/// The kernel for out (n, m), n as in [`takes`], and its launch. A row's bits depend on none of these.
pub(super) fn launch_of([n, m]: [usize; 2], multiprocessors: usize) -> (Kernel, Geometry) {
    let at = |columns: usize, threads: u32, shared: usize| {
        Geometry::grid([m.div_ceil(columns), 1, 1], threads).shared(shared)
    };
    // Stages of (rows of a + columns of out) x 128 elements.
    if n > 16 {
        return (kernel!("gemm", "gemm_few_64x32_bf16"), at(32, 128, 4 * (64 + 32) * 128 * 2));
    }
    // Blocks of 32 columns, if they keep three of four multiprocessors busy; else narrow ones, which read a four times as often.
    if 4 * m.div_ceil(32) >= 3 * multiprocessors {
        (kernel!("gemm", "gemm_few_16x32_bf16"), at(32, 128, 6 * (16 + 32) * 128 * 2))
    } else {
        (kernel!("gemm", "gemm_few_16x8_bf16"), at(8, 32, 12 * (16 + 8) * 128 * 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_go_to_blocks_that_fill_the_card() {
        assert!(takes(Layout::NT, DType::Bf16, 1) && takes(Layout::NT, DType::Bf16, 64));
        assert!(!takes(Layout::NT, DType::Bf16, 65) && !takes(Layout::NN, DType::Bf16, 1));
        assert!(!takes(Layout::NT, DType::F32, 1));
        let of = |n: usize, m: usize| {
            let (kernel, at) = launch_of([n, m], 132);
            (kernel.name, at.grid[0])
        };
        assert_eq!(of(1, 4096), ("gemm_few_16x32_bf16", 128));
        assert_eq!(of(16, 32000), ("gemm_few_16x32_bf16", 1000));
        assert_eq!(of(16, 1024), ("gemm_few_16x8_bf16", 128));
        assert_eq!(of(17, 1025), ("gemm_few_64x32_bf16", 33));
    }
}
