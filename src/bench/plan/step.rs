//! The time of a training step on one GPU, part by part: products by their tiles, everything else by the bytes that it moves.
use super::card::Rates;
use crate::models::transformer::spec::Spec;

/// What one GPU is to do in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Documents of a micro-batch.
    pub documents: usize,
    /// Tokens of each.
    pub length: usize,
    /// Micro-batches of a step.
    pub micro_batches: usize,
    /// Rank of the adapters on all linears; `None`: every weight is trained.
    pub lora_rank: Option<usize>,
    /// Parameters that are trained.
    pub trained: usize,
}

/// Seconds of a step, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seconds {
    /// Products with the weights.
    pub products: f64,
    /// Products with the adapters.
    pub adapters: f64,
    /// Attention, both ways.
    pub attention: f64,
    /// Norms, gates, rotation.
    pub elementwise: f64,
    /// Logits, loss and its gradient.
    pub head: f64,
    /// Between kernels.
    pub gaps: f64,
    /// Norm of the gradients, update of the parameters.
    pub optimizer: f64,
    /// Of `products`, `attention` and `elementwise`: what the backward pass takes, which sums over ranks may hide behind.
    pub backward: f64,
}

/// Kernels that a layer's forward and backward pass launch (counted on the emulated driver), and those of one chunk of the head.
const KERNELS: (f64, f64) = (56.0, 5.0);
/// Bytes of one chunk of f32 logits.
const LOGITS: usize = 48 << 20;
/// Bytes that AdamW reads and writes a parameter: value, gradient, two moments, the gradients' norm before.
const ADAMW: f64 = 32.0;

impl Seconds {
    /// All of it.
    pub fn total(&self) -> f64 {
        let passes = self.products + self.adapters + self.attention + self.elementwise;
        passes + self.head + self.gaps + self.optimizer
    }
}

/// FLOP of the products and of attention that a step needs, recomputation not counted: 2 a weight forward and 2 backward, 2 more where weights are trained; 4 T C a token for
/// full attention, half of it causal, and 2.5 times as much backward (Dao et al. 2022).
pub fn useful_flop(spec: &Spec, work: Work) -> f64 {
    let tokens = (work.documents * work.length * work.micro_batches) as f64;
    let weights: f64 = linears(spec).iter().map(|[m, k]| (m * k) as f64).sum::<f64>()
        * spec.layers.len() as f64
        + (spec.vocab_size * spec.hidden_size) as f64;
    let passes = if work.lora_rank.is_some() { 4.0 } else { 6.0 };
    let attention: f64 = spec.layers.iter().map(|l| attention_flop(spec, work, l.window)).sum();
    tokens * passes * weights + 3.5 * attention * work.micro_batches as f64
}

/// (out, in) of a layer's linears: q, k, v, o, gate, up, down.
fn linears(spec: &Spec) -> [[usize; 2]; 7] {
    let (c, f) = (spec.hidden_size, spec.intermediate_size);
    let (q, kv) = (spec.heads * spec.head_size, spec.kv_heads * spec.head_size);
    [[q, c], [kv, c], [kv, c], [c, q], [f, c], [f, c], [c, f]]
}

/// FLOP of attention's forward pass over one micro-batch in one layer.
fn attention_flop(spec: &Spec, work: Work, window: Option<usize>) -> f64 {
    let (t, w) = (work.length as f64, window.unwrap_or(work.length).min(work.length) as f64);
    // Pairs of a token and one that it sees: w (w + 1) / 2 where the window is still filling, then w each.
    let pairs = w * w / 2.0 + (t - w) * w;
    4.0 * pairs * (spec.heads * spec.head_size * work.documents) as f64
}

/// Seconds of out (n, m) over depth k in tiles of 128 x 256 or 128 x 128, whichever takes less: a wave of tiles takes as long full as not.
fn product(rates: &Rates, n: usize, m: usize, k: usize) -> f64 {
    let seconds = |columns: usize, share: f64| {
        let waves = (n.div_ceil(128) * m.div_ceil(columns)).div_ceil(rates.multiprocessors);
        let computed = 2.0 * (waves * rates.multiprocessors * 128 * columns * k) as f64;
        computed / (share * rates.products)
    };
    seconds(256, 1.0).min(seconds(128, 0.8))
}

/// The estimate; docs/plan.md has the formulas in words.
pub fn estimate(spec: &Spec, work: Work, rates: &Rates) -> Seconds {
    let (n, rank) = (work.documents * work.length, work.lora_rank.unwrap_or(0));
    let (layers, c, f) = (spec.layers.len() as f64, spec.hidden_size as f64, spec.intermediate_size as f64);
    let tokens = n as f64;
    let sum = |f: &dyn Fn(usize, usize) -> f64| linears(spec).iter().map(|&[m, k]| f(m, k)).sum::<f64>();
    let forward = layers * sum(&|m, k| product(rates, n, m, k + rank));
    let mut backward = layers * sum(&|m, k| product(rates, n, k, m + rank));
    if work.lora_rank.is_none() {
        backward += layers * sum(&|m, k| product(rates, m, k, n));
    }
    let moved = |values: f64, share: f64| 2.0 * tokens * values / (share * rates.bandwidth);
    // u = x Aᵀ, dA: x; du = dy B, dB: dy.
    let thin = if rank > 0 { sum(&|m, k| moved(2.0 * (m + k) as f64, 0.6)) } else { 0.0 };
    let attention: f64 = spec.layers.iter().map(|l| attention_flop(spec, work, l.window)).sum();
    let heads = ((spec.heads + spec.kv_heads) * spec.head_size) as f64;
    // Four norms forward (two of them again for backward) and two backward; q and k turned both ways; the gate twice forward and once backward; rows of dout times out.
    let passes = [
        moved(4.0 * 2.0 * c + 2.0 * 4.0 * c, 0.8),
        moved(4.0 * heads, 0.45),
        moved(6.0 * f + 5.0 * f + 2.0 * c, 0.85),
    ];
    let elementwise = layers * passes.iter().sum::<f64>();
    let chunk = (LOGITS / (4 * spec.vocab_size)).clamp(16, 1024);
    let chunks = n.div_ceil(chunk);
    let (v, wide) = (spec.vocab_size, spec.hidden_size);
    let mut head = chunks as f64 * (product(rates, chunk, v, wide) + product(rates, chunk, wide, v))
        + tokens * v as f64 * 12.0 / rates.bandwidth;
    if work.lora_rank.is_none() {
        head += product(rates, v, wide, n);
    }
    let attention_backward = 2.5 * attention / rates.attention_backward;
    let times = work.micro_batches as f64;
    Seconds {
        products: times * (forward + backward),
        adapters: times * layers * thin,
        attention: times * (attention / rates.attention + attention_backward),
        elementwise: times * elementwise,
        head: times * head,
        gaps: times * rates.gap * (KERNELS.0 * layers + KERNELS.1 * chunks as f64),
        optimizer: work.trained as f64 * ADAMW / rates.bandwidth,
        backward: backward + attention_backward + elementwise / 2.0,
    }
}
