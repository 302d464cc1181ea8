//! Rows of activations in 8 bits.
use crate::ops::simd::{Kernel, Simd};

/// Rows as groups of integers: x = d q.
pub(crate) struct IntRows {
    rows: usize,
    len: usize,
    group: usize,
    /// From one row to the next in `q`: whole groups of 4 x 32 values, zero behind the end.
    stride: usize,
    q: Vec<i8>,
    /// Of each group.
    d: Vec<f32>,
    /// Of each group of 32: d times the sum of q.
    sums: Vec<f32>,
    /// Of each 16 values, for groups of 256: the sum of q.
    sixteens: Vec<i16>,
}

/// Values that a kernel takes at a time from rows in groups of 32.
const STEP: usize = 128;
/// A group whose largest value is smaller is zero: its scale would be subnormal.
const SMALLEST: f32 = 127.0 * f32::MIN_POSITIVE;

impl IntRows {
    /// The rows of `a` (N, K), `group` (32 or 256) values of K to a scale. A row with a value that is not finite gives NaN.
    pub(crate) fn new(a: &[f32], k: usize, group: usize) -> IntRows {
        let (rows, stride) = (a.len() / k.max(1), k.next_multiple_of(STEP));
        let groups = rows * stride / group;
        let mut made = IntRows {
            rows,
            len: k,
            group,
            stride,
            q: vec![0; rows * stride],
            d: vec![0.0; groups],
            sums: vec![0.0; if group == 32 { groups } else { 0 }],
            sixteens: vec![0; if group == 256 { rows * stride / 16 } else { 0 }],
        };
        crate::ops::simd::run(Quantise { a, to: &mut made });
        made
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }
    /// Values of a row.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
    /// Values that share a scale.
    pub(crate) fn group(&self) -> usize {
        self.group
    }
    /// Bytes from one row's codes to the next row's.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }
    /// The integers of a row, and zeros behind them.
    #[inline(always)]
    pub(super) fn codes(&self, row: usize) -> &[i8] {
        &self.q[row * self.stride..][..self.stride]
    }
    /// The scales of a row, and zeros behind them.
    #[inline(always)]
    pub(super) fn scales(&self, row: usize) -> &[f32] {
        let groups = self.stride / self.group;
        &self.d[row * groups..][..groups]
    }
    /// For groups of 32: scale times sum of each group of a row, and zeros behind them.
    #[inline(always)]
    pub(super) fn sums(&self, row: usize) -> &[f32] {
        let groups = self.stride / self.group;
        &self.sums[row * groups..][..groups]
    }
    /// For groups of 256: the sum of each sixteen of a row.
    #[inline(always)]
    pub(super) fn sixteens(&self, row: usize) -> &[i16] {
        &self.sixteens[row * self.stride / 16..][..self.stride / 16]
    }
}

struct Quantise<'a> {
    a: &'a [f32],
    to: &'a mut IntRows,
}

impl Kernel for Quantise<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let IntRows { len, group, stride, q, d, sums, sixteens, .. } = self.to;
        for (row, a) in self.a.chunks_exact((*len).max(1)).enumerate() {
            for (i, x) in a.chunks_exact(*group).enumerate() {
                let q = &mut q[row * *stride + i * *group..][..*group];
                let mut top = 0f32;
                let mut not_finite = 0f32;
                for x in x {
                    top = if x.abs() > top { x.abs() } else { top };
                    not_finite += x * 0.0;
                }
                let top = if top < SMALLEST { 0.0 } else { top };
                let to_code = if top > 0.0 { 127.0 / top } else { 0.0 };
                for (q, x) in q.iter_mut().zip(x) {
                    *q = (x * to_code).round_ties_even() as i8;
                }
                let at = row * *stride / *group + i;
                d[at] = top / 127.0 + not_finite;
                if *group == 32 {
                    let mut sum = 0i32;
                    q.iter().for_each(|q| sum += i32::from(*q));
                    sums[at] = sum as f32 * d[at];
                } else {
                    let out = &mut sixteens[at * *group / 16..][..*group / 16];
                    for (out, q) in out.iter_mut().zip(q.chunks_exact(16)) {
                        let mut sum = 0i16;
                        q.iter().for_each(|q| sum += i16::from(*q));
                        *out = sum;
                    }
                }
            }
        }
    }
}
