//! wgmma through the kernel `wgmma_layouts`: operands in every canonical layout of the matrix descriptors.
use sdrrl_emulator::Config;

use crate::{arg, at, fresh, geometry, memory, run, values};

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Tiles {
    a_at: u32,
    b_at: u32,
    a_lbo: u32,
    a_sbo: u32,
    b_lbo: u32,
    b_sbo: u32,
    a_mode: u32,
    b_mode: u32,
    ta: i32,
    tb: i32,
    e4m3: i32,
    from_registers: i32,
}

/// Byte offset of 16-byte unit (mn unit or row, k unit or row) in the canonical layouts of the PTX ISA's matrix descriptors, written from
/// CUTLASS's table of them: in units of 16 bytes ((8,n),2) : ((W,SBO),LBO or 1) K-major, ((W,n),(8,k)) : ((1,LBO),(W,SBO)) MN-major, and
/// ((1,n),(8,k)) : ((X,SBO),(1,LBO)) MN-major without swizzle. W is the swizzle's width.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Of the swizzle: 1 for none, 2, 4 or 8.
    pub width: usize,
    /// Leading byte offset.
    pub lbo: usize,
    /// Stride byte offset.
    pub sbo: usize,
    /// Units of 16 bytes run along M or N, not along K.
    pub mn_major: bool,
}

impl Layout {
    fn byte(&self, mn: usize, k: usize, elem: usize) -> usize {
        let per = 16 / elem;
        let (unit, inside) = if self.mn_major {
            let (u, w) = (mn / per, self.width);
            let at = if w == 1 {
                u * self.sbo + k % 8 + k / 8 * self.lbo
            } else {
                u % w + u / w * self.lbo + k % 8 * w + k / 8 * self.sbo
            };
            (at, mn % per * elem)
        } else {
            let u = k / per;
            let at = mn % 8 * self.width + mn / 8 * self.sbo + u * if self.width == 1 { self.lbo } else { 1 };
            (at, k % per * elem)
        };
        // Swizzle<B, 4, 3>: bits 7.. are added to bits 4.. without carry.
        let byte = unit * 16;
        (byte ^ ((byte >> 7 & (self.width - 1)) << 4)) + inside
    }
    /// The descriptor's number of the swizzle.
    fn mode(&self) -> u32 {
        match self.width {
            1 => 0,
            8 => 1,
            4 => 2,
            _ => 3,
        }
    }
}

/// Exact e4m3: sign, 4 bits of exponent with bias 7, 3 bits of mantissa; no infinity, all ones is NaN.
pub fn e4m3(x: u8) -> f64 {
    let (e, m) = ((x >> 3 & 15) as i32, (x & 7) as f64);
    let v = if e == 0 { m / 8.0 * 2f64.powi(-6) } else { (1.0 + m / 8.0) * 2f64.powi(e - 7) };
    if x & 0x7f == 0x7f {
        f64::NAN
    } else if x & 0x80 != 0 {
        -v
    } else {
        v
    }
}

/// d (64, 32) = c + a (64, depth) b (32, depth)^T, each operand in its layout; depth is 16 bf16 or 32 e4m3.
pub struct Product {
    /// Of a, in shared memory.
    pub a: Layout,
    /// Of b.
    pub b: Layout,
    /// e4m3 instead of bf16.
    pub fp8: bool,
    /// a in registers.
    pub from_registers: bool,
}

impl Product {
    /// K of one instruction.
    pub fn depth(&self) -> usize {
        if self.fp8 { 32 } else { 16 }
    }

    /// a (64, depth) and b (32, depth) as codes, c (64, 32); `fault` 1 leaves the proxy fence out.
    pub fn run(
        &self,
        a: &[u16],
        b: &[u16],
        c: &[f32],
        fault: i32,
        config: &Config,
    ) -> Result<Vec<f32>, String> {
        let (depth, elem) = (self.depth(), if self.fp8 { 1 } else { 2 });
        let (b_at, bytes) = (16384, 32768);
        let mut image = vec![0u8; bytes];
        let mut place = |from: usize, layout: &Layout, codes: &[u16]| {
            for (n, code) in codes.iter().enumerate() {
                let at = from + layout.byte(n / depth, n % depth, elem);
                image[at..at + elem].copy_from_slice(&code.to_le_bytes()[..elem]);
            }
        };
        place(0, &self.a, a);
        place(b_at, &self.b, b);
        // Registers of thread t: rows 16 warp + lane / 4 (+ 8), 4 bytes of columns from lane % 4 (+ half the depth).
        let mut registers = vec![0u32; 512];
        for (n, register) in registers.iter_mut().enumerate() {
            let (t, r, per) = (n / 4, n % 4, 4 / elem);
            let (row, col) = (t / 32 * 16 + t % 32 / 4 + r % 2 * 8, t % 4 * per + r / 2 * depth / 2);
            (0..per).for_each(|h| *register |= u32::from(a[row * depth + col + h]) << (8 * elem * h));
        }
        let start: Vec<f32> = (0..2048).map(|n| c[place_of(n)]).collect();
        let (img, regs, begin) = (memory(&image), memory(&registers), memory(&start));
        let d = fresh::<f32>(2048);
        let args =
            [at(&d), at(&img), arg(bytes as i32), at(&regs), at(&begin), arg(self.tiles(b_at)), arg(fault)];
        run("wgmma_layouts", geometry(1, 128, bytes as u32), &args, config)?;
        let mut out = vec![0.0; 2048];
        values::<f32>(&d).iter().enumerate().for_each(|(n, &x)| out[place_of(n)] = x);
        Ok(out)
    }

    fn tiles(&self, b_at: usize) -> Tiles {
        let (a, b) = (&self.a, &self.b);
        Tiles {
            a_at: 0,
            b_at: b_at as u32,
            a_lbo: 16 * a.lbo as u32,
            a_sbo: 16 * a.sbo as u32,
            b_lbo: 16 * b.lbo as u32,
            b_sbo: 16 * b.sbo as u32,
            a_mode: a.mode(),
            b_mode: b.mode(),
            ta: i32::from(a.mn_major),
            tb: i32::from(b.mn_major),
            e4m3: i32::from(self.fp8),
            from_registers: i32::from(self.from_registers),
        }
    }
}

/// Where in d (64, 32) the accumulator `n % 16` of thread `n / 16` belongs.
fn place_of(n: usize) -> usize {
    let (t, i) = (n / 16, n % 16);
    let (row, col) = (t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + t % 4 * 2 + i % 2);
    row * 32 + col
}
