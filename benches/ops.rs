//! Times of the ops other than GEMM at the SmolLM2-135M training shape: `cargo bench --bench ops [-- NAME]`.
//! Each row: median of many runs, GFLOP/s or GB/s of the useful work, random data, threads as rayon finds them.
use std::time::Instant;

use sdrrl::{
    data::random::RowRandom,
    ops::{
        activation::{Activation, activation_backward, activation_forward},
        attention::{AttentionShape, attention_backward, attention_forward, cross_attention_forward},
        decode_attention::decode_attention_forward,
        embedding::{embedding_backward, embedding_forward},
        layernorm::{layernorm_backward, layernorm_forward},
        rmsnorm::{add_rmsnorm_forward, rmsnorm_backward, rmsnorm_forward},
        rope::{rope_backward, rope_forward},
        swiglu::{swiglu_backward, swiglu_forward},
    },
    tensor::{DType, Tensor},
};

/// Tokens, hidden size, intermediate size, vocabulary of the shape measured.
const N: usize = 1024;
const C: usize = 576;
const F: usize = 1536;
const V: usize = 49152;

fn main() {
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let bench = Bench { only };
    println!("threads {}", rayon::current_num_threads());
    println!("{:<44} {:>10} {:>10}", "op", "ms", "per second");
    encoder(&bench);
    attention(&bench, "attention 4 x 256", &[256; 4], None);
    attention(&bench, "attention 1 x 1024", &[1024], None);
    attention(&bench, "attention 1 x 2048", &[2048], None);
    attention(&bench, "attention 1 x 2048 window 256", &[2048], Some(256));
    rowwise(&bench);
    embedding(&bench);
    for (rows, length) in [(1, 128), (1, 1024), (1, 4096), (8, 128), (8, 1024)] {
        decode(&bench, rows, length);
    }
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
    let shape = AttentionShape { heads: 9, kv_heads: 3, head_size: 64, scale: 0.125, window, softcap: None };
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

/// Bytes are counted once a tensor read or written.
fn rowwise(bench: &Bench) {
    let (mut out, mut rstd, mut sum) = (zeros("out", &[N, C]), zeros("rstd", &[N]), zeros("sum", &[N, C]));
    let (inp, resid, weight) = (random("inp", &[N, C]), random("resid", &[N, C]), random("weight", &[C]));
    let (mut dinp, mut dweight) = (zeros("dinp", &[N, C]), zeros("dweight", &[C]));
    let row = (N * C * 4) as f64;
    bench.row("rmsnorm_forward", row * 2.0, "GB", || {
        rmsnorm_forward(&mut out, &mut rstd, &inp, &weight, 1e-5).expect("shapes")
    });
    bench.row("add_rmsnorm_forward", row * 4.0, "GB", || {
        add_rmsnorm_forward(&mut out, &mut rstd, &mut sum, &inp, &resid, &weight, 1e-5).expect("shapes")
    });
    bench.row("rmsnorm_backward", row * 4.0, "GB", || {
        rmsnorm_backward(&mut dinp, Some(&mut dweight), &resid, &inp, &rstd, &weight).expect("shapes")
    });
    let positions: Vec<u32> = (0..N as u32).map(|i| i % 256).collect();
    let positions = Tensor::from_u32("positions", &[N], &positions).expect("memory");
    let angles: Vec<f32> = (0..256 * 32).map(|i| (i / 32) as f32 * 0.8f32.powi(i % 32)).collect();
    let table = |name: &str, f: fn(f32) -> f32| {
        Tensor::from_f32(name, &[256, 32], &angles.iter().map(|&a| f(a)).collect::<Vec<_>>()).expect("memory")
    };
    let (cos, sin, mut out) = (table("cos", f32::cos), table("sin", f32::sin), random("x", &[N, C]));
    bench.row("rope_forward", row * 2.0, "GB", || {
        rope_forward(&mut out, &positions, &cos, &sin, 64).expect("shapes");
    });
    bench.row("rope_backward", row * 2.0, "GB", || {
        rope_backward(&mut out, &positions, &cos, &sin, 64).expect("shapes");
    });
    let (mut out, gate, up) = (zeros("out", &[N, F]), random("gate", &[N, F]), random("up", &[N, F]));
    let (mut dgate, mut dup, dout) =
        (zeros("dgate", &[N, F]), zeros("dup", &[N, F]), random("dout", &[N, F]));
    let row = (N * F * 4) as f64;
    bench.row("swiglu_forward", row * 3.0, "GB", || {
        swiglu_forward(&mut out, &gate, &up).expect("shapes");
    });
    bench.row("swiglu_backward", row * 5.0, "GB", || {
        swiglu_backward(&mut dgate, &mut dup, &dout, &gate, &up).expect("shapes");
    });
}

/// LayerNorm, GELU, tanh and full attention.
fn encoder(bench: &Bench) {
    let [inp, dout, wide] = [("inp", C), ("dout", C), ("wide", F)].map(|(name, c)| random(name, &[N, c]));
    let (weight, bias) = (random("weight", &[C]), random("bias", &[C]));
    let (mut out, mut mean, mut rstd) = (zeros("out", &[N, C]), zeros("mean", &[N]), zeros("rstd", &[N]));
    let row = (N * C * 4) as f64;
    bench.row("layernorm_forward", row * 2.0, "GB", || {
        layernorm_forward(&mut out, &mut mean, &mut rstd, &inp, &weight, &bias, 1e-5).expect("shapes");
    });
    let (mut dinp, mut dw, mut db) = (zeros("dinp", &[N, C]), zeros("dw", &[C]), zeros("db", &[C]));
    bench.row("layernorm_backward", row * 4.0, "GB", || {
        let sums = Some((&mut dw, &mut db));
        layernorm_backward(&mut dinp, sums, &dout, &inp, &mean, &rstd, &weight).expect("shapes");
    });
    let (mut act, row) = (zeros("act", &[N, F]), (N * F * 4) as f64);
    for f in [Activation::Gelu, Activation::Tanh] {
        bench.row(&format!("{f:?} forward"), row * 2.0, "GB", || {
            activation_forward(&mut act, &wide, f).expect("shapes");
        });
        let dout = random("dact", &[N, F]);
        bench.row(&format!("{f:?} backward"), row * 3.0, "GB", || {
            activation_backward(&mut act, &dout, &wide, f).expect("shapes");
        });
    }
    let shape =
        AttentionShape { heads: 9, kv_heads: 9, head_size: 64, scale: 0.125, window: None, softcap: None };
    let (mut out, mut lse) = (zeros("out", &[N, C]), zeros("lse", &[9, N]));
    let cu = Tensor::from_u32("cu", &[9], &(0..9).map(|i| i * 128).collect::<Vec<_>>()).expect("memory");
    bench.row("full attention 8 x 128", (4 * N * 128 * C) as f64, "GFLOP", || {
        cross_attention_forward(&mut out, &mut lse, &inp, &dout, &inp, &cu, &cu, shape).expect("shapes");
    });
}

fn embedding(bench: &Bench) {
    let mut random_ids = RowRandom::new(1, "bench", "tokens");
    let ids: Vec<u32> = (0..N).map(|_| random_ids.below(V) as u32).collect();
    let tokens = Tensor::from_u32("tokens", &[N], &ids).expect("memory");
    let (mut out, weight, mut dweight) =
        (zeros("out", &[N, C]), zeros("weight", &[V, C]), zeros("dweight", &[V, C]));
    bench.row("embedding_forward", (N * C * 8) as f64, "GB", || {
        embedding_forward(&mut out, &tokens, &weight).expect("shapes")
    });
    bench.row("embedding_backward", (N * C * 12) as f64, "GB", || {
        embedding_backward(&mut dweight, &out, &tokens).expect("shapes")
    });
}

/// One layer of one decoding step.
fn decode(bench: &Bench, rows: usize, length: usize) {
    let shape =
        AttentionShape { heads: 9, kv_heads: 3, head_size: 64, scale: 0.125, window: None, softcap: None };
    let (mut out, q) = (zeros("out", &[rows, 576]), random("q", &[rows, 576]));
    let (k, v) = (random("k", &[rows * length, 192]), random("v", &[rows * length, 192]));
    let starts: Vec<u32> = (0..rows).map(|r| (r * length) as u32).collect();
    let starts = Tensor::from_u32("starts", &[rows], &starts).expect("memory");
    let lengths = Tensor::from_u32("lengths", &[rows], &vec![length as u32; rows]).expect("memory");
    let bytes = (rows * length * 192 * 8) as f64;
    bench.row(&format!("decode_attention {rows} rows of {length} keys"), bytes, "GB", || {
        decode_attention_forward(&mut out, &q, &k, &v, &starts, &lengths, shape).expect("shapes")
    });
}
