//! What the emulator cannot promise about the chip's arithmetic, measured: a line that begins with `calibration: ` for each figure. Only what the
//! documentation fixes is asserted.
use sdrrl_emulator::Config;
use sdrrl_emulator_tests::{tiles::*, *};

/// One step of an f32 at the size of `x`.
fn ulp(x: f64) -> f64 {
    let exponent = if x == 0.0 { -126 } else { (x.abs().log2().floor() as i32).max(-126) };
    2f64.powi(exponent - 23)
}

/// Numbers without a pattern, the same in every run.
struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.0 >> 33
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// a, b and c to the sums.
type Multiply = fn(&[u16], &[u16], &[f32]) -> Vec<f32>;

/// A unit that multiplies matrices: c (rows, cols) + a (rows, depth) b (cols, depth)^T.
struct Unit {
    name: &'static str,
    rows: usize,
    cols: usize,
    depth: usize,
    number: fn(u16) -> f64,
    code: fn(f64) -> u16,
    /// The largest power of two whose square is used as the largest addend.
    top: i32,
    multiply: Multiply,
}

fn bf16_code(x: f64) -> u16 {
    half::bf16::from_f64(x).to_bits()
}
fn bf16_number(bits: u16) -> f64 {
    half::bf16::from_bits(bits).to_f64()
}
fn e4m3_code(x: f64) -> u16 {
    (0..=255u8).find(|&code| e4m3(code) == x).expect("a value of e4m3").into()
}
fn e4m3_number(bits: u16) -> f64 {
    e4m3(bits as u8)
}

/// mma.sync, one warp.
fn mma(a: &[u16], b: &[u16], c: &[f32]) -> Vec<f32> {
    let pair = |x: &[u16], at: usize| u32::from(x[at]) | u32::from(x[at + 1]) << 16;
    let (mut fa, mut fb, mut fc) = (vec![0u32; 128], vec![0u32; 64], vec![0f32; 128]);
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4 * 2);
        for r in 0..4 {
            fa[lane * 4 + r] = pair(a, (g + r % 2 * 8) * 16 + t + r / 2 * 8);
            fc[lane * 4 + r] = c[(g + r / 2 * 8) * 8 + t + r % 2];
        }
        (0..2).for_each(|r| fb[lane * 2 + r] = pair(b, g * 16 + t + r * 8));
    }
    let d = fresh::<f32>(128);
    let (fa, fb, fc) = (memory(&fa), memory(&fb), memory(&fc));
    run("mma_sum", geometry(1, 32, 0), &[at(&d), at(&fa), at(&fb), at(&fc)], &Config::default()).unwrap();
    let got = values::<f32>(&d);
    (0..128)
        .map(|i| (i / 8, i % 8))
        .map(|(row, col)| got[(row % 8 * 4 + col / 2) * 4 + row / 8 * 2 + col % 2])
        .collect()
}
fn wgmma_bf16(a: &[u16], b: &[u16], c: &[f32]) -> Vec<f32> {
    wgmma(a, b, c, false)
}
fn wgmma_e4m3(a: &[u16], b: &[u16], c: &[f32]) -> Vec<f32> {
    wgmma(a, b, c, true)
}
/// wgmma from shared memory without swizzle, one warpgroup.
fn wgmma(a: &[u16], b: &[u16], c: &[f32], fp8: bool) -> Vec<f32> {
    let layout = || Layout { width: 1, lbo: 8, sbo: 16, mn_major: false };
    let product = Product { a: layout(), b: layout(), fp8, from_registers: false };
    product.run(a, b, c, 0, &Config::default()).unwrap()
}

const UNITS: [Unit; 3] = [
    Unit {
        name: "mma.sync bf16",
        rows: 16,
        cols: 8,
        depth: 16,
        number: bf16_number,
        code: bf16_code,
        top: 0,
        multiply: mma,
    },
    Unit {
        name: "wgmma bf16",
        rows: 64,
        cols: 32,
        depth: 16,
        number: bf16_number,
        code: bf16_code,
        top: 0,
        multiply: wgmma_bf16,
    },
    Unit {
        name: "wgmma e4m3",
        rows: 64,
        cols: 32,
        depth: 32,
        number: e4m3_number,
        code: e4m3_code,
        top: 8,
        multiply: wgmma_e4m3,
    },
];

impl Unit {
    /// Sums of products of mixed size and an accumulator, against the exact sum: the largest difference in steps of the largest partial sum,
    /// and the mean difference away from zero, which truncation makes negative.
    fn mixed_sums(&self) -> (f64, f64) {
        let mut random = Random(7);
        let (mut worst, mut drift, mut count) = (0f64, 0f64, 0f64);
        for _ in 0..8192 / (self.rows * self.cols) {
            // Eleven binades: every sum of these products is exact in f64.
            let mut value = || {
                let x = (8 + random.below(8)) as f64 * 2f64.powi(random.below(11) as i32 - 8);
                (self.code)(if random.below(2) == 0 { x } else { -x })
            };
            let a: Vec<u16> = (0..self.rows * self.depth).map(|_| value()).collect();
            let b: Vec<u16> = (0..self.cols * self.depth).map(|_| value()).collect();
            let c: Vec<f32> =
                (0..self.rows * self.cols).map(|_| ((self.number)(value()) * 9.0) as f32).collect();
            let got = (self.multiply)(&a, &b, &c);
            for (n, got) in got.iter().enumerate() {
                let (mut sum, mut largest) = (f64::from(c[n]), f64::from(c[n]).abs());
                for k in 0..self.depth {
                    let term = (self.number)(a[n / self.cols * self.depth + k])
                        * (self.number)(b[n % self.cols * self.depth + k]);
                    sum += term;
                    largest = largest.max(term.abs()).max(sum.abs());
                }
                let error = (f64::from(*got) - sum) / ulp(largest);
                worst = if error.is_nan() { f64::INFINITY } else { worst.max(error.abs()) };
                drift += error * sum.signum();
                count += 1.0;
            }
        }
        (worst, drift / count)
    }

    /// 1 + (depth - 1) 2^-p, in steps of 2^-23, for each p: how far below the largest addend the small ones count. The largest is a product or
    /// the accumulator.
    fn small_addends(&self, in_accumulator: bool) -> String {
        let mut text = String::new();
        let big = 2f64.powi(2 * self.top);
        for p in 8..29 {
            // Two powers of two that both formats have.
            let small = 2 * self.top - p;
            let (x, y) = (small.max(-9).min(self.top), small - small.max(-9).min(self.top));
            let (x, y) = if y < -9 && self.top > 0 { continue } else { (x, y) };
            let mut a = vec![(self.code)(2f64.powi(x)); self.rows * self.depth];
            let mut b = vec![(self.code)(2f64.powi(y)); self.cols * self.depth];
            let first = if in_accumulator { 0.0 } else { 2f64.powi(self.top) };
            (0..self.rows).for_each(|i| a[i * self.depth] = (self.code)(first));
            (0..self.cols).for_each(|j| b[j * self.depth] = (self.code)(first));
            let start = if in_accumulator { big as f32 } else { 0.0 };
            let got = (self.multiply)(&a, &b, &vec![start; self.rows * self.cols]);
            if got.iter().any(|x| x.to_bits() != got[0].to_bits()) {
                text += &format!(" p={p}: equal sums differ by place;");
            }
            let steps = (f64::from(got[0]) / big - 1.0) * 2f64.powi(23);
            let exact = (self.depth - 1) as f64 * 2f64.powi(23 - p);
            if steps != exact {
                text += &format!(" p={p}: {steps} of {exact};");
            }
        }
        text
    }
}

#[test]
fn sums_of_matrix_units() {
    for unit in &UNITS {
        let (worst, drift) = unit.mixed_sums();
        println!(
            "calibration: {}, sums of {} products: largest difference {worst:.3} steps of the largest partial sum, mean {drift:+.3} away from zero",
            unit.name, unit.depth
        );
        for (place, largest) in [(false, "product"), (true, "accumulator")] {
            println!(
                "calibration: {}, 1 + {} * 2^-p in steps of 2^-23 where not exact, the largest a {largest}:{}",
                unit.name,
                unit.depth - 1,
                unit.small_addends(place)
            );
        }
        // A unit that is this far off computes something else.
        assert!(worst.is_finite(), "{}: {worst}", unit.name);
    }
}

#[test]
fn products_of_e4m3() {
    let mut wrong = 0;
    for (from, to) in (0..4).flat_map(|i| (0..8).map(move |j| (i * 64, j * 32))) {
        let (mut a, mut b) = (vec![0u16; 64 * 32], vec![0u16; 32 * 32]);
        (0..64).for_each(|i| a[i * 32] = from + i as u16);
        (0..32).for_each(|j| b[j * 32] = to + j as u16);
        let got = wgmma_e4m3(&a, &b, &vec![0.0; 64 * 32]);
        for (n, got) in got.iter().enumerate() {
            let want = e4m3_number(a[n / 32 * 32]) * e4m3_number(b[n % 32 * 32]);
            wrong += usize::from(f64::from(*got) != want && !(got.is_nan() && want.is_nan()));
        }
    }
    println!("calibration: wgmma e4m3, {wrong} of 65536 products of two codes are not exact");
    assert!(wrong < 65536 / 2, "{wrong} wrong products");
}

#[test]
fn elementary_functions() {
    let between = |from: f64, to: f64| move |t: f64| from + t * (to - from);
    let powers = |from: f64, to: f64| move |t: f64| 10f64.powf(from + t * (to - from));
    type Case<'a> = (&'a str, i32, Box<dyn Fn(f64) -> f64>, fn(f64) -> f64);
    let cases: [Case; 8] = [
        ("ex2.approx from -126 to 0", 0, Box::new(between(-126.0, 0.0)), f64::exp2),
        ("ex2.approx from -0.001 to 0.001", 0, Box::new(between(-1e-3, 1e-3)), f64::exp2),
        ("rsqrtf from 1e-30 to 1e30", 1, Box::new(powers(-30.0, 30.0)), |x| 1.0 / x.sqrt()),
        ("__expf from -10 to 10", 2, Box::new(between(-10.0, 10.0)), f64::exp),
        ("__expf from -87 to 88", 2, Box::new(between(-87.0, 88.0)), f64::exp),
        ("expf from -87 to 88", 3, Box::new(between(-87.0, 88.0)), f64::exp),
        ("logf from 1e-30 to 1e30", 4, Box::new(powers(-30.0, 30.0)), f64::ln),
        ("tanhf from -9 to 9", 5, Box::new(between(-9.0, 9.0)), f64::tanh),
    ];
    let n = 100_001;
    for (name, which, place, reference) in cases {
        let x: Vec<f32> = (0..n).map(|i| place(i as f64 / (n - 1) as f64) as f32).collect();
        let (out, input) = (fresh::<f32>(n), memory(&x));
        let args = [at(&out), at(&input), arg(n as i32), arg(which)];
        run("elementary", geometry((n as u32).div_ceil(256), 256, 0), &args, &Config::default()).unwrap();
        let (mut worst, mut place, mut drift) = (0f64, 0f32, 0f64);
        for (x, got) in x.iter().zip(values::<f32>(&out)) {
            let want = reference(f64::from(*x));
            let error = (f64::from(got) - want) / ulp(want);
            assert!(!error.is_nan(), "{name}: {got} at {x}");
            drift += error / n as f64;
            if error.abs() > worst {
                (worst, place) = (error.abs(), *x);
            }
        }
        println!("calibration: {name}: largest difference {worst:.2} ulp at {place:e}, mean {drift:+.3}");
    }
}

#[test]
fn rounding_to_bf16() {
    let mut random = Random(3);
    let mut bits: Vec<u32> = vec![];
    // Ties and their neighbours in every binade: zero, denormals, overflow to infinity, infinity and NaN.
    for high in 0..=0xffffu32 {
        let low = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff][random.below(6) as usize];
        bits.extend([high << 16 | 0x8000, high << 16 | low]);
    }
    let x: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
    let (out, input) = (fresh::<half::bf16>(x.len()), memory(&x));
    let args = [at(&out), at(&input), arg(x.len() as i32)];
    run("round_bf16", geometry((x.len() as u32).div_ceil(256), 256, 0), &args, &Config::default()).unwrap();
    let mut nans = std::collections::BTreeSet::new();
    for (x, got) in x.iter().zip(values::<half::bf16>(&out)) {
        if x.is_nan() {
            assert!(got.is_nan(), "{:08x} becomes {got}", x.to_bits());
            nans.insert(got.to_bits());
        } else {
            assert_eq!(got.to_bits(), half::bf16::from_f32(*x).to_bits(), "{:08x} = {x:e}", x.to_bits());
        }
    }
    let some: Vec<String> = nans.iter().take(4).map(|b| format!("{b:04x}")).collect();
    println!(
        "calibration: __float2bfloat16_rn as half's; NaN becomes {} ({} kinds)",
        some.join(" "),
        nans.len()
    );
}
