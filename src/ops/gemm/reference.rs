//! The naive product, summed in f64.
use super::Layout;

/// out (N, M) = alpha * a b [+ out]
pub fn gemm(
    out: &mut [f32],
    a: &[f32],
    b: &[f32],
    [n, m, k]: [usize; 3],
    layout: Layout,
    alpha: f32,
    accumulate: bool,
) {
    for i in 0..n {
        for j in 0..m {
            let term = |p: usize| match layout {
                Layout::NT => a[i * k + p] as f64 * b[j * k + p] as f64,
                Layout::NN => a[i * k + p] as f64 * b[p * m + j] as f64,
                Layout::TN => a[p * n + i] as f64 * b[p * m + j] as f64,
            };
            let x = alpha as f64 * (0..k).map(term).sum::<f64>();
            out[i * m + j] = if accumulate { out[i * m + j] + x as f32 } else { x as f32 };
        }
    }
}
