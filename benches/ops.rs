//! Times of the ops other than GEMM at the SmolLM2-135M training shape: `cargo bench --bench ops [-- NAME]`.
//! Each row: median of many runs, GFLOP/s or GB/s of the useful work, random data, threads as rayon finds them.
use std::time::Instant;

use sdrrl::{
    data::random::RowRandom,
    ops::attention::{AttentionShape, attention_backward, attention_forward},
    tensor::{DType, Tensor},
};

fn main() {
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let bench = Bench { only };
    println!("threads {}", rayon::current_num_threads());
    println!("{:<44} {:>10} {:>10}", "op", "ms", "per second");
    attention(&bench, "attention 4 x 256", &[256; 4], None);
    attention(&bench, "attention 1 x 1024", &[1024], None);
    attention(&bench, "attention 1 x 2048", &[2048], None);
    attention(&bench, "attention 1 x 2048 window 256", &[2048], Some(256));
}

struct Bench {
    only: Option<String>,
}

impl Bench {
    /// Prints the median time of `f`, and `work` (in 1e9 of `unit`) over it.
    fn row(&self, name: &str, work: f64, unit: &str, mut f: impl FnMut()) {
        if self.only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            return;
        }
        let mut times = vec![];
        let start = Instant::now();
        while times.len() < 5 || (start.elapsed().as_secs_f64() < 0.7 && times.len() < 500) {
            let t = Instant::now();
            f();
            times.push(t.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        println!("{name:<44} {:>10.3} {:>10.1} {unit}", median * 1e3, work / median / 1e9);
    }
}

fn random(name: &str, dims: &[usize]) -> Tensor {
    let mut random = RowRandom::new(1, "bench", name);
    let n = dims.iter().product();
    let v: Vec<f32> = (0..n).map(|_| (random.uniform() * 2.0 - 1.0) as f32).collect();
    Tensor::from_f32(name, dims, &v).expect("memory")
}

fn zeros(name: &str, dims: &[usize]) -> Tensor {
    Tensor::zeros(name, DType::F32, dims).expect("memory")
}

fn attention(bench: &Bench, name: &str, lengths: &[usize], window: Option<usize>) {
    let shape = AttentionShape { heads: 9, kv_heads: 3, head_size: 64, scale: 0.125, window };
    let n: usize = lengths.iter().sum();
    let mut cu = vec![0u32];
    lengths.iter().for_each(|l| cu.push(cu[cu.len() - 1] + *l as u32));
    let cu = Tensor::from_u32("cu_seqlens", &[cu.len()], &cu).expect("memory");
    let (q, k, v, dout) =
        (random("q", &[n, 576]), random("k", &[n, 192]), random("v", &[n, 192]), random("dout", &[n, 576]));
    let (mut out, mut lse) = (zeros("out", &[n, 576]), zeros("lse", &[9, n]));
    let (mut dq, mut dk, mut dv) = (zeros("dq", &[n, 576]), zeros("dk", &[n, 192]), zeros("dv", &[n, 192]));
    let w = window.unwrap_or(n);
    let pairs: usize = lengths.iter().map(|&l| (1..=l).map(|i| i.min(w)).sum::<usize>()).sum();
    let flop = (pairs * 9 * 64 * 4) as f64;
    bench.row(&format!("{name}, forward"), flop, "GFLOP", || {
        attention_forward(&mut out, &mut lse, &q, &k, &v, &cu, shape).expect("shapes")
    });
    bench.row(&format!("{name}, backward"), flop * 2.5, "GFLOP", || {
        attention_backward(&mut dq, &mut dk, &mut dv, &dout, &out, &lse, &q, &k, &v, &cu, shape)
            .expect("shapes")
    });
}
