//! Sums over many rows on a GPU, several in one launch: the gradients of adapters.
use anyhow::{Result, ensure};

use super::plan::{aligned, parts_of};
use crate::{
    ops::{
        checks::check,
        kernels,
        launch::{Grid, gpu_of},
    },
    tensor::{DType, Tensor, refuse_overlap},
};

/// out (M, N), F32, += alpha aᵀ b for a (K, M), b (K, N), Bf16.
pub(crate) struct Sum<'a> {
    pub out: &'a mut Tensor,
    pub a: &'a Tensor,
    pub b: &'a Tensor,
    pub alpha: f32,
}

/// Rows and columns of a tile, and what gemm.cu calls it.
struct Tile {
    sides: [usize; 2],
    kind: u32,
}

impl Tile {
    /// A long side meets a short one in a tile that is as short.
    fn of([m, n]: [usize; 2]) -> Tile {
        match [m, n] {
            [_, ..=16] => Tile { sides: [128, 16], kind: 1 },
            [..=16, _] => Tile { sides: [16, 128], kind: 2 },
            _ => Tile { sides: [64, 64], kind: 0 },
        }
    }
    fn count(&self, [m, n]: [usize; 2]) -> usize {
        m.div_ceil(self.sides[0]) * n.div_ceil(self.sides[1])
    }
}

fn shape(sum: &Sum) -> ([usize; 2], usize) {
    let ((k, m), (_, n)) = (sum.a.rows_cols(), sum.b.rows_cols());
    ([m, n], k)
}

/// All of `sums`, of as many rows, in one launch, if there is a kernel for it: true if it was done. `counters` are zeros, U32, before and after.
pub(crate) fn sum_together(op: &str, sums: &mut [Sum], counters: &mut Tensor) -> Result<bool> {
    let Some(gpu) = counters.gpu().cloned() else { return Ok(false) };
    let narrow = |s: &Sum| s.a.dtype() == DType::Bf16 && s.b.dtype() == DType::Bf16;
    let tiles: usize = sums.iter().map(|s| Tile::of(shape(s).0).count(shape(s).0)).sum();
    let most = kernels::gemm_sums();
    if sums.is_empty() || sums.len() > most || !sums.iter().all(narrow) || tiles > counters.len() {
        return Ok(false);
    }
    let k = shape(&sums[0]).1;
    let parts = parts_of(tiles, k);
    let (mut plan, mut elements, mut first) = (Plan::new(most), 0, 0);
    for (j, sum) in sums.iter().enumerate() {
        let ([m, n], own) = shape(sum);
        check(
            own == k && sum.b.rows_cols().0 == k && sum.out.rows_cols() == (m, n),
            op,
            &[sum.out, sum.a, sum.b],
        )?;
        check(sum.out.dtype() == DType::F32, op, &[sum.out, sum.a, sum.b])?;
        refuse_overlap(&[sum.out, counters], &[sum.a, sum.b])?;
        gpu_of(op, &[counters, sum.out, sum.a, sum.b])?;
        let flag = |on: bool, flag: usize| if on { flag } else { 0 };
        let flags = kernels::gemm_out_f32()
            | kernels::gemm_b_bf16()
            | flag(aligned(sum.a), kernels::gemm_a_vec())
            | flag(aligned(sum.b), kernels::gemm_b_vec());
        let tile = Tile::of([m, n]);
        first += tile.count([m, n]);
        plan.set(j, [first as u32, tile.kind, m as u32, n as u32, flags as u32, sum.alpha.to_bits()]);
        for (to, t) in [&*sum.out, sum.a, sum.b].into_iter().enumerate() {
            plan.addresses[to][j] = t.address()?;
        }
        plan.partial[j] = u32::try_from(elements)?;
        elements += if parts > 1 { parts * m * n } else { 0 };
    }
    let words = plan.words([sums.len() as u32, u32::try_from(k)?, parts as u32]);
    ensure!(words.len() == kernels::gemm_sums_words(), "{op}: gemm.cu's SumPlan is another");
    let mut partial = match parts {
        1 => None,
        _ => Some(Tensor::scratch_on(&counters.device(), "partial sums", DType::F32, &[elements])?),
    };
    let grid = Grid::xyz([tiles, parts, 1]);
    // SAFETY: shapes were checked, and that there is a counter a tile; the tensors of the plan are borrowed until the launch is in the stream.
    unsafe { kernels::gemm_sums_bf16(&gpu, grid, &words, partial.as_mut(), counters)? };
    Ok(true)
}

/// gemm.cu's `SumPlan`: for each of its numbers one a job.
struct Plan {
    /// The tile behind each job's last, tile, rows, columns, flags, factor.
    numbers: [Vec<u32>; 6],
    /// Of out, a and b.
    addresses: [Vec<u64>; 3],
    partial: Vec<u32>,
}

impl Plan {
    fn new(most: usize) -> Plan {
        Plan {
            numbers: [(); 6].map(|()| vec![0; most]),
            addresses: [(); 3].map(|()| vec![0; most]),
            partial: vec![0; most],
        }
    }
    fn set(&mut self, job: usize, numbers: [u32; 6]) {
        self.numbers.iter_mut().zip(numbers).for_each(|(to, x)| to[job] = x);
    }
    fn words(self, head: [u32; 3]) -> Vec<u32> {
        let [ends, rest @ ..] = self.numbers;
        let mut words = [&head[..], &[0], &ends].concat();
        rest.iter().for_each(|x| words.extend(x));
        words.extend(self.addresses.iter().flatten().flat_map(|x| [*x as u32, (*x >> 32) as u32]));
        words.extend(self.partial);
        words
    }
}
