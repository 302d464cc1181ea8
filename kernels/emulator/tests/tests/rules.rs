//! What a driver accepts and what it refuses, tensor maps and launches: the emulator and CUDA must agree with the documentation (cuda.h on
//! cuTensorMapEncodeTiled, cuFuncSetAttribute, CUlaunchAttribute; the CUDA programming guide's table of limits), hence with each other.
use Want::{Accepted, Open, Refused};
use sdrrl_emulator::{Config, Geometry};
use sdrrl_emulator_tests::*;

#[derive(Clone, Copy, PartialEq)]
enum Want {
    Accepted,
    Refused,
    /// The documentation can be read both ways: printed, not asserted.
    Open,
}

/// Fails with every case that went another way than the documentation says.
fn judge(cases: impl IntoIterator<Item = (String, Want, Result<(), String>)>) {
    let mut wrong = vec![];
    for (name, want, outcome) in cases {
        match (want, outcome) {
            (Open, outcome) => {
                let how = if outcome.is_ok() { "accepted" } else { "refused" };
                println!("calibration: driver rule, {name}: {how}");
            }
            (Accepted, Err(why)) => wrong.push(format!("{name}: refused ({why})")),
            (Refused, Ok(())) => wrong.push(format!("{name}: accepted")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "against the documentation:\n{}", wrong.join("\n"));
}

#[test]
fn tensor_maps() {
    let buffer = fresh::<u8>(65536);
    let base = buffer.address();
    type Map<'a> = (&'a str, Want, u64, usize, &'a [u64], &'a [u64], &'a [u32], u32);
    // Name, verdict, offset of the base, bytes of an element, sizes, strides, box, swizzle.
    let cases: &[Map] = &[
        ("bf16, swizzle 128", Accepted, 0, 2, &[64, 8], &[128], &[64, 8], 3),
        ("base at 16 bytes", Accepted, 16, 2, &[64, 8], &[128], &[64, 8], 3),
        ("base at 8 bytes", Refused, 8, 2, &[64, 8], &[128], &[64, 8], 3),
        ("f32", Accepted, 0, 4, &[32, 8], &[128], &[32, 8], 0),
        ("u8", Accepted, 0, 1, &[128, 8], &[128], &[16, 8], 0),
        ("rank 1", Accepted, 0, 4, &[1024], &[], &[64], 0),
        ("rank 3", Accepted, 0, 2, &[64, 8, 4], &[128, 1024], &[64, 8, 2], 3),
        ("rank 4", Accepted, 0, 2, &[64, 8, 2, 2], &[128, 1024, 2048], &[64, 8, 1, 1], 3),
        ("rank 5", Accepted, 0, 2, &[64, 8, 2, 2, 2], &[128, 1024, 2048, 4096], &[64, 1, 1, 1, 1], 3),
        (
            "rank 6",
            Refused,
            0,
            2,
            &[64, 2, 2, 2, 2, 2],
            &[128, 256, 512, 1024, 2048],
            &[64, 1, 1, 1, 1, 1],
            3,
        ),
        ("stride no multiple of 16", Refused, 0, 2, &[60, 8], &[120], &[32, 8], 2),
        ("stride of rank 3 no multiple of 16", Refused, 0, 2, &[64, 8, 4], &[128, 1032], &[64, 8, 2], 3),
        ("stride longer than the row", Accepted, 0, 2, &[60, 8], &[128], &[64, 8], 3),
        ("stride 2^40 - 16", Accepted, 0, 2, &[64, 2], &[(1 << 40) - 16], &[64, 2], 3),
        ("stride 2^40", Refused, 0, 2, &[64, 2], &[1 << 40], &[64, 2], 3),
        ("stride shorter than the row", Open, 0, 2, &[64, 8], &[64], &[64, 8], 3),
        ("stride 0", Open, 0, 2, &[64, 8], &[0], &[64, 8], 3),
        ("inner box of 256 bytes, swizzle 128", Refused, 0, 2, &[128, 8], &[256], &[128, 8], 3),
        ("inner box of 128 bytes, swizzle 64", Refused, 0, 2, &[64, 8], &[128], &[64, 8], 2),
        ("inner box of 64 bytes, swizzle 64", Accepted, 0, 2, &[64, 8], &[128], &[32, 8], 2),
        ("inner box of 64 bytes, swizzle 32", Refused, 0, 2, &[64, 8], &[128], &[32, 8], 1),
        ("inner box of 32 bytes, swizzle 32", Accepted, 0, 2, &[64, 8], &[128], &[16, 8], 1),
        ("inner box of 32 bytes, swizzle 128", Accepted, 0, 2, &[64, 8], &[128], &[16, 8], 3),
        ("inner box of 1024 bytes, no swizzle", Accepted, 0, 4, &[256, 8], &[1024], &[256, 8], 0),
        ("inner box of 8 bytes", Refused, 0, 4, &[32, 8], &[128], &[2, 8], 0),
        ("inner box of 24 bytes", Refused, 0, 2, &[64, 8], &[128], &[12, 8], 0),
        ("inner box of 8 bytes of u8", Refused, 0, 1, &[64, 8], &[64], &[8, 8], 0),
        ("box of 256 rows", Accepted, 0, 2, &[64, 512], &[128], &[64, 256], 3),
        ("box of 257 rows", Refused, 0, 2, &[64, 512], &[128], &[64, 257], 3),
        ("box of 272 columns", Refused, 0, 1, &[512, 8], &[512], &[272, 8], 0),
        ("box of 0 rows", Refused, 0, 2, &[64, 8], &[128], &[64, 0], 3),
        ("box of 0 columns", Refused, 0, 2, &[64, 8], &[128], &[0, 8], 3),
        ("box larger than shared memory", Open, 0, 4, &[256, 256], &[1024], &[256, 256], 0),
        ("0 rows", Refused, 0, 2, &[64, 0], &[128], &[64, 8], 3),
        ("0 columns", Refused, 0, 2, &[0, 8], &[128], &[64, 8], 3),
        ("tensor smaller than the box", Accepted, 0, 2, &[8, 3], &[16], &[64, 64], 3),
        ("1 column", Accepted, 0, 2, &[1, 3], &[16], &[64, 64], 3),
        ("2^31 rows", Accepted, 0, 2, &[64, 1 << 31], &[128], &[64, 8], 3),
        ("2^32 rows", Accepted, 0, 2, &[64, 1 << 32], &[128], &[64, 8], 3),
        ("2^32 + 1 rows", Refused, 0, 2, &[64, (1 << 32) + 1], &[128], &[64, 8], 3),
        ("2^32 columns", Accepted, 0, 2, &[1 << 32, 2], &[1 << 33], &[64, 2], 3),
    ];
    judge(cases.iter().map(|&(name, want, offset, elem, dims, strides, tile, swizzle)| {
        let outcome = tensor_map(base + offset, elem, dims, strides, tile, swizzle).map(|_| ());
        (format!("tensor map, {name}"), want, outcome)
    }));
}

const PLAIN: Geometry = Geometry { grid: [1; 3], block: [32, 1, 1], cluster: [1; 3], shared_bytes: 0 };

/// Launches, and looks whether every block has run, or none of a launch that was refused.
fn launch(kernel: &str, at: Geometry, config: &Config) -> Result<(), String> {
    let count = memory(&[0u32]);
    let mut args = vec![sdrrl_emulator_tests::at(&count)];
    if kernel.starts_with("static") {
        args.push(arg(at.shared_bytes as i32));
    }
    let outcome = run(kernel, at, &args, config).map(|_| ());
    let want = if outcome.is_ok() { at.grid.iter().product() } else { 0 };
    assert_eq!(values::<u32>(&count)[0], want, "{kernel} {at:?}");
    outcome
}

fn judge_launches(cases: &[(&str, Want, Geometry)], config: &Config) {
    judge(cases.iter().map(|&(kernel, want, at)| {
        let Geometry { grid, block, cluster, shared_bytes } = at;
        let name =
            format!("launch, {kernel} {grid:?} x {block:?}, clusters {cluster:?}, {shared_bytes} bytes");
        (name, want, launch(kernel, at, config))
    }));
}

#[test]
fn sizes_of_blocks_and_grids() {
    let block = |x, y, z| Geometry { block: [x, y, z], ..PLAIN };
    let grid = |x, y, z| Geometry { grid: [x, y, z], ..PLAIN };
    let cases = [
        ("bound_256", Accepted, block(256, 1, 1)),
        ("bound_256", Refused, block(257, 1, 1)),
        ("bound_256", Refused, block(16, 17, 1)),
        ("bound_1024", Accepted, block(1024, 1, 1)),
        ("bound_1024", Accepted, block(2, 512, 1)),
        ("bound_1024", Refused, block(1025, 1, 1)),
        ("bound_1024", Refused, block(1, 1025, 1)),
        ("bound_1024", Accepted, block(16, 1, 64)),
        ("bound_1024", Refused, block(1, 1, 65)),
        ("bound_1024", Refused, block(0, 1, 1)),
        ("bound_256", Refused, grid(0, 1, 1)),
        ("bound_256", Accepted, grid(65536, 1, 1)),
        ("bound_256", Accepted, grid(1, 65535, 1)),
        ("bound_256", Refused, grid(1, 65536, 1)),
        ("bound_256", Accepted, grid(1, 1, 65535)),
        ("bound_256", Refused, grid(1, 1, 65536)),
        ("bound_256", Refused, grid(1 << 31, 1, 1)),
    ];
    judge_launches(&cases, &Config::default());
}

#[test]
fn shared_memory() {
    let with = |shared_bytes: u32| Geometry { shared_bytes, ..PLAIN };
    let (kib48, kib227) = (48 * 1024, 227 * 1024);
    let cases = [
        // The emulator learns at the first launch how much static memory there is.
        ("static_4_kib", Accepted, with(0)),
        ("static_64_bytes", Accepted, with(0)),
        ("bound_256", Accepted, with(kib227)),
        ("bound_256", Refused, with(kib227 + 1)),
        ("static_4_kib", Accepted, with(kib227 - 4096)),
        ("static_4_kib", Refused, with(kib227 - 4095)),
        // nvcc pads static arrays to the alignment of the dynamic part, 1024 bytes.
        ("static_64_bytes", Accepted, with(kib227 - 1024)),
        ("static_64_bytes", Refused, with(kib227 - 1023)),
        ("static_64_bytes", Refused, with(kib227 - 64)),
    ];
    judge_launches(&cases, &Config::default());
    let cases = [
        ("bound_256", Accepted, with(kib48)),
        ("bound_256", Refused, with(kib48 + 1)),
        ("static_4_kib", Accepted, with(kib48 - 4096)),
        ("static_4_kib", Refused, with(kib48 - 4095)),
        ("static_64_bytes", Accepted, with(kib48 - 1024)),
        ("static_64_bytes", Refused, with(kib48 - 1023)),
    ];
    judge_launches(&cases, &Config { default_shared: true, ..Config::default() });
}

#[test]
fn clusters_and_cooperative_grids() {
    let cluster = |grid, cluster| Geometry { grid, cluster, ..PLAIN };
    let cases = [
        ("bound_256", Accepted, cluster([8, 1, 1], [8, 1, 1])),
        ("bound_256", Accepted, cluster([2, 4, 6], [2, 2, 2])),
        ("bound_256", Accepted, cluster([6, 1, 1], [3, 1, 1])),
        ("bound_256", Refused, cluster([5, 1, 1], [2, 1, 1])),
        ("bound_256", Refused, cluster([2, 3, 1], [1, 2, 1])),
        ("bound_256", Refused, cluster([9, 1, 1], [9, 1, 1])),
        ("bound_256", Refused, cluster([16, 1, 1], [16, 1, 1])),
        ("bound_256", Refused, cluster([4, 4, 1], [4, 4, 1])),
    ];
    judge_launches(&cases, &Config::default());
    let cases = [
        ("bound_256", Accepted, cluster([16, 1, 1], [16, 1, 1])),
        ("bound_256", Refused, cluster([32, 1, 1], [32, 1, 1])),
    ];
    judge_launches(&cases, &Config { large_clusters: true, ..Config::default() });
    // No card holds a million blocks at once.
    let cases = [
        ("bound_256", Accepted, cluster([6, 1, 1], [1; 3])),
        ("bound_256", Refused, cluster([1_000_000, 1, 1], [1; 3])),
    ];
    judge_launches(&cases, &Config { cooperative: true, ..Config::default() });
}
