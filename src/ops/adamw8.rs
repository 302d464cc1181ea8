//! AdamW with moments of 8 bits (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"), as bitsandbytes' `AdamW8bit`.
//!
//! A moment is a byte an element, the index of one of 256 values of the dynamic tree type ([`dynamic_map`]: signed for the first moment, unsigned for the second),
//! times the largest magnitude of its block of 256 elements. The step is [`super::adamw`]'s, in f32, before the moments are rounded.
#![allow(unsafe_code)]
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};

use super::{
    adamw::{AdamW, corrections, split},
    checks::check,
    kernels,
    launch::{Grid, check_dtype, gpu_of},
    parallel::for_each_task,
};
use crate::{
    device::Device,
    tensor::{DType, Tensor, refuse_overlap},
};

/// Elements with one largest magnitude, as in bitsandbytes.
pub const BLOCK: usize = 256;

/// Blocks of a task.
const TASK: usize = 64;

/// A moment of n elements.
pub struct Codes {
    /// (ceil(n / 4)) U32: a byte an element, the first in the lowest bits.
    pub codes: Tensor,
    /// (ceil(n / 256)) F32: the largest magnitude of each block.
    pub tops: Tensor,
}

impl Codes {
    /// A second handle on the same memory.
    pub(crate) fn alias(&self) -> Codes {
        Codes { codes: self.codes.alias(), tops: self.tops.alias() }
    }

    /// Words of codes and blocks of `n` elements.
    pub fn sizes(n: usize) -> (usize, usize) {
        (n.div_ceil(4), n.div_ceil(BLOCK))
    }
}

/// One tensor of [`AdamW8Table`]: its part in the step.
pub struct Group8 {
    /// Updated in place, F32.
    pub param: Tensor,
    /// First moment, updated in place; zeros stand for zeros.
    pub m: Codes,
    /// Second moment, updated in place.
    pub v: Codes,
    /// The gradient, F32.
    pub grad: Tensor,
    /// Factor on the learning rate.
    pub lr_factor: f32,
    /// Of this tensor, instead of the step's.
    pub weight_decay: f32,
}

/// The 256 values of the dynamic tree type with 7 exponent bits (Dettmers 2016, "8-Bit Approximations for Parallelism in Deep Learning"), rising from -1 (signed) or
/// 0 to 1, as bitsandbytes' `create_dynamic_map` makes them: midpoints of 2^i (signed) or 2^(i + 1) equal parts of 0.1 to 1, times 10^(i - 6), for i from 0 to 6,
/// their negatives, 0 and 1.
pub fn dynamic_map(signed: bool) -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for i in 0..7 {
        let parts = 1usize << if signed { i } else { i + 1 };
        // `torch.linspace` in f32: a width that is rounded, counted from the nearer end, the sum rounded once.
        let (low, width) = (f64::from(0.1f32), f64::from((1.0f32 - 0.1) / parts as f32));
        let from_low = |j: usize| (low + width * j as f64) as f32;
        let from_high = |j: usize| (1.0 - width * (parts - j) as f64) as f32;
        let boundary = |j: usize| if j < parts.div_ceil(2) { from_low(j) } else { from_high(j) };
        for j in 0..parts {
            let middle = (boundary(j) + boundary(j + 1)) / 2.0;
            let value = 10f64.powi(i - 6) as f32 * middle;
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.copy_from_slice(&values);
    map
}

/// Many tensors laid out for one launch. On the CPU they are updated one after another.
pub struct AdamW8Table {
    groups: Vec<Group8>,
    /// Signed and unsigned.
    coders: [Coder; 2],
    gpu: Option<OnGpu>,
}

struct OnGpu {
    /// (tensors, 18) words of adamw8.cu's `Entry`.
    entries: Tensor,
    maps: [Tensor; 2],
    blocks: usize,
}

impl AdamW8Table {
    /// Checks and lays out `groups`, all on one device.
    pub fn new(groups: Vec<Group8>) -> Result<AdamW8Table> {
        const OP: &str = "adamw8_update";
        let coders = [Coder::new(true), Coder::new(false)];
        let (mut words, mut blocks): (Vec<u32>, usize) = (vec![], 0);
        let mut gpu = None;
        for g in &groups {
            let all = [&g.param, &g.grad, &g.m.codes, &g.v.codes, &g.m.tops, &g.v.tops];
            let n = g.param.len();
            let (codes, tops) = Codes::sizes(n);
            let lengths = [n, n, codes, codes, tops, tops];
            check(all.iter().zip(lengths).all(|(t, n)| t.len() == n), OP, &all)?;
            check_dtype(OP, DType::F32, &[&g.param, &g.grad, &g.m.tops, &g.v.tops])?;
            check_dtype(OP, DType::U32, &[&g.m.codes, &g.v.codes])?;
            refuse_overlap(&[&g.param, &g.m.codes, &g.v.codes, &g.m.tops, &g.v.tops], &[&g.grad])?;
            let Some(own) = gpu_of(OP, &[&groups[0].param, all[0], all[1], all[2], all[3], all[4], all[5]])?
            else {
                continue;
            };
            gpu = Some(own);
            for at in all {
                words.extend(split(at.address()?));
            }
            words.extend(split(n as u64));
            words.extend([u32::try_from(blocks)?, g.lr_factor.to_bits(), g.weight_decay.to_bits(), 0]);
            blocks += n.div_ceil(kernels::adamw8_block());
        }
        let Some(gpu) = gpu else { return Ok(AdamW8Table { groups, coders, gpu: None }) };
        ensure!(
            words.len() * 4 == groups.len() * kernels::adamw8_entry_bytes()
                && kernels::adamw8_block() == BLOCK,
            "{OP}: adamw8.cu's Entry or block is another"
        );
        let device = Device::Cuda(gpu);
        let mut entries = Tensor::zeros_on(&device, "adamw8_table", DType::U32, &[words.len()])?;
        entries.write_u32(&words)?;
        let map = |name: &str, map: &[f32; 256]| Tensor::from_f32(name, &[256], map)?.to_device(&device);
        let on_gpu = [map("signed_map", &coders[0].map)?, map("unsigned_map", &coders[1].map)?];
        Ok(AdamW8Table { groups, coders, gpu: Some(OnGpu { entries, maps: on_gpu, blocks }) })
    }

    /// One step of all tensors; `h.lr` and the moments' settings are common, decay is each tensor's own.
    pub fn update(&mut self, h: &AdamW) -> Result<()> {
        ensure!(h.step > 0, "adamw8_update: step is counted from 1");
        let Some(g) = &self.gpu else {
            let coders = &self.coders;
            return self.groups.iter_mut().try_for_each(|g| update(g, coders, h));
        };
        let Some(gpu) = g.entries.gpu() else { return Ok(()) };
        let (correct1, correct2) = corrections(h);
        let (correct1, root2) = (correct1 as f32, correct2.sqrt() as f32);
        let (grid, n, [signed, unsigned]) = (Grid::new(g.blocks), self.groups.len(), &g.maps);
        // SAFETY: `new` checked every tensor of the table, which keeps them alive.
        unsafe {
            kernels::adamw8_many(
                gpu,
                grid,
                &g.entries,
                signed,
                unsigned,
                n,
                h.lr,
                h.beta1,
                h.beta2,
                h.eps,
                correct1,
                root2,
                h.grad_scale,
            )
        }
    }
}

/// The index of the value nearest to x; of two equally near the first.
fn nearest(map: &[f32; 256], x: f32) -> u8 {
    let (mut low, mut high) = (0, 255);
    while low < high {
        let mid = (low + high) / 2;
        if x - map[mid] <= map[mid + 1] - x { high = mid } else { low = mid + 1 }
    }
    low as u8
}

/// A map, and where the search for a code begins: by the upper half of a number's bits, the code of the least number that has them.
struct Coder {
    map: [f32; 256],
    first: Vec<u8>,
}

impl Coder {
    fn new(signed: bool) -> Coder {
        let map = dynamic_map(signed);
        let least = |high: u32| if high >> 15 == 0 { high << 16 } else { high << 16 | 0xffff };
        let first = (0..1 << 16).map(|high| nearest(&map, f32::from_bits(least(high)))).collect();
        Coder { map, first }
    }

    /// [`nearest`], in a step or two.
    fn code(&self, x: f32) -> u8 {
        let mut code = self.first[(x.to_bits() >> 16) as usize] as usize;
        while code < 255 && x - self.map[code] > self.map[code + 1] - x {
            code += 1;
        }
        code as u8
    }
}

/// The codes and the largest magnitude of a block's moment.
fn quantized(coder: &Coder, values: &[f32], codes: &mut [u8]) -> f32 {
    let top = values.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    for (code, &x) in codes.iter_mut().zip(values) {
        *code = coder.code(if top > 0.0 { x / top } else { 0.0 });
    }
    top
}

/// A step's numbers, the same for every element of a tensor.
struct Step {
    h: AdamW,
    keep: f32,
    size: f32,
    root2: f32,
}

/// A part of a tensor: whole blocks of it but for the last.
struct Blocks<'a> {
    param: &'a mut [f32],
    grad: &'a [f32],
    m: (&'a mut [u8], &'a mut [f32]),
    v: (&'a mut [u8], &'a mut [f32]),
}

fn update(g: &mut Group8, coders: &[Coder; 2], h: &AdamW) -> Result<()> {
    let (correct1, correct2) = corrections(h);
    let rate = h.lr * g.lr_factor;
    let (size, root2) = (rate / correct1 as f32, correct2.sqrt() as f32);
    let step = Step { h: *h, keep: 1.0 - rate * g.weight_decay, size, root2 };
    let (n, grad) = (g.param.len(), g.grad.f32()?);
    let param = g.param.f32_mut()?.chunks_mut(TASK * BLOCK).zip(grad.chunks(TASK * BLOCK));
    let parts: Vec<Mutex<Blocks>> = param
        .zip(parts_of(&mut g.m)?)
        .zip(parts_of(&mut g.v)?)
        .map(|(((param, grad), m), v)| Mutex::new(Blocks { param, grad, m, v }))
        .collect();
    for_each_task(parts.len(), n * 32, |task| {
        update_blocks(&mut parts[task].lock().unwrap_or_else(PoisonError::into_inner), coders, &step);
    });
    Ok(())
}

/// The codes and largest magnitudes of each task.
fn parts_of(moment: &mut Codes) -> Result<impl Iterator<Item = (&mut [u8], &mut [f32])>> {
    let codes: &mut [u8] = bytemuck::cast_slice_mut(moment.codes.u32_mut()?);
    Ok(codes.chunks_mut(TASK * BLOCK).zip(moment.tops.f32_mut()?.chunks_mut(TASK)))
}

fn update_blocks(part: &mut Blocks, [signed, unsigned]: &[Coder; 2], s: &Step) {
    let (mut m, mut v) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
    let params = part.param.chunks_mut(BLOCK).zip(part.grad.chunks(BLOCK));
    let codes = part.m.0.chunks_mut(BLOCK).zip(part.v.0.chunks_mut(BLOCK));
    let tops = part.m.1.iter_mut().zip(part.v.1.iter_mut());
    for (((param, grad), (codes_m, codes_v)), (top_m, top_v)) in params.zip(codes).zip(tops) {
        for i in 0..param.len() {
            let g = grad[i] * s.h.grad_scale;
            let old = signed.map[codes_m[i] as usize] * *top_m;
            m[i] = old + (1.0 - s.h.beta1) * (g - old);
            v[i] = s.h.beta2 * (unsigned.map[codes_v[i] as usize] * *top_v) + (1.0 - s.h.beta2) * g * g;
            param[i] = param[i] * s.keep - s.size * m[i] / (v[i].sqrt() / s.root2 + s.h.eps);
        }
        *top_m = quantized(signed, &m[..param.len()], codes_m);
        *top_v = quantized(unsigned, &v[..param.len()], codes_v);
    }
}

/// The same in f64 over one block, each code the nearest by trying all.
pub mod reference {
    use super::{super::adamw::reference::step, AdamW, dynamic_map};

    /// A moment of a block: the codes and the largest magnitude.
    pub type Moment = (Vec<u8>, f64);

    /// A moment's values.
    pub fn values(signed: bool, (codes, top): &Moment) -> Vec<f64> {
        let map = dynamic_map(signed);
        codes.iter().map(|&c| f64::from(map[c as usize]) * top).collect()
    }

    /// (param, m, v) after a step.
    pub fn block(
        param: &[f64],
        m: &Moment,
        v: &Moment,
        grad: &[f64],
        h: &AdamW,
    ) -> (Vec<f64>, Moment, Moment) {
        let (old_m, old_v) = (values(true, m), values(false, v));
        let steps: Vec<_> =
            (0..param.len()).map(|i| step(param[i], old_m[i], old_v[i], grad[i], h)).collect();
        let coded = |signed: bool, values: Vec<f64>| -> Moment {
            let top = values.iter().fold(0.0f64, |a, x| a.max(x.abs()));
            let map = dynamic_map(signed).map(f64::from);
            let distance = |c: usize, x: f64| (map[c] - x / top.max(1e-300)).abs();
            let code = |x: &f64| (0..256).min_by(|&a, &b| distance(a, *x).total_cmp(&distance(b, *x)));
            (values.iter().map(|x| code(x).unwrap_or(0) as u8).collect(), top)
        };
        (
            steps.iter().map(|s| s.0).collect(),
            coded(true, steps.iter().map(|s| s.1).collect()),
            coded(false, steps.iter().map(|s| s.2).collect()),
        )
    }
}
