//! Which kernel takes a product on a GPU: functions of shapes, types and the card alone.
use super::Layout;
use crate::{
    ops::kernels,
    tensor::{DType, Tensor},
};

/// What happens to a product besides being stored.
#[derive(Clone, Copy, Debug)]
pub struct Extras<'a> {
    /// Factor on the product.
    pub alpha: f32,
    /// out += instead of =.
    pub accumulate: bool,
    /// (M), F32: added to each row.
    pub bias: Option<&'a Tensor>,
    /// Shaped like out: added.
    pub resid: Option<&'a Tensor>,
    /// (a2, b2, scale): more columns of K, `scale` times.
    pub tail: Option<(&'a Tensor, &'a Tensor, f32)>,
}

impl Default for Extras<'_> {
    fn default() -> Self {
        Extras { alpha: 1.0, accumulate: false, bias: None, resid: None, tail: None }
    }
}

/// The kernels of gemm.cu, from the plainest up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// FMA units, f32.
    Fma,
    /// NT of few rows, mma.sync or FMA, a deep ring: reading b is what takes time.
    FewRows,
    /// mma.sync, tiles of 64 x 64: small products.
    Mma64,
    /// mma.sync, tiles of 128 x 128.
    Mma128,
    /// wgmma and TMA, tiles of 128 x 64: Hopper only, for few columns.
    Wgmma64,
    /// wgmma and TMA, tiles of 128 x 128: Hopper only.
    Wgmma128,
    /// wgmma and TMA, tiles of 128 x 256: Hopper only.
    Wgmma,
}

impl Rung {
    /// The rung that `SDRRL_GEMM` calls by this name.
    fn named(name: &str) -> Option<Rung> {
        Some(match name {
            "fma" => Rung::Fma,
            "few" => Rung::FewRows,
            "mma64" => Rung::Mma64,
            "mma128" => Rung::Mma128,
            "wgmma64" => Rung::Wgmma64,
            "wgmma128" => Rung::Wgmma128,
            "wgmma" => Rung::Wgmma,
            _ => return None,
        })
    }

    /// The rung that the environment variable `SDRRL_GEMM` forces, so that rungs can be compared.
    pub(super) fn forced() -> Option<Rung> {
        Rung::named(&std::env::var("SDRRL_GEMM").ok()?)
    }

    /// Columns of a tile, of 128 rows, if it is Hopper's.
    pub(super) fn hopper_columns(self) -> Option<usize> {
        match self {
            Rung::Wgmma64 => Some(64),
            Rung::Wgmma128 => Some(128),
            Rung::Wgmma => Some(256),
            _ => None,
        }
    }
}

/// A product as its rung depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub layout: Layout,
    /// Type of the activations.
    pub a: DType,
    /// (rows of out, columns of out, depth).
    pub sizes: [usize; 3],
    /// True if TMA can carry the operands.
    pub tma: bool,
    /// True if there is a low-rank tail.
    pub tail: bool,
}

/// The rung for a product on a card of `arch` with so many multiprocessors: `wanted` where it can do the product at all, else the best.
pub(super) fn rung(arch: u32, multiprocessors: usize, p: Shape, wanted: Option<Rung>) -> Rung {
    let few = takes_few_rows(p.layout, p.a, p.sizes[0], p.tail);
    let possible = |rung: &Rung| match rung {
        Rung::Fma => p.a == DType::F32,
        Rung::FewRows => few,
        Rung::Mma64 | Rung::Mma128 => p.a == DType::Bf16,
        Rung::Wgmma64 => p.a == DType::Bf16 && p.tma && p.sizes[1] <= FEW,
        Rung::Wgmma128 | Rung::Wgmma => p.a == DType::Bf16 && p.tma,
    };
    let best = || if few { Rung::FewRows } else { pick(arch, multiprocessors, p.a, p.sizes, p.tma) };
    wanted.filter(possible).unwrap_or_else(best)
}

/// The rung for out (n, m) = a b of depth k. `tma`: TMA can carry the operands.
pub fn pick(arch: u32, multiprocessors: usize, a: DType, [n, m, k]: [usize; 3], tma: bool) -> Rung {
    if a == DType::F32 {
        return Rung::Fma;
    }
    let tiles = |cols: usize| n.div_ceil(128) * m.div_ceil(cols);
    let hopper = arch == 90 && tma && n >= 128 && k >= 64;
    if hopper && m <= FEW {
        return Rung::Wgmma64;
    }
    if hopper && m >= 128 {
        // A product takes as long as its waves of tiles. A tile of 128 columns brings fewer products a byte and takes longer than half of one of 256:
        // 0.8 of its rate is assumed, not measured yet.
        let waves = |cols: usize| tiles(cols).div_ceil(multiprocessors.max(1));
        return if waves(256) * 8 <= waves(128) * 5 { Rung::Wgmma } else { Rung::Wgmma128 };
    }
    // Below a wave of large tiles the small ones fill the card better, and where one side is short they waste less.
    if tiles(128) >= 64 && n.min(m) > 64 { Rung::Mma128 } else { Rung::Mma64 }
}

/// True if out (n, m) = a b of these layout and type of a, with a low-rank tail or without, can go to the kernels for few rows. Any m, depth and type
/// of b.
fn takes_few_rows(layout: Layout, a: DType, n: usize, tail: bool) -> bool {
    layout == Layout::NT
        && if a == DType::Bf16 { n <= 64 } else { n <= kernels::gemm_few_rows_f32() && !tail }
}

/// The kernels `gemm_few_*` of gemm.cu. A row's bits do not depend on which of them it goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Few {
    /// a and b in f32.
    F32,
    /// a in f32, b in bf16.
    F32Bf16,
    /// 64 rows, 32 columns.
    Rows64,
    /// 16 rows, 32 columns.
    Wide,
    /// 16 rows, 8 columns.
    Narrow,
}

impl Few {
    /// For out (n, m), n as in `takes_few_rows`, of these types of a and b.
    pub fn of([n, m]: [usize; 2], types: [DType; 2], multiprocessors: usize) -> Few {
        match types {
            [DType::F32, DType::Bf16] => Few::F32Bf16,
            [DType::F32, _] => Few::F32,
            _ if n > 16 => Few::Rows64,
            // Blocks of 32 columns, if they keep three of four multiprocessors busy; else narrow ones, which read a four times as often.
            _ if 4 * m.div_ceil(32) >= 3 * multiprocessors => Few::Wide,
            _ => Few::Narrow,
        }
    }
}

/// Columns up to which tiles of 128 x 64 are taken, and b is made bf16 on the way: it is small.
pub(super) const FEW: usize = 64;

/// True if TMA can carry the operands: bf16, in rows of 16-byte multiples, of which an addend is one matrix at the most, and none where columns are few.
/// A tail can always be carried, and so can b of few columns: they are padded.
pub(super) fn tma_carries(out: &Tensor, a: &Tensor, b: &Tensor, layout: Layout, x: &Extras) -> bool {
    let tiled = |t: &Tensor| t.dtype() == DType::Bf16 && aligned(t);
    let addends = usize::from(x.accumulate) + usize::from(x.resid.is_some_and(|r| r.dtype() == DType::Bf16));
    let few = out.rows_cols().1 <= FEW;
    layout != Layout::TN
        && tiled(out)
        && tiled(a)
        && (few || tiled(b))
        && addends <= usize::from(!few)
        && x.bias.is_none_or(|b| b.is_aligned(8))
        && x.resid.is_none_or(|r| if r.dtype() == DType::F32 { r.is_aligned(8) } else { tiled(r) })
}

/// True if every row of `t` begins at a multiple of 16 bytes.
pub(super) fn aligned(t: &Tensor) -> bool {
    (t.rows_cols().1 * t.dtype().bytes()).is_multiple_of(16) && t.is_aligned(16)
}

/// Blocks that fill any card, and rows of K that are worth one of their own.
const BLOCKS: usize = 512;
const PART: usize = 256;

/// Parts of K that are summed at once, where few elements are sums over many rows (an adapter's gradients). By shape alone: results must not depend on the
/// card.
pub(super) fn parts([n, m, k]: [usize; 3]) -> usize {
    let most = (BLOCKS / (n.div_ceil(64) * m.div_ceil(64)).max(1)).min(k / PART);
    // The kernel cuts at multiples of its depth.
    if most < 2 { 1 } else { k.div_ceil(k.div_ceil(most).next_multiple_of(kernels::gemm_depth())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn the_rung_follows_shape_and_architecture() {
        let big = [4096, 4096, 4096];
        assert_eq!(pick(90, 132, DType::F32, big, true), Rung::Fma);
        assert_eq!(pick(90, 132, DType::Bf16, big, true), Rung::Wgmma);
        assert_eq!(pick(90, 132, DType::Bf16, big, false), Rung::Mma128);
        assert_eq!(pick(80, 108, DType::Bf16, big, true), Rung::Mma128);
        assert_eq!(pick(80, 108, DType::Bf16, [64, 4096, 4096], true), Rung::Mma64);
        assert_eq!(pick(90, 132, DType::Bf16, [64, 4096, 4096], true), Rung::Mma64);
    }

    #[test]
    fn the_tile_follows_waves() {
        let tile = |n, m| pick(90, 132, DType::Bf16, [n, m, 4096], true);
        // 128 tiles of 128 x 128 or 64 of 128 x 256: one wave in either case, of which the small ones are shorter.
        assert_eq!(tile(1024, 2048), Rung::Wgmma128);
        // 256 and 128: two waves of small tiles, one of large ones.
        assert_eq!(tile(2048, 2048), Rung::Wgmma);
        // 352 and 176: three waves or two, the second of a third of the card.
        assert_eq!(tile(2816, 2048), Rung::Wgmma128);
        // A language model's shapes: large tiles.
        for m in [4096, 11008, 12288, 22016, 32000] {
            assert_eq!(tile(8192, m), Rung::Wgmma, "{m}");
        }
        // Few columns.
        assert_eq!(tile(8192, 128), Rung::Wgmma128);
        assert_eq!(tile(8192, 16), Rung::Wgmma64);
    }
    #[test]
    fn sums_over_many_rows_go_in_parts() {
        assert_eq!(parts([16, 4096, 8192]), 8);
        assert_eq!(parts([11008, 16, 8192]), 2);
        assert_eq!(parts([4096, 4096, 8192]), 1);
        assert_eq!(parts([16, 4096, 500]), 1);
        // Of 288 rows, the last of 161.
        assert_eq!(parts([8, 8, 1025]), 4);
    }

    #[test]
    fn few_rows_go_to_blocks_that_fill_the_card() {
        assert!(
            takes_few_rows(Layout::NT, DType::Bf16, 1, true)
                && takes_few_rows(Layout::NT, DType::Bf16, 64, false)
        );
        assert!(
            !takes_few_rows(Layout::NT, DType::Bf16, 65, false)
                && !takes_few_rows(Layout::NN, DType::Bf16, 1, false)
        );
        assert!(
            takes_few_rows(Layout::NT, DType::F32, 16, false)
                && !takes_few_rows(Layout::NT, DType::F32, 16, true)
        );
        assert!(!takes_few_rows(Layout::NT, DType::F32, 17, false));
        let of = |n: usize, m: usize| Few::of([n, m], [DType::Bf16; 2], 132);
        assert_eq!(
            [of(1, 4096), of(16, 32000), of(16, 1024), of(17, 1025)],
            [Few::Wide, Few::Wide, Few::Narrow, Few::Rows64]
        );
        assert_eq!(Few::of([1, 33], [DType::F32, DType::Bf16], 132), Few::F32Bf16);
        assert_eq!(Few::of([1, 33], [DType::F32; 2], 132), Few::F32);
    }

    #[test]
    fn a_wanted_rung_counts_where_it_can_do_the_product() {
        let p = Shape { layout: Layout::NT, a: DType::Bf16, sizes: [256, 256, 256], tma: true, tail: false };
        let of = |p: Shape, wanted| rung(90, 132, p, Some(wanted));
        assert_eq!(rung(90, 132, p, None), Rung::Wgmma128);
        for wanted in [Rung::Mma64, Rung::Mma128, Rung::Wgmma128, Rung::Wgmma] {
            assert_eq!(of(p, wanted), wanted);
        }
        // Too many columns or rows, other types.
        for impossible in [Rung::Wgmma64, Rung::FewRows, Rung::Fma] {
            assert_eq!(of(p, impossible), Rung::Wgmma128);
        }
        assert_eq!(of(Shape { sizes: [256, 64, 256], ..p }, Rung::Wgmma64), Rung::Wgmma64);
        let no_tma = Shape { tma: false, ..p };
        for impossible in [Rung::Wgmma64, Rung::Wgmma128, Rung::Wgmma] {
            assert_eq!(of(no_tma, impossible), Rung::Mma64);
        }
        let f32 = Shape { a: DType::F32, ..p };
        for any in [Rung::Fma, Rung::Mma64, Rung::Mma128, Rung::Wgmma] {
            assert_eq!(of(f32, any), Rung::Fma);
        }
        let few = Shape { sizes: [4, 256, 256], ..p };
        assert_eq!((rung(90, 132, few, None), of(few, Rung::Mma64)), (Rung::FewRows, Rung::Mma64));
        assert_eq!(rung(90, 132, Shape { layout: Layout::NN, ..few }, None), Rung::Mma64);
    }

    #[test]
    fn rungs_have_names() {
        let names = ["fma", "few", "mma64", "mma128", "wgmma64", "wgmma128", "wgmma"];
        let all =
            [Rung::Fma, Rung::FewRows, Rung::Mma64, Rung::Mma128, Rung::Wgmma64, Rung::Wgmma128, Rung::Wgmma];
        assert_eq!(names.map(Rung::named), all.map(Some));
        assert_eq!(Rung::named("other"), None);
    }

    #[test]
    fn tma_carries_whole_lines_of_bf16() {
        let device = Device::emulated();
        let zeros = |dtype, dims: &[usize]| Tensor::zeros_on(&device, "t", dtype, dims).unwrap();
        let bf16 = |rows, cols| zeros(DType::Bf16, &[rows, cols]);
        let (out, a, b) = (bf16(4, 72), bf16(4, 24), bf16(72, 24));
        let (lines, floats) = (bf16(4, 72), zeros(DType::F32, &[4, 72]));
        let (flat, bias) = (zeros(DType::F32, &[73]), zeros(DType::F32, &[72]));
        let shifted = flat.rows(1..73).unwrap();
        let with = |x: Extras| tma_carries(&out, &a, &b, Layout::NT, &x);
        let plain = Extras::default();
        assert!(with(plain) && !tma_carries(&out, &a, &b, Layout::TN, &plain));
        assert!(!tma_carries(&floats, &a, &b, Layout::NT, &plain));
        assert!(!tma_carries(&out, &bf16(4, 20), &bf16(72, 20), Layout::NT, &plain));
        assert!(with(Extras { bias: Some(&bias), resid: Some(&lines), ..plain }));
        assert!(!with(Extras { bias: Some(&shifted), ..plain }));
        assert!(with(Extras { accumulate: true, resid: Some(&floats), ..plain }));
        assert!(!with(Extras { accumulate: true, resid: Some(&lines), ..plain }));
        // b in f32 where columns are few, and no addend.
        let few = |x: Extras| tma_carries(&bf16(4, 16), &a, &zeros(DType::F32, &[16, 24]), Layout::NT, &x);
        assert!(few(plain) && !few(Extras { accumulate: true, ..plain }));
        assert!(!tma_carries(&out, &a, &zeros(DType::F32, &[72, 24]), Layout::NT, &plain));
    }
}
