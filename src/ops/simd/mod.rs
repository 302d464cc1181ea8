//! Vector arithmetic chosen at run time: AVX-512, AVX2 with FMA, or four-lane code that the compiler vectorises for any target.
//!
//! A piece of work is a [`Kernel`], generic over [`Simd`]; [`run`] compiles it once a level and calls the best this processor
//! has. Everything below `Kernel::run` must be `#[inline(always)]`, so that it is compiled with the level's instructions; so may no
//! closure that is handed to a function that is not (`with_scratch`, rayon).
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod x86;

use super::arrays::map;
use crate::device::vectors::{self, Vectors};

/// f32 vectors of one instruction set. A value of the type is the proof that the processor has it.
pub(crate) trait Simd: Copy + Send + Sync {
    /// One register of `LANES` floats.
    type V: Copy;
    const LANES: usize;
    /// Rows of a matrix tile, two registers wide, whose sums stay in registers.
    const TILE_ROWS: usize;
    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `LANES` floats from `p` on are readable.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `LANES` floats from `p` on are writable.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// 2^n for integral n in -127..=127, where 2^-127 is given as 0.
    fn pow2(self, n: Self::V) -> Self::V;
    /// Four sums over the lanes, each in an order that only depends on the type.
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4];

    /// Sum over the lanes, in an order that only depends on the type.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let zero = self.splat(0.0);
        self.sum4([v, zero, zero, zero])[0]
    }

    /// `LANES` bfloat16 numbers, widened.
    ///
    /// # Safety
    /// `LANES` elements from `p` on are readable.
    unsafe fn load_bf16(self, p: *const half::bf16) -> Self::V;

    /// Asks for the cache line of `p`, which need not be readable.
    #[inline(always)]
    fn prefetch(self, _p: *const u8) {}

    #[inline(always)]
    fn read(self, s: &[f32]) -> Self::V {
        assert!(s.len() >= Self::LANES);
        // SAFETY: checked.
        unsafe { self.load(s.as_ptr()) }
    }
    #[inline(always)]
    fn write(self, s: &mut [f32], v: Self::V) {
        assert!(s.len() >= Self::LANES);
        // SAFETY: checked.
        unsafe { self.store(s.as_mut_ptr(), v) }
    }

    /// As many of the first `LANES` floats as there are, then zeros.
    #[inline(always)]
    fn read_some(self, from: &[f32]) -> Self::V {
        if from.len() >= Self::LANES {
            return self.read(from);
        }
        let mut lanes = [0.0; MAX_LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.read(&lanes)
    }
    /// As many of the lanes as there is room for.
    #[inline(always)]
    fn write_some(self, to: &mut [f32], v: Self::V) {
        if to.len() >= Self::LANES {
            return self.write(to, v);
        }
        let mut lanes = [0.0; MAX_LANES];
        self.write(&mut lanes, v);
        to.copy_from_slice(&lanes[..to.len()]);
    }
    /// sum of a * b, in an order that depends only on the length.
    #[inline(always)]
    fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        let n = a.len().min(b.len());
        let mut sums = [self.splat(0.0); 4];
        let mut i = 0;
        while i + 4 * Self::LANES <= n {
            for (x, sum) in sums.iter_mut().enumerate() {
                let at = i + x * Self::LANES;
                *sum = self.fma(self.read(&a[at..]), self.read(&b[at..]), *sum);
            }
            i += 4 * Self::LANES;
        }
        while i < n {
            sums[0] = self.fma(self.read_some(&a[i..n]), self.read_some(&b[i..n]), sums[0]);
            i += Self::LANES;
        }
        self.sum(self.add(self.add(sums[0], sums[1]), self.add(sums[2], sums[3])))
    }

    /// The largest x of a row, and Σ exp(x - it), in an order that depends only on the length.
    #[inline(always)]
    fn exp_sum(self, row: &[f32]) -> (f32, f64) {
        let (body, tail) = row.split_at(row.len() / Self::LANES * Self::LANES);
        let mut top = self.splat(f32::NEG_INFINITY);
        for x in body.chunks_exact(Self::LANES) {
            top = self.max(top, self.read(x));
        }
        let mut lanes = [f32::NEG_INFINITY; MAX_LANES];
        self.write(&mut lanes, top);
        let top = lanes.iter().chain(tail.iter()).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let shift = self.splat(-top);
        // Partial sums in f64: with 256k terms of one size an f32 sum would lose 3 digits.
        let mut total = 0.0f64;
        for block in body.chunks(Self::LANES * 64) {
            let mut sum = self.splat(0.0);
            for x in block.chunks_exact(Self::LANES) {
                sum = self.add(sum, self.exp(self.add(self.read(x), shift)));
            }
            total += self.sum(sum) as f64;
        }
        total += tail.iter().map(|&x| ((x - top) as f64).exp()).sum::<f64>();
        (top, total)
    }

    /// exp(x), relative error below 2e-7 where the result is normal; 0 below -87.7, at most 2^127.5; NaN stays NaN.
    /// Cody and Waite's reduction x = n ln2 + r, then 1 + r + r^2 q(r) with q fitted over |r| <= ln2 / 2 (error 1.1e-8).
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        const Q: [f32; 5] = [0.5, 0.166_665_76, 0.041_666_552, 0.008_363_233, 0.001_392_625];
        // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
        const ROUND: f32 = 12_582_912.0;
        let x = self.min(self.splat(88.3), self.max(self.splat(-88.02), x));
        let magic = self.splat(ROUND);
        let n = self.sub(self.fma(x, self.splat(std::f32::consts::LOG2_E), magic), magic);
        let r = self.fma(n, self.splat(-0.693_359_4), x);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut q = self.splat(Q[4]);
        for &c in Q[..4].iter().rev() {
            q = self.fma(q, r, self.splat(c));
        }
        let p = self.add(self.fma(self.mul(r, r), q, r), self.splat(1.0));
        self.mul(p, self.pow2(n))
    }
}

/// The widest register, floats.
pub(crate) const MAX_LANES: usize = 16;

/// Work that is compiled for each instruction set.
pub(crate) trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// The instruction sets that [`run_at`] can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Level {
    /// The best that this processor has, unless `SDRRL_VECTORS` asks for another.
    pub(crate) fn best() -> Level {
        match vectors::best() {
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => Level::Avx512,
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => Level::Avx2,
            _ => Level::Portable,
        }
    }

    /// What this processor has, best first.
    #[cfg(test)]
    pub(crate) fn available() -> impl Iterator<Item = Level> {
        #[cfg(target_arch = "x86_64")]
        let wide = [(Vectors::Avx512, Level::Avx512), (Vectors::Avx2, Level::Avx2)];
        #[cfg(not(target_arch = "x86_64"))]
        let wide: [(Vectors, Level); 0] = [];
        let there = wide.into_iter().filter(|(vectors, _)| vectors.is_there());
        there.map(|(_, level)| level).chain([Level::Portable])
    }
}

/// Runs `kernel` with the best instructions of this processor.
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    run_at(Level::best(), kernel)
}

/// Runs `kernel` at a level that the processor has.
pub(crate) fn run_at<K: Kernel>(level: Level, kernel: K) -> K::Output {
    match level {
        // SAFETY: the level is only made where the processor has it.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86::run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::run_avx2(kernel) },
        Level::Portable => kernel.run(Portable),
    }
}

#[derive(Clone, Copy)]
struct Portable;

impl Portable {
    #[inline(always)]
    fn map(a: [f32; 4], b: [f32; 4], f: impl Fn(f32, f32) -> f32) -> [f32; 4] {
        [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
    }
}

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    const TILE_ROWS: usize = 4;
    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; 4] {
        // SAFETY: the caller's promise; f32 alignment is enough for [f32; 4].
        unsafe { *p.cast() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: [f32; 4]) {
        // SAFETY: as in `load`.
        unsafe { *p.cast() = v }
    }
    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::map(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::map(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::map(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::map(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        // Without the instruction `mul_add` is a library call.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            [
                a[0].mul_add(b[0], c[0]),
                a[1].mul_add(b[1], c[1]),
                a[2].mul_add(b[2], c[2]),
                a[3].mul_add(b[3], c[3]),
            ]
        } else {
            self.add(self.mul(a, b), c)
        }
    }
    #[inline(always)]
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::map(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::map(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn pow2(self, n: [f32; 4]) -> [f32; 4] {
        map(n, |n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn sum4(self, v: [[f32; 4]; 4]) -> [f32; 4] {
        map(v, |v| (v[0] + v[1]) + (v[2] + v[3]))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const half::bf16) -> [f32; 4] {
        // SAFETY: the caller's promise.
        let x: [half::bf16; 4] = unsafe { *p.cast() };
        map(x, |x| f32::from_bits((x.to_bits() as u32) << 16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a mut [f32]);
    impl Kernel for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for x in self.0.chunks_exact_mut(S::LANES) {
                s.write(x, s.exp(s.read(x)));
            }
        }
    }

    #[test]
    fn exp_is_exact_to_2e_7_at_every_level() {
        for level in Level::available() {
            let x: Vec<f32> = (0..1 << 20).map(|i| -87.0 + i as f32 * (175.0 / (1 << 20) as f32)).collect();
            let mut y = x.clone();
            run_at(level, Exp(&mut y));
            for (x, y) in x.iter().zip(&y) {
                let want = (*x as f64).exp();
                let error = (*y as f64 / want - 1.0).abs();
                assert!(error < 2e-7, "{level:?}: exp({x}) = {y}, off by {error:e}");
            }
        }
    }

    struct Dots<'a>(&'a [f32], &'a [f32], [f32; 2], &'a mut [f32; 4]);
    impl Kernel for Dots<'_> {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            let v = [self.2[0], self.2[1], 2.0, -1.0].map(|x| s.mul(s.read(self.0), s.splat(x)));
            *self.3 = s.sum4(v).map(|x| x / S::LANES as f32);
            s.dot(self.0, self.1)
        }
    }

    #[test]
    fn sums_over_lanes() {
        for level in Level::available() {
            for n in [16, 17, 64, 83, 255] {
                let (a, b) = (vec![1.0; n], (0..n).map(|i| i as f32).collect::<Vec<_>>());
                let mut sums = [0.0; 4];
                let dot = run_at(level, Dots(&a, &b, [3.0, 4.0], &mut sums));
                assert_eq!(dot, (n * (n - 1) / 2) as f32, "{level:?} {n}");
                assert_eq!(sums, [3.0, 4.0, 2.0, -1.0], "{level:?}");
            }
        }
    }

    #[test]
    fn exp_of_the_extremes() {
        for level in Level::available() {
            let mut x = [0.0; 16];
            x[..6].copy_from_slice(&[f32::NEG_INFINITY, -1e30, -100.0, f32::NAN, f32::INFINITY, 0.0]);
            run_at(level, Exp(&mut x));
            assert_eq!(x[..3], [0.0; 3], "{level:?}");
            assert!(x[3].is_nan() && x[4] > 1e38 && x[4].is_finite() && x[5] == 1.0, "{level:?}: {x:?}");
        }
    }
}
