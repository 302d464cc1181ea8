//! wgmma from shared memory and from registers, bf16 and e4m3, in every canonical layout of the matrix descriptors, against f64.
use sdrrl_emulator::{Config, Stats};
use sdrrl_emulator_tests::{tiles::*, *};

fn small_one(i: usize, step: usize) -> half::bf16 {
    half::bf16::from_f32(((i * step) % 17) as f32 - 8.0)
}

/// A product in these layouts against f64.
fn wgmma(
    config: &Config,
    a: &Layout,
    b: &Layout,
    fp8: bool,
    from_registers: bool,
    fault: i32,
) -> Result<(), String> {
    let product = Product { a: *a, b: *b, fp8, from_registers };
    let depth = product.depth();
    // Every finite code of e4m3 appears; bf16 takes small integers.
    let code = |i: usize, step: usize| {
        let x = ((i * step) % 254) as u8;
        if x >= 127 { x + 1 } else { x }
    };
    let bits = |i: usize, step: usize| {
        if fp8 { u16::from(code(i, step)) } else { small_one(i, step).to_bits() }
    };
    let number = |bits: u16| if fp8 { e4m3(bits as u8) } else { half::bf16::from_bits(bits).to_f64() };
    let left: Vec<u16> = (0..64 * depth).map(|i| bits(i, 7)).collect();
    let right: Vec<u16> = (0..32 * depth).map(|i| bits(i, 5)).collect();
    let start: Vec<f32> = (0..2048).map(|i| (i % 13) as f32).collect();
    // bf16's sums are exact; Hopper's units are said to keep 14 bits of a sum of e4m3 products (tests/arithmetic.rs measures it), which still tells layouts apart.
    let tolerance = if fp8 && on_gpu() { 5e-3 } else { 1e-5 };
    let got = product.run(&left, &right, &start, fault, config)?;
    for (n, got) in got.iter().enumerate() {
        let (row, col) = (n / 32, n % 32);
        let terms = (0..depth).map(|k| number(left[row * depth + k]) * number(right[col * depth + k]));
        let (want, size) = terms.fold((f64::from(start[n]), 1.0), |(s, z), x| (s + x, z + x.abs()));
        let off = (f64::from(*got) - want).abs();
        if off.is_nan() || off > tolerance * size {
            return Err(format!("({row}, {col}): {got}, expected {want}"));
        }
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
    // All that is wrong, so that one run on a GPU tells the layouts apart.
    let mut wrong = vec![];
    for (n, config) in twelve().into_iter().enumerate() {
        let mut check = |a: &Layout, b: &Layout, fp8, from_registers| {
            if let Err(why) = wgmma(&config, a, b, fp8, from_registers, 0) {
                let elements = if fp8 { "e4m3" } else { "bf16" };
                let a_from = if from_registers { "registers".into() } else { format!("{a:?}") };
                let how = if on_gpu() { String::new() } else { format!(", {config:?}") };
                wrong.push(format!("{elements}, a in {a_from}, b in {b:?}{how}: {why}"));
            }
        };
        for (i, a) in layouts().into_iter().enumerate() {
            // Every pair under three of the twelve, every layout with itself under all.
            for (_, b) in layouts().into_iter().enumerate().filter(|&(j, _)| i == j || n % 4 == 0) {
                check(&a, &b, false, false);
            }
            check(&a, &a, false, true);
            if !a.mn_major {
                check(&a, &a, true, false);
                check(&a, &a, true, true);
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
    assert!(wrong.is_empty(), "{} products are wrong:\n{}", wrong.len(), wrong.join("\n"));
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
