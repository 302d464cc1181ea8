//! The ops other than GEMM: each against its oracle over awkward shapes, the oracles against finite differences and PyTorch,
//! and the invariances that training and generation rely on, bit for bit.
use safetensors::SafeTensors;
use sdrrl::{data::random::RowRandom, device::Device, ops::with_threads, tensor::Tensor};

mod attention;
mod beam_step;
pub mod blocks;
mod decode_attention;
mod encoder;
mod gemma;
mod int8;
mod kl_divergence;
mod rowwise;
mod sampling;
mod top_k;

/// Relative L2 tolerance of f32 results against f64 oracles, for sums of up to some hundred terms.
const F32: f64 = 2e-6;

/// Uniform in -1..1, a pure function of `name` and the index.
fn values(name: &str, n: usize) -> Vec<f32> {
    let mut random = RowRandom::new(7, "ops", name);
    (0..n).map(|_| (random.uniform() * 2.0 - 1.0) as f32).collect()
}

/// Uniform in -3..3.
fn tensor(name: &str, dims: &[usize]) -> Tensor {
    let v: Vec<f32> = values(name, dims.iter().product()).iter().map(|x| x * 3.0).collect();
    Tensor::from_f32(name, dims, &v).unwrap()
}

/// An output full of NaN: what an op does not write is seen.
fn poisoned(name: &str, dims: &[usize]) -> Tensor {
    Tensor::from_f32(name, dims, &vec![f32::NAN; dims.iter().product()]).unwrap()
}

fn u32s(name: &str, v: &[u32]) -> Tensor {
    Tensor::from_u32(name, &[v.len()], v).unwrap()
}

/// Changes a tensor's values.
fn change(t: &mut Tensor, f: impl FnOnce(&mut [f32])) {
    let mut values = t.to_f32_vec().unwrap();
    f(&mut values);
    t.write_f32(&values).unwrap();
}

fn wide(t: &Tensor) -> Vec<f64> {
    t.to_f32_vec().unwrap().iter().map(|&x| x as f64).collect()
}

/// The relative L2 distance is at most `tolerance`; NaN fails.
fn close(what: &str, got: &Tensor, want: &[f64], tolerance: f64) {
    let got = got.to_f32_vec().unwrap();
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

/// The same bits, NaN included.
fn same_bits(what: &str, a: impl AsRef<[f32]>, b: impl AsRef<[f32]>) {
    let (a, b) = (a.as_ref(), b.as_ref());
    assert_eq!(a.len(), b.len(), "{what}");
    if let Some(i) = (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits()) {
        panic!("{what}: element {i} is {:e} and {:e}", a[i], b[i]);
    }
}

/// Central differences of `loss` at `x` equal `grad`, both in f64.
fn finite_differences(what: &str, x: &[f64], grad: &[f64], mut loss: impl FnMut(&[f64]) -> f64) {
    assert_eq!(x.len(), grad.len(), "{what}");
    const H: f64 = 1e-5;
    for i in 0..x.len() {
        let mut at = |h: f64| {
            let mut x = x.to_vec();
            x[i] += h;
            loss(&x)
        };
        let slope = (at(H) - at(-H)) / (2.0 * H);
        let error = (slope - grad[i]).abs();
        assert!(error <= 1e-7 * (1.0 + slope.abs()), "{what}[{i}]: slope {slope}, gradient {}", grad[i]);
    }
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The error's message names each of these.
fn refused<T>(result: anyhow::Result<T>, names: &[&str]) {
    let message = format!("{:#}", result.err().expect("an error"));
    names.iter().for_each(|n| assert!(message.contains(n), "{n} is missing in: {message}"));
}

/// Tensors that PyTorch made (`scripts/golden_ops.py`).
struct Golden(Vec<u8>);

impl Golden {
    fn open() -> Golden {
        Golden(std::fs::read("tests/golden/ops.safetensors").unwrap())
    }
    /// What Gemma adds.
    fn gemma() -> Golden {
        Golden::of("gemma_ops")
    }
    fn of(name: &str) -> Golden {
        Golden(std::fs::read(format!("tests/golden/{name}.safetensors")).unwrap())
    }
    fn view<T>(&self, name: &str, parse: fn([u8; 4]) -> T) -> (Vec<usize>, Vec<T>) {
        let all = SafeTensors::deserialize(&self.0).unwrap();
        let view = all.tensor(name).unwrap();
        let values = view.data().chunks_exact(4).map(|b| parse(b.try_into().unwrap())).collect();
        (view.shape().to_vec(), values)
    }
    /// As it is stored, or with all but the first dimension as one: heads lie side by side.
    fn tensor(&self, name: &str) -> Tensor {
        let (shape, values) = self.view(name, f32::from_le_bytes);
        let dims = if shape.len() > 1 { vec![shape[0], shape[1..].iter().product()] } else { shape };
        Tensor::from_f32(name, &dims, &values).unwrap()
    }
    fn u32s(&self, name: &str) -> Vec<u32> {
        self.view(name, u32::from_le_bytes).1
    }
}
