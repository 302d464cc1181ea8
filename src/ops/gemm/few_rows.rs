//! Products of few rows on a GPU, as decoding makes them: which of gemm.cu's `gemm_few_*`.
use super::Layout;
use crate::{
    device::{Geometry, Kernel},
    ops::launch::kernel,
    tensor::DType,
};

/// True if out (n, m) = a b of these layout and type of a, with a low-rank tail or without, can go to the kernels for few rows. Any m, depth and type
/// of b.
pub(super) fn takes(layout: Layout, a: DType, n: usize, tail: bool) -> bool {
    layout == Layout::NT && if a == DType::Bf16 { n <= 64 } else { n <= 16 && !tail }
}

/// The kernel for out (n, m), n as in [`takes`], and its launch. A row's bits depend on none of these.
pub(super) fn launch_of(
    [n, m]: [usize; 2],
    [a, b]: [DType; 2],
    multiprocessors: usize,
) -> (Kernel, Geometry) {
    let at = |columns: usize, threads: u32, shared: usize| {
        Geometry::grid([m.div_ceil(columns), n.min(1), 1], threads).shared(shared)
    };
    // Rows of 64 elements, padded by 16 bytes: 16 of a, 32 of b.
    match (a, b) {
        (DType::F32, DType::Bf16) => {
            return (kernel!("gemm", "gemm_few_f32_bf16"), at(32, 128, 6 * (16 * 272 + 32 * 144)));
        }
        (DType::F32, _) => return (kernel!("gemm", "gemm_few_f32"), at(32, 128, 6 * (16 + 32) * 272)),
        _ => {}
    }
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
        assert!(takes(Layout::NT, DType::Bf16, 1, true) && takes(Layout::NT, DType::Bf16, 64, false));
        assert!(!takes(Layout::NT, DType::Bf16, 65, false) && !takes(Layout::NN, DType::Bf16, 1, false));
        assert!(takes(Layout::NT, DType::F32, 16, false) && !takes(Layout::NT, DType::F32, 16, true));
        assert!(!takes(Layout::NT, DType::F32, 17, false));
        let of = |n: usize, m: usize| {
            let (kernel, at) = launch_of([n, m], [DType::Bf16; 2], 132);
            (kernel.name, at.grid[0])
        };
        assert_eq!(of(1, 4096), ("gemm_few_16x32_bf16", 128));
        assert_eq!(of(16, 32000), ("gemm_few_16x32_bf16", 1000));
        assert_eq!(of(16, 1024), ("gemm_few_16x8_bf16", 128));
        assert_eq!(of(17, 1025), ("gemm_few_64x32_bf16", 33));
        assert_eq!(launch_of([1, 33], [DType::F32, DType::Bf16], 132).0.name, "gemm_few_f32_bf16");
    }
}
