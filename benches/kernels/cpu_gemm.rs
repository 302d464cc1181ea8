//! Matrix products of the shapes of SmolLM2-135M and of models 1024 wide (NLLB-600M, XLM-R large) on the CPU, beside the `gemm` crate in the same interleaved run.
use std::time::Instant;

use sdrrl::{
    data::random::RowRandom,
    ops::gemm::{self as ours, Layout},
    tensor::{DType, Tensor},
};

const ROUNDS: usize = 9;

fn random(name: &str, dims: [usize; 2]) -> Tensor {
    let mut r = RowRandom::new(1, "bench", name);
    // Sum of four uniforms: near enough to a normal distribution.
    let values: Vec<f32> =
        (0..dims[0] * dims[1]).map(|_| (0..4).map(|_| r.uniform()).sum::<f64>() as f32 - 2.0).collect();
    Tensor::from_f32(name, &dims, &values).expect("allocate")
}

/// Of an odd number of values.
pub fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

fn seconds(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn peer(out: &mut [f32], a: &[f32], b: &[f32], [n, m, k]: [usize; 3], layout: Layout) {
    let (ars, acs) = if layout == Layout::TN { (1, n) } else { (k, 1) };
    let (brs, bcs) = if layout == Layout::NT { (1, k) } else { (m, 1) };
    let threads = gemm::Parallelism::Rayon(0);
    // SAFETY: the strides describe the slices, which hold n * k, k * m and n * m floats.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            n,
            m,
            k,
            out.as_mut_ptr(),
            1,
            m as isize,
            false,
            a.as_ptr(),
            acs as isize,
            ars as isize,
            b.as_ptr(),
            bcs as isize,
            brs as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            threads,
        )
    }
}

/// Prints the table; only rows whose names contain one of `filters`, if there are any.
pub fn run(filters: &[String]) {
    println!("{} threads; random operands; median of {ROUNDS}, interleaved", rayon::current_num_threads());
    println!("{:<28} {:>10} {:>10} {:>10} {:>8}", "n x m x k", "f32", "bf16", "gemm crate", "ratio");
    for (layout, size) in [
        (Layout::NT, [1024, 576, 576]),
        (Layout::NT, [1024, 1536, 576]),
        (Layout::NT, [1024, 576, 1536]),
        (Layout::NT, [256, 49152, 576]),
        (Layout::NT, [512, 4096, 1024]),
        (Layout::NT, [512, 1024, 4096]),
        (Layout::NT, [96, 1024, 4096]),
        (Layout::NN, [1024, 576, 1536]),
        (Layout::NN, [1024, 1536, 576]),
        (Layout::NN, [256, 576, 49152]),
        (Layout::TN, [576, 1536, 1024]),
        (Layout::NT, [1024, 16, 576]),
        (Layout::NT, [1024, 1536, 16]),
        (Layout::NN, [1024, 16, 1536]),
        (Layout::NN, [1024, 576, 16]),
        (Layout::TN, [1536, 16, 1024]),
        (Layout::TN, [16, 576, 1024]),
        (Layout::NT, [1, 1536, 576]),
        (Layout::NT, [1, 49152, 576]),
        (Layout::NT, [8, 1536, 576]),
        (Layout::NT, [8, 49152, 576]),
    ] {
        let [n, m, k] = size;
        let name = format!("{layout:?} {n} x {m} x {k}");
        if !filters.is_empty() && !filters.iter().any(|f| name.contains(f)) {
            continue;
        }
        let a = random("a", if layout == Layout::TN { [k, n] } else { [n, k] });
        let b = random("b", if layout == Layout::NT { [m, k] } else { [k, m] });
        let mut narrow = Tensor::zeros("narrow", DType::Bf16, b.shape()).expect("allocate");
        let (x, y, mut o) = (b.to_f32_vec().expect("f32"), a.to_f32_vec().expect("f32"), vec![0.0; n * m]);
        narrow.write_f32(&x).expect("bf16");
        let mut out = Tensor::zeros("out", DType::F32, &[n, m]).expect("allocate");
        let (mut times, mut narrow_times, mut peer_times) = (vec![], vec![], vec![]);
        let repeat = (50_000_000 / (n * m * k)).max(1);
        for _ in 0..ROUNDS {
            times.push(seconds(|| {
                (0..repeat).for_each(|_| ours::gemm(&mut out, &a, &b, layout, 1.0, false).expect("gemm"))
            }));
            narrow_times.push(seconds(|| {
                (0..repeat).for_each(|_| ours::gemm(&mut out, &a, &narrow, layout, 1.0, false).expect("gemm"))
            }));
            peer_times.push(seconds(|| (0..repeat).for_each(|_| peer(&mut o, &y, &x, size, layout))));
        }
        let rate = |t: Vec<f64>| 2.0 * (n * m * k * repeat) as f64 / median(t) / 1e9;
        let (f, h, p) = (rate(times), rate(narrow_times), rate(peer_times));
        println!("{name:<28} {f:>10.1} {h:>10.1} {p:>10.1} {:>8.2}", f / p);
        if n == 1 {
            println!("{:<28} {:>10.1} {:>10.1} {:>10.1} GB/s of weights", "", f * 2.0, h, p * 2.0);
        }
    }
}
