//! wgmma from shared memory and from registers, bf16 and e4m3, in every canonical layout of the matrix descriptors, against f64.
use sdrrl_emulator::{Config, Stats};
use sdrrl_emulator_tests::*;

fn small_one(i: usize, step: usize) -> half::bf16 {
    half::bf16::from_f32(((i * step) % 17) as f32 - 8.0)
}

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
struct Layout {
    width: usize,
    lbo: usize,
    sbo: usize,
    mn_major: bool,
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
fn e4m3(x: u8) -> f64 {
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

/// d (64, 32) = start + a (64, depth) b (32, depth)^T, each operand in its layout, against f64.
fn wgmma(
    config: &Config,
    a: &Layout,
    b: &Layout,
    fp8: bool,
    from_registers: bool,
    fault: i32,
) -> Result<(), String> {
    let (elem, depth) = if fp8 { (1, 32) } else { (2, 16) };
    // Every finite code of e4m3 appears; bf16 takes small integers.
    let code = |i: usize, step: usize| {
        let x = ((i * step) % 254) as u8;
        if x >= 127 { x + 1 } else { x }
    };
    let bits = |i: usize, step: usize| {
        if fp8 { u16::from(code(i, step)) } else { small_one(i, step).to_bits() }
    };
    let number = |bits: u16| if fp8 { e4m3(bits as u8) } else { half::bf16::from_bits(bits).to_f64() };
    let (b_at, bytes) = (16384, 32768);
    let mut image = vec![0u8; bytes];
    let mut place = |from: usize, layout: &Layout, mn: usize, k: usize, bits: u16| {
        let at = from + layout.byte(mn, k, elem);
        image[at..at + elem].copy_from_slice(&bits.to_le_bytes()[..elem]);
    };
    for k in 0..depth {
        (0..64).for_each(|i| place(0, a, i, k, bits(i * depth + k, 7)));
        (0..32).for_each(|j| place(b_at, b, j, k, bits(j * depth + k, 5)));
    }
    // Registers of thread t: rows 16 warp + lane / 4 (+ 8), 4 bytes of columns from lane % 4 (+ half the depth).
    let mut registers = vec![0u32; 512];
    for (n, register) in registers.iter_mut().enumerate() {
        let (t, r, per) = (n / 4, n % 4, 4 / elem);
        let (row, col) = (t / 32 * 16 + t % 32 / 4 + r % 2 * 8, t % 4 * per + r / 2 * depth / 2);
        for h in 0..per {
            *register |= u32::from(bits(row * depth + col + h, 7)) << (8 * elem * h);
        }
    }
    let start: Vec<f32> = (0..2048).map(|i| (i % 13) as f32).collect();
    let tiles = Tiles {
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
        e4m3: i32::from(fp8),
        from_registers: i32::from(from_registers),
    };
    let (d, img, regs, begin) = (fresh::<f32>(2048), memory(&image), memory(&registers), memory(&start));
    let args = [at(&d), at(&img), arg(bytes as i32), at(&regs), at(&begin), arg(tiles), arg(fault)];
    run("wgmma_layouts", geometry(1, 128, bytes as u32), &args, config)?;
    for (n, got) in values::<f32>(&d).iter().enumerate() {
        let (t, i) = (n / 16, n % 16);
        let (row, col) = (t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + t % 4 * 2 + i % 2);
        let terms = (0..depth).map(|k| number(bits(row * depth + k, 7)) * number(bits(col * depth + k, 5)));
        let (want, size) = terms.fold((f64::from(start[n]), 1.0), |(s, z), x| (s + x, z + x.abs()));
        assert!((f64::from(*got) - want).abs() <= 1e-5 * size, "({row}, {col}): {got}, expected {want}");
    }
    Ok(())
}

#[test]
fn wgmma_reads_every_layout() {
    // Strides in units of 16 bytes, wider than need be where that is free.
    let k_major = |width: usize, sbo: usize, lbo: usize| Layout { width, lbo, sbo, mn_major: false };
    let mn_major = |width: usize, lbo: usize, sbo: usize| Layout { width, lbo, sbo, mn_major: true };
    let layouts = || {
        vec![
            k_major(1, 16, 8),
            k_major(1, 8, 128),
            k_major(2, 16, 1),
            k_major(4, 32, 1),
            k_major(8, 64, 1),
            mn_major(1, 128, 8),
            mn_major(1, 8, 16),
            mn_major(2, 64, 16),
            mn_major(4, 128, 32),
            mn_major(8, 256, 64),
        ]
    };
    for (n, config) in twelve().into_iter().enumerate() {
        for (i, a) in layouts().into_iter().enumerate() {
            // Every pair under three of the twelve, every layout with itself under all.
            for (_, b) in layouts().into_iter().enumerate().filter(|&(j, _)| i == j || n % 4 == 0) {
                wgmma(&config, &a, &b, false, false, 0).unwrap();
            }
            wgmma(&config, &a, &a, false, true, 0).unwrap();
            if !a.mn_major {
                wgmma(&config, &a, &a, true, false, 0).unwrap();
                wgmma(&config, &a, &a, true, true, 0).unwrap();
            }
        }
        if skipped("reports of faults") {
            break;
        }
        let (a, b) = (k_major(8, 64, 1), mn_major(8, 256, 64));
        let report = |outcome: Result<(), String>, words: &[&str]| {
            assert_report(&config, outcome.map(|_| Stats::default()), words)
        };
        report(wgmma(&config, &a, &a, false, false, 1), &["wgmma (line", "no fence.proxy.async since"]);
        report(wgmma(&config, &b, &a, true, false, 0), &["8-bit operands must be K-major"]);
    }
    for x in 0..=255u8 {
        // The value as f32 bits built by hand, for a check of the decoder that shares nothing with it.
        let (e, m) = (u32::from(x >> 3 & 15), u32::from(x & 7));
        let want = match (e, m) {
            (15, 7) => f32::NAN,
            (0, _) => m as f32 / 512.0,
            _ => f32::from_bits((e + 120) << 23 | m << 20),
        };
        let want = f64::from(if x & 0x80 != 0 { -want } else { want });
        assert!(e4m3(x) == want || (want.is_nan() && e4m3(x).is_nan()), "{x:02x}");
    }
}
