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

/// What the rows are of.
#[derive(Clone, Copy)]
struct Rows {
    s: Sizes,
    dtype: DType,
}

impl Rows {
    fn of(self, device: &Device, name: &str, c: usize) -> Result<Tensor> {
        random(device, name, on(device, self.dtype), &[self.s.n, c])
    }

    fn zeros(self, device: &Device, name: &str, c: usize) -> Result<Tensor> {
        Tensor::zeros_on(device, name, on(device, self.dtype), &[self.s.n, c])
    }

    fn vector(self, device: &Device, name: &str) -> Result<Tensor> {
        random(device, name, DType::F32, &[self.s.c])
    }

    fn column(self, device: &Device, name: &str) -> Result<Tensor> {
        Tensor::zeros_on(device, name, DType::F32, &[self.s.n])
    }

    /// A row whose work is the bytes of `times` tensors of n x c (or n x f, where `wide`) elements.
    fn add(
        self,
        all: &mut Vec<Kernel>,
        name: &str,
        wide: bool,
        times: f64,
        make: Box<dyn Fn(&Device) -> Result<Op>>,
    ) {
        let elements = (self.s.n * if wide { self.s.f } else { self.s.c }) as f64;
        let work = elements * self.dtype.bytes() as f64 * times / 1e9;
        all.push(Kernel { name: name.into(), work, products: None, make });
    }
}

/// All of them.
pub(super) fn rowwise(all: &mut Vec<Kernel>, s: Sizes, dtype: DType) {
    let rows = Rows { s, dtype };
    rms_norms(all, rows);
    layer_norms(all, rows);
    rope(all, rows);
    swiglu(all, rows);
    gelu(all, rows);
    embedding(all, rows);
}

/// RMSNorm.
fn rms_norms(all: &mut Vec<Kernel>, rows: Rows) {
    let Sizes { c, .. } = rows.s;
    rows.add(
        all,
        "rmsnorm forward",
        false,
        2.0,
        Box::new(move |d| {
            let (mut out, mut rstd, inp, weight) = (
                rows.zeros(d, "out", c)?,
                rows.column(d, "rstd")?,
                rows.of(d, "inp", c)?,
                rows.vector(d, "weight")?,
            );
            Ok(Box::new(move |asked| {
                rmsnorm_forward(&mut out, &mut rstd, &inp, &weight, 1e-5)?;
                read(asked, &out)
            }))
        }),
    );
    rows.add(
        all,
        "residual and rmsnorm forward",
        false,
        4.0,
        Box::new(move |d| {
            let (mut out, mut sum, mut rstd) =
                (rows.zeros(d, "out", c)?, rows.zeros(d, "sum", c)?, rows.column(d, "rstd")?);
            let (inp, resid, weight) =
                (rows.of(d, "inp", c)?, rows.of(d, "resid", c)?, rows.vector(d, "weight")?);
            Ok(Box::new(move |asked| {
                add_rmsnorm_forward(&mut out, &mut rstd, &mut sum, &inp, &resid, &weight, 1e-5)?;
                read(asked, &out)
            }))
        }),
    );
    rows.add(
        all,
        "rmsnorm backward",
        false,
        4.0,
        Box::new(move |d| {
            let (mut out, mut dinp, mut rstd) =
                (rows.zeros(d, "out", c)?, rows.zeros(d, "dinp", c)?, rows.column(d, "rstd")?);
            let (inp, dout, weight) =
                (rows.of(d, "inp", c)?, rows.of(d, "dout", c)?, rows.vector(d, "weight")?);
            rmsnorm_forward(&mut out, &mut rstd, &inp, &weight, 1e-5)?;
            let nothing = rows.zeros(d, "nothing", c)?;
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
}

/// LayerNorm.
fn layer_norms(all: &mut Vec<Kernel>, rows: Rows) {
    let Sizes { c, .. } = rows.s;
    rows.add(
        all,
        "layernorm forward",
        false,
        2.0,
        Box::new(move |d| {
            let (mut out, mut mean, mut rstd) =
                (rows.zeros(d, "out", c)?, rows.column(d, "mean")?, rows.column(d, "rstd")?);
            let (inp, weight, bias) =
                (rows.of(d, "inp", c)?, rows.vector(d, "weight")?, rows.vector(d, "bias")?);
            Ok(Box::new(move |asked| {
                layernorm_forward(&mut out, &mut mean, &mut rstd, &inp, &weight, &bias, 1e-5)?;
                read(asked, &out)
            }))
        }),
    );
    rows.add(
        all,
        "layernorm backward",
        false,
        4.0,
        Box::new(move |d| {
            let (mut out, mut mean, mut rstd) =
                (rows.zeros(d, "out", c)?, rows.column(d, "mean")?, rows.column(d, "rstd")?);
            let (inp, dout, weight, bias) = (
                rows.of(d, "inp", c)?,
                rows.of(d, "dout", c)?,
                rows.vector(d, "weight")?,
                rows.vector(d, "bias")?,
            );
            layernorm_forward(&mut out, &mut mean, &mut rstd, &inp, &weight, &bias, 1e-5)?;
            let nothing = rows.zeros(d, "nothing", c)?;
            Ok(Box::new(move |asked| {
                if asked {
                    out.copy_from(&nothing)?;
                }
                layernorm_backward(&mut out, None, &dout, &inp, &mean, &rstd, &weight)?;
                read(asked, &out)
            }))
        }),
    );
}

/// Rotary positions.
fn rope(all: &mut Vec<Kernel>, rows: Rows) {
    let Sizes { n, c, head, .. } = rows.s;
    for forward in [true, false] {
        let name = if forward { "rope forward" } else { "rope backward" };
        rows.add(
            all,
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
                let (mut x, start) = (rows.of(d, "x", c)?, rows.of(d, "x", c)?);
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
}

/// SwiGLU.
fn swiglu(all: &mut Vec<Kernel>, rows: Rows) {
    let Sizes { f, .. } = rows.s;
    rows.add(
        all,
        "swiglu forward",
        true,
        3.0,
        Box::new(move |d| {
            let (mut out, gate, up) =
                (rows.zeros(d, "out", f)?, rows.of(d, "gate", f)?, rows.of(d, "up", f)?);
            Ok(Box::new(move |asked| {
                swiglu_forward(&mut out, &gate, &up)?;
                read(asked, &out)
            }))
        }),
    );
    rows.add(
        all,
        "swiglu backward",
        true,
        5.0,
        Box::new(move |d| {
            let (mut dgate, mut dup) = (rows.zeros(d, "dgate", f)?, rows.zeros(d, "dup", f)?);
            let (dout, gate, up) = (rows.of(d, "dout", f)?, rows.of(d, "gate", f)?, rows.of(d, "up", f)?);
            Ok(Box::new(move |asked| {
                swiglu_backward(&mut dgate, &mut dup, &dout, &gate, &up)?;
                read(asked, &dgate)
            }))
        }),
    );
}

/// GELU.
fn gelu(all: &mut Vec<Kernel>, rows: Rows) {
    let Sizes { f, .. } = rows.s;
    rows.add(
        all,
        "gelu forward",
        true,
        2.0,
        Box::new(move |d| {
            let (mut out, inp) = (rows.zeros(d, "out", f)?, rows.of(d, "inp", f)?);
            Ok(Box::new(move |asked| {
                activation_forward(&mut out, &inp, Activation::Gelu)?;
                read(asked, &out)
            }))
        }),
    );
    rows.add(
        all,
        "gelu backward",
        true,
        3.0,
        Box::new(move |d| {
            let (mut out, dout, inp) =
                (rows.zeros(d, "out", f)?, rows.of(d, "dout", f)?, rows.of(d, "inp", f)?);
            Ok(Box::new(move |asked| {
                activation_backward(&mut out, &dout, &inp, Activation::Gelu)?;
                read(asked, &out)
            }))
        }),
    );
}

/// Rows of the embedding.
fn embedding(all: &mut Vec<Kernel>, rows: Rows) {
    let Sizes { n, c, v, .. } = rows.s;
    rows.add(
        all,
        "embedding forward",
        false,
        2.0,
        Box::new(move |d| {
            let ids: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
            let tokens = Tensor::from_u32("tokens", &[n], &ids)?.to_device(d)?;
            let (mut out, weight) =
                (rows.zeros(d, "out", c)?, random(d, "weight", on(d, rows.dtype), &[v, c])?);
            Ok(Box::new(move |asked| {
                embedding_forward(&mut out, &tokens, &weight)?;
                read(asked, &out)
            }))
        }),
    );
}
