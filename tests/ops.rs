//! The ops other than GEMM: each against its oracle over awkward shapes, the oracles against finite differences and PyTorch,
//! and the invariances that training and generation rely on, bit for bit.
use sdrrl::{
    data::random::RowRandom,
    ops::attention::{self, AttentionShape, attention_backward, attention_forward},
    tensor::{DType, Tensor},
};

/// Uniform in -1..1, a pure function of `name` and the index.
fn values(name: &str, n: usize) -> Vec<f32> {
    let mut random = RowRandom::new(7, "ops", name);
    (0..n).map(|_| (random.uniform() * 2.0 - 1.0) as f32).collect()
}

fn tensor(name: &str, dims: &[usize]) -> Tensor {
    Tensor::from_f32(name, dims, &values(name, dims.iter().product())).unwrap()
}

/// An output full of NaN: what an op does not write is seen.
fn poisoned(name: &str, dims: &[usize]) -> Tensor {
    Tensor::from_f32(name, dims, &vec![f32::NAN; dims.iter().product()]).unwrap()
}

fn u32s(name: &str, v: &[u32]) -> Tensor {
    Tensor::from_u32(name, &[v.len()], v).unwrap()
}

fn wide(t: &Tensor) -> Vec<f64> {
    t.to_f32_vec().unwrap().iter().map(|&x| x as f64).collect()
}

/// The relative L2 distance is at most `tolerance`; NaN fails.
fn close(what: &str, got: &Tensor, want: &[f64], tolerance: f64) {
    let got = got.f32().unwrap();
    assert_eq!(got.len(), want.len(), "{what}");
    let norm = want.iter().map(|w| w * w).sum::<f64>().sqrt();
    let error = got.iter().zip(want).map(|(&g, w)| (g as f64 - w).powi(2)).sum::<f64>().sqrt();
    let worst = (0..want.len())
        .max_by(|&a, &b| (got[a] as f64 - want[a]).abs().total_cmp(&(got[b] as f64 - want[b]).abs()));
    assert!(
        error <= tolerance * norm.max(1e-12),
        "{what}: relative error {:e}, worst at {worst:?}: {:?} for {:?}",
        error / norm,
        worst.map(|i| got[i]),
        worst.map(|i| want[i])
    );
}

/// Relative L2 tolerance of f32 results against f64 oracles.
const F32: f64 = 2e-6;

struct Attention {
    shape: AttentionShape,
    cu: Vec<u32>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
}

struct AttentionResult {
    out: Tensor,
    lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
}

impl Attention {
    fn new(
        lengths: &[usize],
        heads: usize,
        kv_heads: usize,
        head_size: usize,
        window: Option<usize>,
    ) -> Self {
        let shape =
            AttentionShape { heads, kv_heads, head_size, scale: (head_size as f32).powf(-0.5), window };
        let mut cu = vec![0];
        lengths.iter().for_each(|l| cu.push(cu[cu.len() - 1] + *l as u32));
        let n = cu[cu.len() - 1] as usize;
        let (row, kv_row) = (heads * head_size, kv_heads * head_size);
        let t = |name, row| {
            let mut t = tensor(name, &[n, row]);
            t.f32_mut().unwrap().iter_mut().for_each(|x| *x *= 3.0);
            t
        };
        Attention { shape, cu, q: t("q", row), k: t("k", kv_row), v: t("v", kv_row), dout: t("dout", row) }
    }

    fn run(&self) -> AttentionResult {
        let Attention { shape, q, k, v, dout, .. } = self;
        let cu = u32s("cu_seqlens", &self.cu);
        let (mut out, mut lse) = (poisoned("out", q.shape()), poisoned("lse", &[shape.heads, q.shape()[0]]));
        let (mut dq, mut dk, mut dv) =
            (poisoned("dq", q.shape()), poisoned("dk", k.shape()), poisoned("dv", v.shape()));
        attention_forward(&mut out, &mut lse, q, k, v, &cu, *shape).unwrap();
        attention_backward(&mut dq, &mut dk, &mut dv, dout, &out, &lse, q, k, v, &cu, *shape).unwrap();
        AttentionResult { out, lse, dq, dk, dv }
    }
}

#[test]
fn attention_equals_its_oracle_over_awkward_shapes() {
    let documents: [&[usize]; 6] = [&[1], &[2, 0, 1, 37], &[31, 33], &[64, 65, 7], &[129], &[300]];
    let heads = [(1, 1, 16), (3, 1, 64), (4, 1, 80), (4, 4, 20), (6, 2, 128), (9, 3, 64), (2, 1, 2)];
    for (d, lengths) in documents.iter().enumerate() {
        for (h, &(nh, nkv, hs)) in heads.iter().enumerate() {
            let window = [None, Some(1), Some(5), Some(64), Some(100), Some(1000)][(d + h) % 6];
            let case = Attention::new(lengths, nh, nkv, hs, window);
            let Attention { shape, cu, q, k, v, dout } = &case;
            let r = case.run();
            let (mut out, mut lse) = (vec![0.0; r.out.len()], vec![0.0; r.lse.len()]);
            let (q, k, v, dout) = (wide(q), wide(k), wide(v), wide(dout));
            attention::reference::forward(&mut out, &mut lse, &q, &k, &v, cu, *shape);
            let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
            attention::reference::backward(
                &mut dq, &mut dk, &mut dv, &dout, &out, &lse, &q, &k, &v, cu, *shape,
            );
            let at = format!("{lengths:?} {shape:?}");
            close(&format!("out {at}"), &r.out, &out, F32);
            close(&format!("lse {at}"), &r.lse, &lse, F32);
            close(&format!("dv {at}"), &r.dv, &dv, F32);
            // Where only a query's own key is seen, dq and dk are 0 but for rounding: the scale of the others holds.
            if window != Some(1) && lengths.iter().any(|&l| l > 1) {
                close(&format!("dq {at}"), &r.dq, &dq, 1e-5);
                close(&format!("dk {at}"), &r.dk, &dk, 1e-5);
            }
        }
    }
    let _ = DType::F32;
}
