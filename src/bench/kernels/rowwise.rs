//! Ops that pass over rows: norms, RoPE, activations, embedding.
use anyhow::Result;

use super::{Kernel, Op, Sizes, on, read};
use crate::{
    bench::ceilings::random,
    device::Device,
    ops::{
        activation::{Activation, activation_backward, activation_forward},
        embedding::embedding_forward,
        layernorm::{layernorm_backward, layernorm_forward},
        rmsnorm::{add_rmsnorm_forward, rmsnorm_backward, rmsnorm_forward},
        rope::{rope_backward, rope_forward},
        swiglu::{swiglu_backward, swiglu_forward},
    },
    tensor::{DType, Tensor},
};

/// Ops on rows, whose work is bytes: `times` tensors of n x c (or n x f, where `wide`) elements.
pub(super) fn rowwise(all: &mut Vec<Kernel>, s: Sizes, dtype: DType) {
    let Sizes { n, c, f, v, head, .. } = s;
    let mut add = |name: &str, wide: bool, times: f64, make: Box<dyn Fn(&Device) -> Result<Op>>| {
        let elements = (n * if wide { f } else { c }) as f64;
        let work = elements * dtype.bytes() as f64 * times / 1e9;
        all.push(Kernel { name: name.into(), work, products: None, make });
    };
    let of = move |device: &Device, name: &str, c: usize| random(device, name, on(device, dtype), &[n, c]);
    let zeros = move |device: &Device, name: &str, c: usize| {
        Tensor::zeros_on(device, name, on(device, dtype), &[n, c])
    };
    let vector = move |device: &Device, name: &str| random(device, name, DType::F32, &[c]);
    let column = move |device: &Device, name: &str| Tensor::zeros_on(device, name, DType::F32, &[n]);
    add(
        "rmsnorm forward",
        false,
        2.0,
        Box::new(move |d| {
            let (mut out, mut rstd, inp, weight) =
                (zeros(d, "out", c)?, column(d, "rstd")?, of(d, "inp", c)?, vector(d, "weight")?);
            Ok(Box::new(move |asked| {
                rmsnorm_forward(&mut out, &mut rstd, &inp, &weight, 1e-5)?;
                read(asked, &out)
            }))
        }),
    );
    add(
        "residual and rmsnorm forward",
        false,
        4.0,
        Box::new(move |d| {
            let (mut out, mut sum, mut rstd) = (zeros(d, "out", c)?, zeros(d, "sum", c)?, column(d, "rstd")?);
            let (inp, resid, weight) = (of(d, "inp", c)?, of(d, "resid", c)?, vector(d, "weight")?);
            Ok(Box::new(move |asked| {
                add_rmsnorm_forward(&mut out, &mut rstd, &mut sum, &inp, &resid, &weight, 1e-5)?;
                read(asked, &out)
            }))
        }),
    );
    add(
        "rmsnorm backward",
        false,
        4.0,
        Box::new(move |d| {
            let (mut out, mut dinp, mut rstd) =
                (zeros(d, "out", c)?, zeros(d, "dinp", c)?, column(d, "rstd")?);
            let (inp, dout, weight) = (of(d, "inp", c)?, of(d, "dout", c)?, vector(d, "weight")?);
            rmsnorm_forward(&mut out, &mut rstd, &inp, &weight, 1e-5)?;
            let nothing = zeros(d, "nothing", c)?;
            Ok(Box::new(move |asked| {
                if asked {
                    // It adds to what is there.
                    dinp.copy_from(&nothing)?;
                }
                rmsnorm_backward(&mut dinp, None, &dout, &inp, &rstd, &weight)?;
                read(asked, &dinp)
            }))
        }),
    );
    add(
        "layernorm forward",
        false,
        2.0,
        Box::new(move |d| {
            let (mut out, mut mean, mut rstd) = (zeros(d, "out", c)?, column(d, "mean")?, column(d, "rstd")?);
            let (inp, weight, bias) = (of(d, "inp", c)?, vector(d, "weight")?, vector(d, "bias")?);
            Ok(Box::new(move |asked| {
                layernorm_forward(&mut out, &mut mean, &mut rstd, &inp, &weight, &bias, 1e-5)?;
                read(asked, &out)
            }))
        }),
    );
    add(
        "layernorm backward",
        false,
        4.0,
        Box::new(move |d| {
            let (mut out, mut mean, mut rstd) = (zeros(d, "out", c)?, column(d, "mean")?, column(d, "rstd")?);
            let (inp, dout, weight, bias) =
                (of(d, "inp", c)?, of(d, "dout", c)?, vector(d, "weight")?, vector(d, "bias")?);
            layernorm_forward(&mut out, &mut mean, &mut rstd, &inp, &weight, &bias, 1e-5)?;
            let nothing = zeros(d, "nothing", c)?;
            Ok(Box::new(move |asked| {
                if asked {
                    out.copy_from(&nothing)?;
                }
                layernorm_backward(&mut out, None, &dout, &inp, &mean, &rstd, &weight)?;
                read(asked, &out)
            }))
        }),
    );
    for forward in [true, false] {
        let name = if forward { "rope forward" } else { "rope backward" };
        add(
            name,
            false,
            2.0,
            Box::new(move |d| {
                let positions: Vec<u32> = (0..n as u32).map(|i| i % 256).collect();
                let positions = Tensor::from_u32("positions", &[n], &positions)?.to_device(d)?;
                let angles = (0..256 * (head / 2))
                    .map(|i| (i / (head / 2)) as f32 * 0.8f32.powi((i % (head / 2)) as i32));
                let table = |name: &str, f: fn(f32) -> f32| {
                    let values: Vec<f32> = angles.clone().map(f).collect();
                    Tensor::from_f32(name, &[256, head / 2], &values)?.to_device(d)
                };
                let (cos, sin) = (table("cos", f32::cos)?, table("sin", f32::sin)?);
                let (mut x, start) = (of(d, "x", c)?, of(d, "x", c)?);
                Ok(Box::new(move |asked| {
                    if asked {
                        // It works in place.
                        x.copy_from(&start)?;
                    }
                    let op = if forward { rope_forward } else { rope_backward };
                    op(&mut x, &positions, &cos, &sin, head)?;
                    read(asked, &x)
                }))
            }),
        );
    }
    add(
        "swiglu forward",
        true,
        3.0,
        Box::new(move |d| {
            let (mut out, gate, up) = (zeros(d, "out", f)?, of(d, "gate", f)?, of(d, "up", f)?);
            Ok(Box::new(move |asked| {
                swiglu_forward(&mut out, &gate, &up)?;
                read(asked, &out)
            }))
        }),
    );
    add(
        "swiglu backward",
        true,
        5.0,
        Box::new(move |d| {
            let (mut dgate, mut dup) = (zeros(d, "dgate", f)?, zeros(d, "dup", f)?);
            let (dout, gate, up) = (of(d, "dout", f)?, of(d, "gate", f)?, of(d, "up", f)?);
            Ok(Box::new(move |asked| {
                swiglu_backward(&mut dgate, &mut dup, &dout, &gate, &up)?;
                read(asked, &dgate)
            }))
        }),
    );
    add(
        "gelu forward",
        true,
        2.0,
        Box::new(move |d| {
            let (mut out, inp) = (zeros(d, "out", f)?, of(d, "inp", f)?);
            Ok(Box::new(move |asked| {
                activation_forward(&mut out, &inp, Activation::Gelu)?;
                read(asked, &out)
            }))
        }),
    );
    add(
        "gelu backward",
        true,
        3.0,
        Box::new(move |d| {
            let (mut out, dout, inp) = (zeros(d, "out", f)?, of(d, "dout", f)?, of(d, "inp", f)?);
            Ok(Box::new(move |asked| {
                activation_backward(&mut out, &dout, &inp, Activation::Gelu)?;
                read(asked, &out)
            }))
        }),
    );
    add(
        "embedding forward",
        false,
        2.0,
        Box::new(move |d| {
            let ids: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
            let tokens = Tensor::from_u32("tokens", &[n], &ids)?.to_device(d)?;
            let (mut out, weight) = (zeros(d, "out", c)?, random(d, "weight", on(d, dtype), &[v, c])?);
            Ok(Box::new(move |asked| {
                embedding_forward(&mut out, &tokens, &weight)?;
                read(asked, &out)
            }))
        }),
    );
}
