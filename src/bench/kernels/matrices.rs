//! Matrix products and attention.
use anyhow::Result;

use super::{Kernel, Op, Sizes, on, read};
use crate::{
    bench::ceilings::random,
    device::Device,
    ops::{
        attention::{AttentionShape, attention_backward, attention_forward, cross_attention_forward},
        decode_attention::decode_attention_forward,
        gemm::{self, Layout},
    },
    tensor::{DType, Tensor},
};

pub(super) fn products(all: &mut Vec<Kernel>, s: Sizes, dtype: DType) {
    let Sizes { n, c, f, v, .. } = s;
    let shapes = [
        (Layout::NT, [n, c, c]),
        (Layout::NT, [n, f, c]),
        (Layout::NT, [n, c, f]),
        (Layout::NT, [n / 4, v, c]),
        (Layout::NN, [n, c, f]),
        (Layout::NN, [n, f, c]),
        (Layout::TN, [c, f, n]),
        // LoRA's thin ones.
        (Layout::NT, [n, 16, c]),
        (Layout::NT, [n, f, 16]),
        (Layout::TN, [f, 16, n]),
        // Decoding.
        (Layout::NT, [1, f, c]),
        (Layout::NT, [1, v, c]),
        (Layout::NT, [8, f, c]),
    ];
    for weights in [DType::F32, DType::Bf16] {
        // On a GPU both operands have one type; the processor widens weights.
        let on_gpu = dtype == DType::Bf16;
        if on_gpu && weights == DType::F32 {
            continue;
        }
        for (layout, [n, m, k]) in shapes {
            if layout == Layout::TN && weights == DType::Bf16 && !on_gpu {
                // Gradients of weights: both sides are activations.
                continue;
            }
            let make = move |device: &Device| -> Result<Op> {
                let dtype = on(device, dtype);
                let a = random(device, "a", dtype, &if layout == Layout::TN { [k, n] } else { [n, k] })?;
                // A gradient's sides are both activations.
                let weights = if layout == Layout::TN { dtype } else { weights };
                let b = random(device, "b", weights, &if layout == Layout::NT { [m, k] } else { [k, m] })?;
                let mut out = Tensor::zeros_on(device, "out", dtype, &[n, m])?;
                Ok(Box::new(move |asked| {
                    gemm::gemm(&mut out, &a, &b, layout, 1.0, false)?;
                    read(asked, &out)
                }))
            };
            all.push(Kernel {
                name: format!("product {layout:?} {n} x {m} x {k} {}", weights.suffix()),
                work: 2.0 * (n * m * k) as f64 / 1e9,
                products: Some(weights),
                make: Box::new(make),
            });
        }
    }
}

fn shape(s: Sizes, kv_heads: usize) -> AttentionShape {
    let scale = (s.head as f32).powf(-0.5);
    AttentionShape { heads: s.heads, kv_heads, head_size: s.head, scale, window: None, softcap: None }
}

/// Where documents of one length begin.
fn starts(device: &Device, documents: usize, length: usize) -> Result<Tensor> {
    let cu: Vec<u32> = (0..=documents).map(|i| (i * length) as u32).collect();
    Tensor::from_u32("cu_seqlens", &[cu.len()], &cu)?.to_device(device)
}

pub(super) fn attention(all: &mut Vec<Kernel>, s: Sizes, dtype: DType) {
    let Sizes { n, heads, kv_heads, head, .. } = s;
    let (wide, narrow) = (heads * head, kv_heads * head);
    for documents in [4, 1] {
        let length = n / documents;
        // Query times key, probability times value, over pairs that are not in the future.
        let flop = (documents * length * (length + 1) / 2 * heads * head * 4) as f64 / 1e9;
        let forward = move |device: &Device| -> Result<Op> {
            let dtype = on(device, dtype);
            let cu = starts(device, documents, length)?;
            let [q, k, v] = [("q", wide), ("k", narrow), ("v", narrow)]
                .map(|(name, c)| random(device, name, dtype, &[n, c]));
            let (q, k, v) = (q?, k?, v?);
            let mut out = Tensor::zeros_on(device, "out", dtype, &[n, wide])?;
            let mut lse = Tensor::zeros_on(device, "lse", DType::F32, &[heads, n])?;
            Ok(Box::new(move |asked| {
                attention_forward(&mut out, &mut lse, &q, &k, &v, &cu, shape(s, kv_heads))?;
                read(asked, &out)
            }))
        };
        let backward = move |device: &Device| -> Result<Op> {
            let dtype = on(device, dtype);
            let cu = starts(device, documents, length)?;
            let [q, k, v, dout] = [("q", wide), ("k", narrow), ("v", narrow), ("dout", wide)]
                .map(|(name, c)| random(device, name, dtype, &[n, c]));
            let (q, k, v, dout) = (q?, k?, v?, dout?);
            let zeros = |name: &str, c: usize| Tensor::zeros_on(device, name, dtype, &[n, c]);
            let (mut dq, mut dk, mut dv, mut out) =
                (zeros("dq", wide)?, zeros("dk", narrow)?, zeros("dv", narrow)?, zeros("out", wide)?);
            let mut lse = Tensor::zeros_on(device, "lse", DType::F32, &[heads, n])?;
            attention_forward(&mut out, &mut lse, &q, &k, &v, &cu, shape(s, kv_heads))?;
            Ok(Box::new(move |asked| {
                let shape = shape(s, kv_heads);
                attention_backward(&mut dq, &mut dk, &mut dv, &dout, &out, &lse, &q, &k, &v, &cu, shape)?;
                read(asked, &dk)
            }))
        };
        let name = |what: &str| format!("attention {documents} x {length} {what}");
        let products = Some(dtype);
        all.push(Kernel { name: name("forward"), work: flop, products, make: Box::new(forward) });
        all.push(Kernel { name: name("backward"), work: 2.5 * flop, products, make: Box::new(backward) });
    }
    full_attention(all, s, dtype);
    decode_attention(all, s, dtype);
}

/// As encoders have it.
fn full_attention(all: &mut Vec<Kernel>, s: Sizes, dtype: DType) {
    let Sizes { n, heads, head, .. } = s;
    let wide = heads * head;
    let full = move |device: &Device| -> Result<Op> {
        let dtype = on(device, dtype);
        let cu = starts(device, 8, n / 8)?;
        let [q, k, v] = ["q", "k", "v"].map(|name| random(device, name, dtype, &[n, wide]));
        let (q, k, v) = (q?, k?, v?);
        let mut out = Tensor::zeros_on(device, "out", dtype, &[n, wide])?;
        let mut lse = Tensor::zeros_on(device, "lse", DType::F32, &[heads, n])?;
        Ok(Box::new(move |asked| {
            cross_attention_forward(&mut out, &mut lse, &q, &k, &v, &cu, &cu, shape(s, heads))?;
            read(asked, &out)
        }))
    };
    let work = (4 * n * (n / 8) * wide) as f64 / 1e9;
    let name = format!("full attention 8 x {}", n / 8);
    all.push(Kernel { name, work, products: Some(dtype), make: Box::new(full) });
}

/// One layer of one step of decoding.
fn decode_attention(all: &mut Vec<Kernel>, s: Sizes, dtype: DType) {
    let Sizes { n, heads, kv_heads, head, .. } = s;
    let (wide, narrow) = (heads * head, kv_heads * head);
    for (rows, length) in [(1, n), (8, n / 8), (8, n)] {
        let make = move |device: &Device| -> Result<Op> {
            let dtype = on(device, dtype);
            let q = random(device, "q", dtype, &[rows, wide])?;
            let [k, v] = ["k", "v"].map(|name| random(device, name, dtype, &[rows * length, narrow]));
            let (k, v) = (k?, v?);
            let mut out = Tensor::zeros_on(device, "out", dtype, &[rows, wide])?;
            let from: Vec<u32> = (0..rows).map(|r| (r * length) as u32).collect();
            let from = Tensor::from_u32("starts", &[rows], &from)?.to_device(device)?;
            let lengths =
                Tensor::from_u32("lengths", &[rows], &vec![length as u32; rows])?.to_device(device)?;
            Ok(Box::new(move |asked| {
                decode_attention_forward(&mut out, &q, &k, &v, &from, &lengths, shape(s, kv_heads))?;
                read(asked, &out)
            }))
        };
        all.push(Kernel {
            name: format!("decode attention {rows} rows of {length} keys"),
            work: (rows * length * narrow * 2 * dtype.bytes()) as f64 / 1e9,
            products: None,
            make: Box::new(make),
        });
    }
}
