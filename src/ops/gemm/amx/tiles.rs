//! The tile unit: its configuration, and the loop over the contraction.
use std::arch::asm;

/// Rows and bytes in a row of each tile.
#[repr(C, align(64))]
pub(in crate::ops) struct Config([u8; 64]);

impl Config {
    /// Of the eight tiles.
    pub fn of(tiles: [(usize, usize); 8]) -> Config {
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        for (tile, (rows, bytes)) in tiles.into_iter().enumerate() {
            config.0[16 + 2 * tile] = bytes as u8;
            config.0[48 + tile] = rows as u8;
        }
        config
    }
    /// Tiles 0 to 3 hold sums, 4 to 6 the pieces of the activations, 7 a weight (a whole tile).
    pub fn new(sums: (usize, usize), pieces: (usize, usize)) -> Config {
        Config::of([sums, sums, sums, sums, pieces, pieces, pieces, (16, 64)])
    }
    /// # Safety
    /// The tile unit is available.
    pub unsafe fn load(&self) {
        // SAFETY: 64 readable bytes of a valid configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) self, options(nostack, readonly)) }
    }
}

/// The loop over the steps; the arguments are its products, whose operands come in either order.
macro_rules! tile_loop {
    ($w:ident, $advance:literal, $pieces:ident, $piece_stride:expr, $steps:ident, $sums:ident, $sum_stride:expr, [$($product:literal)*]) => {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{p} + {ps:r}*1]",
            "tileloadd tmm5, [{p} + {ps:r}*1 + 1024]",
            "tileloadd tmm6, [{p} + {ps:r}*1 + 2048]",
            $($product,)*
            "add {p}, 3072", $advance, "dec {n}", "jnz 2b",
            "tilestored [{c} + {cs:r}*1], tmm0",
            "tilestored [{c} + {cs:r}*1 + 1024], tmm1",
            "tilestored [{c} + {cs:r}*1 + 2048], tmm2",
            "tilestored [{c} + {cs:r}*1 + 3072], tmm3",
            p = inout(reg) $pieces => _, ps = in(reg) $piece_stride, w = inout(reg) $w => _, ws = in(reg) 64usize,
            n = inout(reg) $steps => _, c = in(reg) $sums, cs = in(reg) $sum_stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            out("tmm7") _, options(nostack)
        )
    };
}

/// sums (4 tiles) = the weight tiles (rows of out's transpose) times the pieces, over `steps` steps.
///
/// # Safety
/// A configuration is loaded; `steps` > 0 steps of pieces and of four weight tiles are readable, four tiles of sums writable.
pub(super) unsafe fn weights_first(
    w: *const f32,
    pieces: *const f32,
    piece_stride: usize,
    steps: usize,
    sums: *mut f32,
    sum_stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        tile_loop!(
            w, "add {w}, 4096", pieces, piece_stride, steps, sums, sum_stride,
            ["tileloadd tmm7, [{w} + {ws}*1]"
             "tdpbf16ps tmm0, tmm7, tmm4" "tdpbf16ps tmm0, tmm7, tmm5" "tdpbf16ps tmm0, tmm7, tmm6"
             "tileloadd tmm7, [{w} + {ws}*1 + 1024]"
             "tdpbf16ps tmm1, tmm7, tmm4" "tdpbf16ps tmm1, tmm7, tmm5" "tdpbf16ps tmm1, tmm7, tmm6"
             "tileloadd tmm7, [{w} + {ws}*1 + 2048]"
             "tdpbf16ps tmm2, tmm7, tmm4" "tdpbf16ps tmm2, tmm7, tmm5" "tdpbf16ps tmm2, tmm7, tmm6"
             "tileloadd tmm7, [{w} + {ws}*1 + 3072]"
             "tdpbf16ps tmm3, tmm7, tmm4" "tdpbf16ps tmm3, tmm7, tmm5" "tdpbf16ps tmm3, tmm7, tmm6"]
        )
    }
}

/// sums (4 tiles) = the pieces (rows of out) times the weight tiles.
///
/// # Safety
/// As for [`weights_first`].
pub(super) unsafe fn activations_first(w: *const f32, pieces: *const f32, steps: usize, sums: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        tile_loop!(
            w, "add {w}, 4096", pieces, 64usize, steps, sums, 64usize,
            ["tileloadd tmm7, [{w} + {ws}*1]"
             "tdpbf16ps tmm0, tmm4, tmm7" "tdpbf16ps tmm0, tmm5, tmm7" "tdpbf16ps tmm0, tmm6, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 1024]"
             "tdpbf16ps tmm1, tmm4, tmm7" "tdpbf16ps tmm1, tmm5, tmm7" "tdpbf16ps tmm1, tmm6, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 2048]"
             "tdpbf16ps tmm2, tmm4, tmm7" "tdpbf16ps tmm2, tmm5, tmm7" "tdpbf16ps tmm2, tmm6, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 3072]"
             "tdpbf16ps tmm3, tmm4, tmm7" "tdpbf16ps tmm3, tmm5, tmm7" "tdpbf16ps tmm3, tmm6, tmm7"]
        )
    }
}

/// As [`weights_first`] with f32 weights in three pieces too: the six products of pieces that an f32 sum can feel (the others are below 2^-24).
///
/// # Safety
/// As there; each of the weight tiles is three.
pub(super) unsafe fn split_weights_first(
    w: *const f32,
    pieces: *const f32,
    piece_stride: usize,
    steps: usize,
    sums: *mut f32,
    sum_stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        tile_loop!(
            w, "add {w}, 12288", pieces, piece_stride, steps, sums, sum_stride,
            ["tileloadd tmm7, [{w} + {ws}*1]"
             "tdpbf16ps tmm0, tmm7, tmm4"
             "tdpbf16ps tmm0, tmm7, tmm5"
             "tdpbf16ps tmm0, tmm7, tmm6"
             "tileloadd tmm7, [{w} + {ws}*1 + 1024]"
             "tdpbf16ps tmm0, tmm7, tmm4"
             "tdpbf16ps tmm0, tmm7, tmm5"
             "tileloadd tmm7, [{w} + {ws}*1 + 2048]"
             "tdpbf16ps tmm0, tmm7, tmm4"
             "tileloadd tmm7, [{w} + {ws}*1 + 3072]"
             "tdpbf16ps tmm1, tmm7, tmm4"
             "tdpbf16ps tmm1, tmm7, tmm5"
             "tdpbf16ps tmm1, tmm7, tmm6"
             "tileloadd tmm7, [{w} + {ws}*1 + 4096]"
             "tdpbf16ps tmm1, tmm7, tmm4"
             "tdpbf16ps tmm1, tmm7, tmm5"
             "tileloadd tmm7, [{w} + {ws}*1 + 5120]"
             "tdpbf16ps tmm1, tmm7, tmm4"
             "tileloadd tmm7, [{w} + {ws}*1 + 6144]"
             "tdpbf16ps tmm2, tmm7, tmm4"
             "tdpbf16ps tmm2, tmm7, tmm5"
             "tdpbf16ps tmm2, tmm7, tmm6"
             "tileloadd tmm7, [{w} + {ws}*1 + 7168]"
             "tdpbf16ps tmm2, tmm7, tmm4"
             "tdpbf16ps tmm2, tmm7, tmm5"
             "tileloadd tmm7, [{w} + {ws}*1 + 8192]"
             "tdpbf16ps tmm2, tmm7, tmm4"
             "tileloadd tmm7, [{w} + {ws}*1 + 9216]"
             "tdpbf16ps tmm3, tmm7, tmm4"
             "tdpbf16ps tmm3, tmm7, tmm5"
             "tdpbf16ps tmm3, tmm7, tmm6"
             "tileloadd tmm7, [{w} + {ws}*1 + 10240]"
             "tdpbf16ps tmm3, tmm7, tmm4"
             "tdpbf16ps tmm3, tmm7, tmm5"
             "tileloadd tmm7, [{w} + {ws}*1 + 11264]"
             "tdpbf16ps tmm3, tmm7, tmm4"]
        )
    }
}

/// As [`activations_first`] with f32 weights in three pieces too.
///
/// # Safety
/// As there; each of the weight tiles is three.
pub(super) unsafe fn split_activations(w: *const f32, pieces: *const f32, steps: usize, sums: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        tile_loop!(
            w, "add {w}, 12288", pieces, 64usize, steps, sums, 64usize,
            ["tileloadd tmm7, [{w} + {ws}*1]"
             "tdpbf16ps tmm0, tmm4, tmm7"
             "tdpbf16ps tmm0, tmm5, tmm7"
             "tdpbf16ps tmm0, tmm6, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 1024]"
             "tdpbf16ps tmm0, tmm4, tmm7"
             "tdpbf16ps tmm0, tmm5, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 2048]"
             "tdpbf16ps tmm0, tmm4, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 3072]"
             "tdpbf16ps tmm1, tmm4, tmm7"
             "tdpbf16ps tmm1, tmm5, tmm7"
             "tdpbf16ps tmm1, tmm6, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 4096]"
             "tdpbf16ps tmm1, tmm4, tmm7"
             "tdpbf16ps tmm1, tmm5, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 5120]"
             "tdpbf16ps tmm1, tmm4, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 6144]"
             "tdpbf16ps tmm2, tmm4, tmm7"
             "tdpbf16ps tmm2, tmm5, tmm7"
             "tdpbf16ps tmm2, tmm6, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 7168]"
             "tdpbf16ps tmm2, tmm4, tmm7"
             "tdpbf16ps tmm2, tmm5, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 8192]"
             "tdpbf16ps tmm2, tmm4, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 9216]"
             "tdpbf16ps tmm3, tmm4, tmm7"
             "tdpbf16ps tmm3, tmm5, tmm7"
             "tdpbf16ps tmm3, tmm6, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 10240]"
             "tdpbf16ps tmm3, tmm4, tmm7"
             "tdpbf16ps tmm3, tmm5, tmm7"
             "tileloadd tmm7, [{w} + {ws}*1 + 11264]"
             "tdpbf16ps tmm3, tmm4, tmm7"]
        )
    }
}

/// As [`weights_first`] for one block of rows, the weights read where they stand: four times 16 rows of `stride` bytes. Meanwhile the
/// lines behind `ahead` (as many as are read) are fetched: each weight is used once, and memory is what there is to wait for.
///
/// # Safety
/// A configuration is loaded; `steps` > 0 steps of pieces and of 64 rows of weights are readable, four tiles of sums writable.
pub(super) unsafe fn weights_in_place(
    w: *const half::bf16,
    stride: usize,
    ahead: *const half::bf16,
    pieces: *const f32,
    piece_stride: usize,
    steps: usize,
    sums: *mut f32,
    sum_stride: usize,
) {
    let rows = w.wrapping_byte_add(16 * stride);
    let more = w.wrapping_byte_add(32 * stride);
    let last = w.wrapping_byte_add(48 * stride);
    // SAFETY: the caller's promise; prefetching never faults.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{p} + {ps:r}*1]",
            "tileloadd tmm5, [{p} + {ps:r}*1 + 1024]",
            "tileloadd tmm6, [{p} + {ps:r}*1 + 2048]",
            "tileloadd tmm7, [{w0} + {ws}*1]",
            "tdpbf16ps tmm0, tmm7, tmm4", "tdpbf16ps tmm0, tmm7, tmm5", "tdpbf16ps tmm0, tmm7, tmm6",
            "tileloadd tmm7, [{w1} + {ws}*1]",
            "tdpbf16ps tmm1, tmm7, tmm4", "tdpbf16ps tmm1, tmm7, tmm5", "tdpbf16ps tmm1, tmm7, tmm6",
            "tileloadd tmm7, [{w2} + {ws}*1]",
            "tdpbf16ps tmm2, tmm7, tmm4", "tdpbf16ps tmm2, tmm7, tmm5", "tdpbf16ps tmm2, tmm7, tmm6",
            "tileloadd tmm7, [{w3} + {ws}*1]",
            "tdpbf16ps tmm3, tmm7, tmm4", "tdpbf16ps tmm3, tmm7, tmm5", "tdpbf16ps tmm3, tmm7, tmm6",
            // 64 lines, as many as a step reads.
            "mov {i:e}, 16",
            "3:",
            "prefetcht1 [{f}]", "prefetcht1 [{f} + 64]", "prefetcht1 [{f} + 128]", "prefetcht1 [{f} + 192]",
            "add {f}, 256", "dec {i:e}", "jnz 3b",
            "add {p}, 3072", "add {w0}, 64", "add {w1}, 64", "add {w2}, 64", "add {w3}, 64",
            "dec {n}", "jnz 2b",
            "tilestored [{c} + {cs:r}*1], tmm0",
            "tilestored [{c} + {cs:r}*1 + 1024], tmm1",
            "tilestored [{c} + {cs:r}*1 + 2048], tmm2",
            "tilestored [{c} + {cs:r}*1 + 3072], tmm3",
            p = inout(reg) pieces => _, ps = in(reg) piece_stride, ws = in(reg) stride, f = inout(reg) ahead => _,
            w0 = inout(reg) w => _, w1 = inout(reg) rows => _, w2 = inout(reg) more => _, w3 = inout(reg) last => _,
            i = out(reg) _, n = inout(reg) steps => _, c = in(reg) sums, cs = in(reg) sum_stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            out("tmm7") _, options(nostack)
        )
    }
}
