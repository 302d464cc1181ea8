//! Checks and times the table's rows on one GPU.
use std::{fs::File, io::Write, path::Path};

use anyhow::{Context, Result, ensure};
use sdrrl::{
    device::{DeviceChoice, Gpu},
    ops::{
        gemm::{Layout, gpu::gemm_on, plan::Rung},
        rows::copy,
    },
    tensor::{DType, Tensor},
};
use serde_json::{Value, json};

use crate::{
    card::machine,
    cpu_gemm::median,
    table::{Case, Row, Work, World, rows},
};

/// Times taken of a row, fewer if they would take longer than `SECONDS`; odd.
const REPEATS: usize = 31;
const SECONDS: f64 = 2.0;
/// Larger than any L2 cache: what is copied in between pushes everything else out.
const FLUSH: usize = 256 << 20;

/// What is done with a row.
#[derive(Clone, Copy, Default, PartialEq)]
pub struct How {
    /// Tiny shapes, checks, no times.
    pub smoke: bool,
    /// No checks, no times: one run for a profiler.
    pub once: bool,
}

struct Bench {
    gpu: World,
    how: How,
    flush: Option<(Tensor, Tensor)>,
    /// Bytes a second of a copy, FLOP a second of our best matrix product.
    ceilings: (Option<f64>, Option<f64>),
    json: Option<File>,
    /// Card, driver, power limit.
    machine: String,
}

/// Runs the rows whose names contain one of `filters` (all, if there are none); the number of rows that failed.
pub fn run(device: DeviceChoice, how: How, json: Option<&Path>, filters: &[String]) -> Result<usize> {
    let device = device.open()?;
    let gpu = device.gpu().context("--device takes cuda or cuda:N here")?.clone();
    ensure!(how != How::default() || !gpu.is_emulated(), "the emulated device has no speed: use --smoke");
    let timed = how == How::default();
    let json = json
        .map(|path| File::create(path).with_context(|| format!("create {}", path.display())))
        .transpose()?;
    let words = FLUSH / 4;
    let big = || Tensor::zeros_on(&device, "flush", DType::F32, &[words]);
    let mut bench = Bench {
        flush: if timed { Some((big()?, big()?)) } else { None },
        gpu: World { device: device.clone(), acts: DType::Bf16, rounded: DType::Bf16 },
        how,
        ceilings: (None, None),
        json,
        machine: machine(Some(gpu.name())),
    };
    println!("{}", bench.machine);
    if timed {
        bench.measure_ceilings(&gpu)?;
        println!(
            "random normal inputs; medians; L2 flushed for rows in GB/s; % of a copy's rate and of our best bf16 product, both of this run"
        );
    }
    let mut wrong = 0;
    for (row, dims, dtype) in rows().flat_map(|row| runs(row, how)) {
        let name = format!("{} {} {}", row.op, shape(dims), dtype.suffix());
        // For a profiler the whole name counts: `add 8192x4096 bf16` is not `residual_add 8192x4096 bf16`.
        let wanted = |f: &String| if how.once { name == *f } else { name.contains(f) };
        if !filters.is_empty() && !filters.iter().any(wanted) {
            continue;
        }
        (bench.gpu.acts, bench.gpu.rounded) = (dtype, dtype);
        let done = bench.row(row, dims, &name);
        wrong += done.is_err() as usize;
        let line = done.unwrap_or_else(|e| {
            println!("{name:<52} FAILED: {e:#}");
            json!({"error": format!("{e:#}")})
        });
        bench.write(row, dims, dtype, line)?;
    }
    Ok(wrong)
}

/// The shapes and types of a row that this run goes through.
fn runs(row: &'static Row, how: How) -> Vec<(&'static Row, &'static [usize], DType)> {
    let (checked, measured) = (row.checked.iter().map(|d| (*d, row.dtypes)), row.measured.iter().copied());
    let all: Vec<_> = if how.smoke { checked.collect() } else { measured.collect() };
    all.into_iter().flat_map(|(dims, types)| types.iter().map(move |t| (row, dims, *t))).collect()
}

/// Prints the rows that are measured, a line of JSON each: op, names of the dimensions, shapes and types that are measured and checked.
pub fn list() {
    let types = |types: &[DType]| types.iter().map(|t| t.suffix()).collect::<Vec<_>>();
    for row in rows().filter(|row| !row.measured.is_empty()) {
        let measured: Vec<_> =
            row.measured.iter().map(|(shape, own)| json!({"shape": shape, "dtypes": types(own)})).collect();
        let line = json!({
            "op": row.op, "dims": row.names, "measured": measured, "checked": row.checked, "dtypes": types(row.dtypes),
        });
        println!("{line}");
    }
}

fn shape(dims: &[usize]) -> String {
    dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

impl Bench {
    fn row(&mut self, row: &Row, dims: &[usize], name: &str) -> Result<Value> {
        let mut case = (row.make)(&self.gpu, dims)?;
        if self.how.once {
            let gpu = self.gpu.device.gpu().context("a GPU")?;
            (case.run)()?;
            gpu.profile(&mut case.run)?;
            println!("{name:<52} ran inside a profiler's range");
            return Ok(json!({"once": true}));
        }
        if self.how.smoke {
            let error = row.check(&self.gpu.device, dims, self.gpu.acts)?;
            println!("{name:<52} agrees with the CPU, error {error:.1e}");
            return Ok(json!({"checked": error, "smoke": true}));
        }
        (case.run)()?;
        let error = row.check_case(dims, self.gpu.acts, &case)?;
        let work = (row.work)(dims, self.gpu.acts);
        let seconds = self.time(&mut case, matches!(work, Work::Bytes(_)))?;
        let (amount, unit, ceiling) = match work {
            Work::Bytes(x) => (x, "GB/s", self.ceilings.0),
            Work::Flop(x) if self.gpu.acts == DType::Bf16 => (x, "TFLOP/s", self.ceilings.1),
            Work::Flop(x) => (x, "TFLOP/s", None),
        };
        let (rate, scale) = (amount / seconds, if unit == "GB/s" { 1e9 } else { 1e12 });
        let percent = ceiling.map(|c| 100.0 * rate / c);
        let of = percent.map_or("     -".into(), |p| format!("{p:5.1}%"));
        println!("{name:<52} {:>10.1} us {:>9.1} {unit:<8} {of}", seconds * 1e6, rate / scale);
        let key = if unit == "GB/s" { "bytes" } else { "flop" };
        Ok(
            json!({"checked": error, "seconds": seconds, key: amount, "rate": rate, "ceiling": ceiling, "percent": percent}),
        )
    }

    /// The median time of a run by the device's clock, s.
    fn time(&mut self, case: &mut Case, cold: bool) -> Result<f64> {
        let gpu = self.gpu.device.gpu().context("a GPU")?.clone();
        let once = gpu.time(&mut case.run)?.max(1e-6);
        let repeats = ((SECONDS / once) as usize).clamp(3, REPEATS) | 1;
        let mut times = vec![];
        for _ in 0..repeats {
            if let (true, Some((to, from))) = (cold, &mut self.flush) {
                copy(to, from)?;
            }
            times.push(gpu.time(&mut case.run)?);
        }
        Ok(median(times))
    }

    fn measure_ceilings(&mut self, gpu: &Gpu) -> Result<()> {
        let Some((to, from)) = &mut self.flush else { return Ok(()) };
        let mut times = vec![];
        for _ in 0..REPEATS {
            times.push(gpu.time(&mut || copy(to, from))?);
        }
        let bytes = 2.0 * FLUSH as f64 / median(times);
        let n = 8192;
        let (a, b, mut out) =
            (self.gpu.normal("a", &[n, n], 1)?, self.gpu.normal("b", &[n, n], n)?, self.gpu.out(&[n, n])?);
        let mut best: f64 = 0.0;
        // SDRRL_GEMM=mma128 keeps away from Hopper's product here too.
        let plain = std::env::var("SDRRL_GEMM").is_ok_and(|rung| !rung.starts_with("wgmma"));
        for rung in [Rung::Wgmma, Rung::Mma128] {
            if plain && rung == Rung::Wgmma {
                continue;
            }
            let mut product = || gemm_on(&mut out, &a, &b, Layout::NT, 1.0, false, rung);
            product()?;
            let times = (0..9).map(|_| gpu.time(&mut product)).collect::<Result<Vec<f64>>>()?;
            best = best.max(2.0 * (n as f64).powi(3) / median(times));
        }
        println!("ceilings: copy {:.0} GB/s, bf16 product {:.0} TFLOP/s (8192^3)", bytes / 1e9, best / 1e12);
        self.ceilings = (Some(bytes), Some(best));
        Ok(())
    }

    /// A line of JSON, on disk when this returns.
    fn write(&mut self, row: &Row, dims: &[usize], dtype: DType, line: Value) -> Result<()> {
        let Some(file) = &mut self.json else { return Ok(()) };
        let mut out = json!({
            "op": row.op, "shape": dims, "dims": row.names, "dtype": dtype.suffix(),
            "machine": self.machine,
        });
        if let (Some(out), Value::Object(line)) = (out.as_object_mut(), line) {
            out.extend(line);
        }
        writeln!(file, "{out}")?;
        Ok(file.sync_data()?)
    }
}
