//! What the GPU arms of the ops share, and what stands behind the launch functions of [`super::kernels`].
#![allow(unsafe_code)]
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use crate::{
    device::{Arg, Geometry, Gpu, Kernel, TensorLabel, TensorMap},
    tensor::{DType, Tensor},
};

/// The blocks of a launch. Threads, shared memory and tiles are the kernel's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    count: Count,
    /// Of a block, fewer than the kernel's most.
    threads: Option<u32>,
}

/// How blocks are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Blocks([usize; 3]),
    /// As many along x as have so many threads.
    Threads(usize),
    /// Elements along x and y, by the kernel's TILE; blocks along z.
    Tiles([usize; 3]),
    /// The same in one row along x, of so many blocks at the most.
    RowOfTiles([usize; 2], usize),
    /// Rows of so many documents along x, each cut into tiles of its own; blocks along y.
    Documents([usize; 3]),
}

impl Grid {
    fn counted(count: Count) -> Grid {
        Grid { count, threads: None }
    }
    /// `blocks` blocks in a row.
    pub fn new(blocks: usize) -> Grid {
        Grid::xyz([blocks, 1, 1])
    }
    /// Blocks in up to three dimensions.
    pub fn xyz(blocks: [usize; 3]) -> Grid {
        Grid::counted(Count::Blocks(blocks))
    }
    /// A thread for each of `n` elements.
    pub fn covering(n: usize) -> Grid {
        Grid::counted(Count::Threads(n))
    }
    /// One thread for 16 bytes of `t`.
    pub fn vectors(t: &Tensor) -> Grid {
        Grid::covering(t.bytes().div_ceil(16))
    }
    /// As many blocks as the kernel's TILE makes of `x` by `y` elements, `z` times.
    pub fn tiles([x, y, z]: [usize; 3]) -> Grid {
        Grid::counted(Count::Tiles([x, y, z]))
    }
    /// Blocks in a row, one a tile, but at most `most`: each takes one tile after another.
    pub fn row_of_tiles(elements: [usize; 2], most: usize) -> Grid {
        Grid::counted(Count::RowOfTiles(elements, most))
    }
    /// As many blocks along x as tiles may begin in `rows` rows of `documents` documents, `y` times.
    pub fn documents(rows: usize, documents: usize, y: usize) -> Grid {
        Grid::counted(Count::Documents([rows, documents, y]))
    }
    /// With fewer threads a block than the kernel's most.
    pub fn threads(self, threads: u32) -> Grid {
        Grid { threads: Some(threads), ..self }
    }

    /// For a kernel of up to `most` threads a block with `shared` bytes of dynamic shared memory; a block takes `tile`.
    fn geometry(&self, most: u32, shared: u32, tile: Option<[u32; 2]>) -> Result<Geometry> {
        let threads = self.threads.unwrap_or(most);
        let tile = || {
            let sides = tile.context("is launched by tiles, but its source has no TILE")?;
            ensure!(sides.iter().all(|&side| side > 0), "has a TILE of {sides:?}");
            Ok(sides.map(|side| side as usize))
        };
        let blocks = match self.count {
            Count::Blocks(blocks) => blocks,
            Count::Threads(n) => [n.div_ceil(threads.max(1) as usize), 1, 1],
            Count::Tiles([x, y, z]) => {
                let [w, h] = tile()?;
                [x.div_ceil(w), y.div_ceil(h), z]
            }
            Count::RowOfTiles([x, y], most) => {
                let [w, h] = tile()?;
                [(x.div_ceil(w) * y.div_ceil(h)).min(most), 1, 1]
            }
            Count::Documents([rows, documents, y]) => [rows / tile()?[0] + documents, y, 1],
        };
        Ok(Geometry::grid(blocks, threads).shared(shared as usize))
    }
}

/// A tensor described for TMA: copies of boxes of it. Only valid while the tensor's memory is.
#[derive(Clone)]
pub(crate) struct TileMap {
    map: TensorMap,
    label: TensorLabel,
}

impl TileMap {
    /// `t` as a row-major matrix of bf16, for boxes of `tile` = (rows, columns) with 128-byte swizzle.
    pub fn new(gpu: &Gpu, t: &Tensor, tile: [u32; 2]) -> Result<TileMap> {
        ensure!(t.dtype() == DType::Bf16, "{t:?} must be bf16 to be carried by TMA");
        let (rows, cols) = t.rows_cols();
        Ok(TileMap { map: gpu.tensor_map_2d(t.address()?, rows, cols, cols, tile)?, label: t.label() })
    }
}

/// A parameter's value.
pub(super) enum Value<'a> {
    /// Only an OPTIONAL one may be none.
    Tensor(Option<&'a Tensor>),
    Int(usize),
    /// No kernel has one today.
    #[allow(dead_code)]
    U32(u32),
    U64(u64),
    F32(f32),
    Map(&'a TileMap),
}

/// One kernel of a binding.
pub(super) struct Variant {
    pub kernel: &'static str,
    /// The element type that each parameter insists on.
    pub takes: &'static [Option<DType>],
    /// Threads of a block at the most.
    pub threads: &'static u32,
    /// Dynamic shared memory, bytes.
    pub shared: Option<&'static u32>,
    /// What a block takes along x and y.
    pub tile: Option<[&'static u32; 2]>,
}

/// What the build knows of a launch function.
pub(super) struct Binding {
    pub file: &'static str,
    pub name: &'static str,
    pub variants: &'static [Variant],
}

impl Binding {
    /// Launches the variant that the tensors' types choose. Errors name the parameter that is of another type, on another device, or too large.
    ///
    /// # Safety
    /// The values are the kernel's parameters in order; grid and sizes keep it inside its tensors.
    pub unsafe fn launch(&self, gpu: &Gpu, grid: Grid, values: &[(&'static str, Value)]) -> Result<()> {
        let variant = self.variant(values)?;
        let arg = |(name, value): &(&'static str, Value)| -> Result<Arg> {
            Ok(match value {
                Value::Tensor(None) => Arg::Null,
                Value::Tensor(Some(t)) => {
                    let here = t.gpu().is_some_and(|own| std::ptr::eq(&**own, gpu));
                    ensure!(
                        here,
                        "{}: {name} is {t:?} on {:?}, but the kernel runs on {}",
                        self.name,
                        t.device(),
                        gpu.name()
                    );
                    t.arg()?
                }
                Value::Int(x) => Arg::int(*x).with_context(|| format!("{}: {name}", self.name))?,
                Value::U32(x) => Arg::U32(*x),
                Value::U64(x) => Arg::U64(*x),
                Value::F32(x) => Arg::F32(*x),
                Value::Map(t) => Arg::Map(t.map, t.label.clone()),
            })
        };
        let args = values.iter().map(arg).collect::<Result<Vec<Arg>>>()?;
        let tile = variant.tile.map(|sides| sides.map(|side| *side));
        let at = grid.geometry(*variant.threads, variant.shared.copied().unwrap_or(0), tile);
        let at = at.with_context(|| format!("the kernel {}", variant.kernel))?;
        // SAFETY: the caller's promise.
        unsafe { gpu.launch(Kernel { file: self.file, name: variant.kernel }, at, &args) }
    }

    /// The variant that takes these types, by the first parameters that tell them apart.
    fn variant(&self, values: &[(&'static str, Value)]) -> Result<&'static Variant> {
        let mut left: Vec<&'static Variant> = self.variants.iter().collect();
        for (i, (name, value)) in values.iter().enumerate() {
            let Value::Tensor(Some(t)) = value else { continue };
            let takes = |v: &Variant| v.takes.get(i).copied().flatten().is_none_or(|own| own == t.dtype());
            if !left.iter().any(|v| takes(v)) {
                let wanted: Vec<&str> = left.iter().filter_map(|v| v.takes[i].map(DType::suffix)).collect();
                bail!("{}: {name} must be {} here, but it is {t:?}", self.name, wanted.join(" or "));
            }
            left.retain(|v| takes(v));
        }
        left.first().copied().with_context(|| format!("{} has no kernel", self.name))
    }
}

/// The GPU that all of `tensors` are on; `None` if they are all in main memory. Errors if they are not in one place.
pub(crate) fn gpu_of(op: &str, tensors: &[&Tensor]) -> Result<Option<Arc<Gpu>>> {
    let Some(first) = tensors.first() else { return Ok(None) };
    let device = first.device();
    for t in tensors {
        ensure!(t.device() == device, "{op}: {first:?} is on {device:?}, but {t:?} is on {:?}", t.device());
    }
    Ok(device.gpu().cloned())
}

/// Errors unless every tensor has this dtype.
pub(crate) fn check_dtype(op: &str, dtype: DType, tensors: &[&Tensor]) -> Result<()> {
    for t in tensors {
        ensure!(t.dtype() == dtype, "{op}: {t:?} must be {dtype:?} like the others here");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::Device, ops::kernels};

    fn on(device: &Device, name: &str, dtype: DType, n: usize) -> Tensor {
        Tensor::zeros_on(device, name, dtype, &[n]).unwrap()
    }

    #[test]
    fn a_tensor_of_another_type_or_device_is_refused_by_the_parameters_name() {
        let device = Device::emulated();
        let gpu = device.gpu().unwrap();
        let add = |out: &mut Tensor, inp: &Tensor| {
            // SAFETY: both have 8 elements.
            let done = unsafe { kernels::add(gpu, Grid::vectors(out), out, inp, 8) };
            done.map_err(|e| format!("{e:#}"))
        };
        let of = |dtype| on(&device, "x", dtype, 8);
        add(&mut of(DType::F32), &of(DType::F32)).unwrap();
        add(&mut of(DType::Bf16), &of(DType::Bf16)).unwrap();
        let error = add(&mut of(DType::Bf16), &on(&device, "residual", DType::F32, 8)).unwrap_err();
        assert!(error.starts_with("add: inp must be bf16 here, but it is residual F32"), "{error}");
        let error = add(&mut of(DType::U32), &of(DType::U32)).unwrap_err();
        assert!(error.starts_with("add: out must be f32 or bf16 here"), "{error}");
        let error = add(&mut of(DType::F32), &on(&Device::Cpu, "y", DType::F32, 8)).unwrap_err();
        assert!(
            error.contains("add: inp is y F32 [8] on cpu, but the kernel runs on emulated GPU"),
            "{error}"
        );
        let error = add(&mut of(DType::F32), &on(&Device::emulated(), "y", DType::F32, 8)).unwrap_err();
        assert!(error.contains("add: inp is y F32"), "{error}");
    }

    #[test]
    fn every_pair_of_types_has_its_own_variant() {
        let device = Device::emulated();
        for (from, to) in [
            (DType::F32, DType::F32),
            (DType::F32, DType::Bf16),
            (DType::Bf16, DType::F32),
            (DType::Bf16, DType::Bf16),
        ] {
            let mut inp = on(&device, "inp", from, 5);
            inp.write_f32(&[1.0, -2.0, 3.0, 4.0, 5.0]).unwrap();
            let mut out = on(&device, "out", to, 5);
            // SAFETY: both have 5 elements.
            unsafe { kernels::cast(device.gpu().unwrap(), Grid::tiles([5, 1, 1]), &mut out, &inp, 0.5, 5) }
                .unwrap();
            assert_eq!(out.to_f32_vec().unwrap(), [0.5, -1.0, 1.5, 2.0, 2.5], "{from:?} {to:?}");
        }
    }

    #[test]
    fn a_size_that_no_int_holds_is_refused_by_name() {
        let device = Device::emulated();
        let (mut out, inp) = (on(&device, "out", DType::F32, 4), on(&device, "inp", DType::F32, 4));
        // SAFETY: it is refused before anything runs.
        let done =
            unsafe { kernels::reduce_rows(device.gpu().unwrap(), Grid::new(1), &mut out, &inp, 1 << 31, 4) };
        let error = format!("{:#}", done.unwrap_err());
        assert!(error.contains("reduce_rows: rows: a size of 2147483648"), "{error}");
    }

    #[test]
    fn a_grid_covers_its_elements_with_the_kernels_own_threads_and_tiles() {
        let blocks = |grid: Grid| grid.geometry(256, 0, Some([64, 32])).unwrap().grid;
        assert_eq!(blocks(Grid::covering(1)), [1, 1, 1]);
        assert_eq!(blocks(Grid::covering(256)), [1, 1, 1]);
        assert_eq!(blocks(Grid::covering(257)), [2, 1, 1]);
        assert_eq!(blocks(Grid::covering(0)), [0, 1, 1]);
        assert_eq!(blocks(Grid::tiles([64, 33, 3])), [1, 2, 3]);
        assert_eq!(blocks(Grid::tiles([65, 0, 1])), [2, 0, 1]);
        assert_eq!(blocks(Grid::row_of_tiles([65, 33], 132)), [4, 1, 1]);
        assert_eq!(blocks(Grid::row_of_tiles([6500, 33], 132)), [132, 1, 1]);
        // A document may end within a tile.
        assert_eq!(blocks(Grid::documents(63, 3, 2)), [3, 2, 1]);
        assert_eq!(blocks(Grid::documents(64, 3, 2)), [4, 2, 1]);
        let at = Grid::xyz([2, 3, 4]).threads(64).geometry(256, 1000, None).unwrap();
        assert_eq!((at.grid, at.block, at.shared_bytes), ([2, 3, 4], 64, 1000));
    }

    #[test]
    fn a_kernel_without_a_tile_cannot_be_launched_by_tiles() {
        let device = Device::emulated();
        let (mut out, inp) = (on(&device, "out", DType::F32, 4), on(&device, "inp", DType::F32, 4));
        // SAFETY: it is refused before anything runs.
        let done = unsafe { kernels::add(device.gpu().unwrap(), Grid::tiles([4, 1, 1]), &mut out, &inp, 4) };
        let error = format!("{:#}", done.unwrap_err());
        assert!(
            error.contains("the kernel add_f32: is launched by tiles, but its source has no TILE"),
            "{error}"
        );
    }
}
