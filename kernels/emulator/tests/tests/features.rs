//! Each feature of the execution model in a correct kernel, under every schedule and asynchrony; the memory profile's exact counts.
use sdrrl_emulator::{Config, Geometry, Stats, kernels};
use sdrrl_emulator_tests::*;

fn everywhere(case: impl Fn(&Config)) {
    all_configs().iter().for_each(case);
}

#[test]
fn kernels_are_listed() {
    let names = kernels();
    assert!(names.is_sorted() && names.iter().any(|n| n == "warp_functions"), "{names:?}");
}

#[test]
fn warps() {
    let v: Vec<i32> = (0..32).map(|i| (i * 7 + 3) % 23).collect();
    everywhere(|config| {
        let (out, input) = (fresh::<i32>(32 * 12), memory(&v));
        run("warp_functions", geometry(1, 32, 0), &[at(&out), at(&input)], config).unwrap();
        let got = values::<i32>(&out);
        let ballot = |n: usize, f: &dyn Fn(i32) -> bool| {
            (0..n).fold(0u32, |b, l| b | (u32::from(f(v[l])) << l)) as i32
        };
        for i in 0..32 {
            let want = [
                v[i ^ 5],
                v[if i < 3 { i } else { i - 3 }],
                v[if i > 28 { i } else { i + 3 }],
                v[i / 16 * 16 + 9],
                ballot(32, &|x| x % 3 == 0),
                1,
                1,
                v.iter().sum(),
                *v.iter().max().unwrap(),
                *v.iter().min().unwrap(),
                if i < 12 { ballot(12, &|x| x % 2 == 1) + v[11] } else { 0 },
                (v[i].count_ones() + v[i].leading_zeros()) as i32
                    + if v[i] == 0 { 0 } else { v[i].trailing_zeros() as i32 + 1 },
            ];
            assert_eq!(got[i * 12..][..12], want, "lane {i} {config:?}");
        }
    });
}

#[test]
fn blocks_and_grids_of_any_shape() {
    everywhere(|config| {
        for (grid, block) in [([1, 1, 1], [1, 1, 1]), ([3, 2, 2], [7, 3, 5]), ([5, 1, 1], [33, 1, 1])] {
            let n: usize = block.iter().product::<u32>() as usize;
            let blocks: usize = grid.iter().product::<u32>() as usize;
            let out = fresh::<i32>(n * blocks);
            let g = Geometry { grid, block, cluster: [1; 3], shared_bytes: 4 * n as u32 };
            run("block_shapes", g, &[at(&out)], config).unwrap();
            let want: Vec<i32> =
                (0..blocks * n).map(|i| (n - 1 - (i % n + 1) % n + 1000 * (i / n)) as i32).collect();
            assert_eq!(values::<i32>(&out), want, "{config:?}");
        }
    });
}

#[test]
fn atomics_of_many_blocks() {
    // Without checks the blocks share the machine's threads: enough of them to meet.
    for _ in 0..20 {
        everywhere_cheap(|config| {
            let blocks = 40;
            let (out, sum, bits) = (memory(&[0i32, -5, 5, 0]), memory(&[0f32]), memory(&[0u32]));
            run("atomics", geometry(blocks, 64, 0), &[at(&out), at(&sum), at(&bits)], config).unwrap();
            let n = 64 * blocks as i32;
            assert_eq!(values::<i32>(&out), [n, n - 1, 1 - n, 99]);
            assert_eq!((values::<f32>(&sum)[0], values::<u32>(&bits)[0]), (n as f32 / 2.0, 3 * n as u32));
        });
    }
}
fn everywhere_cheap(case: impl Fn(&Config)) {
    case(&Config::default());
    twelve().get(10).into_iter().for_each(case);
}

#[test]
fn sixteen_bit_floats_vectors_and_bytes() {
    let x: Vec<f32> =
        (0..32).map(|i| [1.0 + i as f32 / 300.0, -3.1e-6 * i as f32, 60000.0 + i as f32][i % 3]).collect();
    let vectors: Vec<u32> = (0..128).collect();
    everywhere(|config| {
        let (b, h, back) = (fresh::<half::bf16>(32), fresh::<half::f16>(32), fresh::<f32>(32));
        let (copied, from, input) = (fresh::<u32>(128), memory(&vectors), memory(&x));
        let args = [at(&b), at(&h), at(&back), at(&input), at(&copied), at(&from)];
        run("halves", geometry(1, 32, 0), &args, config).unwrap();
        for i in 0..32 {
            let (wb, wh) = (half::bf16::from_f32(x[i]), half::f16::from_f32(x[i]));
            assert_eq!((values::<half::bf16>(&b)[i], values::<half::f16>(&h)[i]), (wb, wh), "{}", x[i]);
            assert_eq!(values::<f32>(&back)[i], wb.to_f32() + wh.to_f32());
            assert_eq!(values::<u32>(&copied)[i * 4..][..4], vectors[(31 - i) * 4..][..4]);
        }
        let (out, input) = (fresh::<u8>(128), memory(&(0..64).collect::<Vec<u8>>()));
        run("single_bytes", geometry(1, 64, 0), &[at(&out), at(&input)], config).unwrap();
        let want: Vec<u8> = (0..64).map(|i| i + 1).chain((0..64).map(|i| (i ^ 63) + 2)).collect();
        assert_eq!(values::<u8>(&out), want);
    });
}

fn small(n: usize, step: usize) -> Vec<half::bf16> {
    (0..n).map(|i| half::bf16::from_f32(((i * step) % 17) as f32 - 8.0)).collect()
}

#[test]
fn ldmatrix_mma_stmatrix() {
    let (a, b) = (small(256, 5), small(256, 3));
    everywhere(|config| {
        let (c, rounded, ta, tb) = (fresh::<f32>(256), fresh::<half::bf16>(256), memory(&a), memory(&b));
        run("tensor_cores", geometry(1, 32, 0), &[at(&c), at(&rounded), at(&ta), at(&tb)], config).unwrap();
        let want: Vec<f32> = (0..256)
            .map(|i| (0..16).map(|k| a[i / 16 * 16 + k].to_f32() * b[k * 16 + i % 16].to_f32()).sum())
            .collect();
        assert_eq!(values::<f32>(&c), want);
        let want: Vec<half::bf16> = want.iter().map(|&x| half::bf16::from_f32(x)).collect();
        assert_eq!(values::<half::bf16>(&rounded), want);
    });
}

// ---- TMA ----
#[test]
fn tma_boxes_at_the_edges() {
    let (rows, cols) = (13, 52);
    let matrix: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
    everywhere(|config| {
        for (x, y) in [(0, 0), (32, 8), (-4, -3), (40, 11), (64, 0)] {
            for add in [false, true] {
                let (from, to) = (memory(&matrix), memory(&vec![100f32; rows * cols]));
                let map = |m| {
                    tensor_map(m, 4, &[cols as u64, rows as u64], &[4 * cols as u64], &[32, 8], 0).unwrap()
                };
                let args =
                    [arg(map(from.address())), arg(map(to.address())), arg(x), arg(y), arg(i32::from(add))];
                let blocks = if add { 3 } else { 1 };
                run("tma_shift", geometry(blocks, 32, 1040), &args, config).unwrap();
                let got = values::<f32>(&to);
                for (i, got) in got.iter().enumerate() {
                    let (r, c) = ((i / cols) as i32, (i % cols) as i32);
                    let inside = (y..y + 8).contains(&r) && (x..x + 32).contains(&c);
                    let value = matrix[i] + 1.0;
                    let want = if !inside {
                        100.0
                    } else if add {
                        100.0 + 3.0 * value
                    } else {
                        value
                    };
                    assert_eq!(*got, want, "({r}, {c}) at ({x}, {y}) {config:?}");
                }
            }
        }
    });
}

// ---- clusters ----
fn cluster(blocks: u32, per: u32, threads: u32, shared_bytes: u32) -> Geometry {
    Geometry { grid: [blocks, 1, 1], block: [threads, 1, 1], cluster: [per, 1, 1], shared_bytes }
}

#[test]
fn clusters_share_memory() {
    let x: Vec<f32> = (0..384).map(|i| i as f32).collect();
    let go = |fault: i32, config: &Config| {
        let (out, input) = (fresh::<f32>(384), memory(&x));
        run("cluster_ring", cluster(6, 3, 64, 0), &[at(&out), at(&input), arg(3i32), arg(fault)], config)
            .map(|_| values::<f32>(&out))
    };
    everywhere(|config| {
        let want = |i: usize| x[(i / 192 * 3 + (i / 64 % 3 + 1) % 3) * 64 + ((i % 64) ^ 1)];
        assert_eq!(go(0, config).unwrap(), (0..384).map(want).collect::<Vec<_>>());
    });
    if skipped("reports of faults") {
        return;
    }
    for config in twelve() {
        let report = |fault: i32, words: &[&str]| {
            assert_report(&config, go(fault, &config).map(|_| Stats::default()), words)
        };
        report(1, &["shared memory at offset"]);
        report(2, &["shared memory"]);
        report(4, &["mapa at features.cu:", "rank 9 of a cluster of 3 blocks"]);
    }
    // A block that leaves while another may still read it: seen where the other comes late.
    let ended = twelve().iter().filter_map(|config| go(3, config).err()).collect::<Vec<_>>();
    assert!(ended.iter().any(|e| e.contains("of the cluster, which has ended")), "{ended:?}");
}

#[test]
fn multicast_to_a_cluster() {
    let x: Vec<f32> = (0..24 * 32).map(|i| i as f32).collect();
    let go = |fault: i32, config: &Config| {
        let (from, out) = (memory(&x), fresh::<f32>(4 * 768));
        let map = tensor_map(from.address(), 4, &[32, 24], &[128], &[32, 8], 0).unwrap();
        let args = [arg(map), at(&out), arg(2i32), arg(fault)];
        run("cluster_multicast", cluster(4, 2, 32, 1040), &args, config).map(|_| values::<f32>(&out))
    };
    everywhere(|config| assert_eq!(go(0, config).unwrap(), [&x[..], &x, &x, &x].concat(), "{config:?}"));
    for config in reporting() {
        let report = |fault: i32, words: &[&str]| {
            assert_report(&config, go(fault, &config).map(|_| Stats::default()), words)
        };
        report(1, &["multicast mask ff names blocks that the cluster of 2 does not have"]);
        // The other block may still read what the next copy overwrites.
        report(2, &["shared memory at offset"]);
    }
}

#[test]
fn cooperative_grids() {
    let blocks = 6;
    let n = 64 * blocks as usize;
    let go = |fault: i32, config: &Config| {
        let (out, between, arrived) = (fresh::<f32>(2 * n), fresh::<f32>(2 * n), memory(&[0u32]));
        let config = Config { cooperative: true, ..*config };
        run(
            "grid_barrier",
            geometry(blocks, 64, 0),
            &[at(&out), at(&between), at(&arrived), arg(fault)],
            &config,
        )
        .map(|_| values::<f32>(&out))
    };
    everywhere(|config| {
        let want: Vec<f32> = (0..2 * n).map(|i| (n - 1 - i % n + i / n) as f32).collect();
        assert_eq!(go(0, config).unwrap(), want);
    });
    if skipped("reports of faults, clusters in a cooperative launch") {
        return;
    }
    for config in twelve() {
        let outcome = go(1, &config).map(|_| Stats::default());
        assert_report(&config, outcome, &["race: read of global memory at offset"]);
    }
    let out = fresh::<f32>(384);
    let config = Config { cooperative: true, ..Config::default() };
    let args = [at(&out), at(&out), arg(3i32), arg(0i32)];
    assert!(run("cluster_ring", cluster(6, 3, 64, 0), &args, &config).unwrap_err().contains("not modelled"));
}

// ---- the profile ----
/// Accesses at a stride of floats, one float or four a thread: (stride, vector, wavefronts over the banks, sectors of global loads).
const PATTERNS: [(i32, i32, u64, u64); 11] = [
    (0, 0, 1, 1),
    (1, 0, 1, 4),
    (2, 0, 2, 8),
    (4, 0, 4, 16),
    (8, 0, 8, 32),
    (32, 0, 32, 32),
    (33, 0, 1, 32),
    // 16-byte loads go by quarters of a warp: 4 passes at best, 8 lanes of stride 8 floats take 2 each, of 32 floats 8 each.
    (4, 1, 4, 0),
    (8, 1, 8, 0),
    (32, 1, 32, 0),
    (0, 1, 4, 0),
];

#[test]
fn profile_counts_are_exact() {
    let config = Config { profile: true, ..Config::default() };
    let profile = |stride: i32, vector: i32| {
        let (out, input) = (fresh::<f32>(32), memory(&vec![0f32; 32 * 33]));
        run("patterns", geometry(1, 32, 0), &[at(&out), at(&input), arg(stride), arg(vector)], &config)
            .unwrap()
    };
    // Beside the access under test: 33 requests that fill the array (no conflict), and one store of 32 floats (4 sectors).
    for (stride, vector, wavefronts, sectors) in PATTERNS {
        let (s, what) = (profile(stride, vector), format!("stride {stride}, vector {vector}"));
        if on_gpu() {
            // ncu counts there: scripts/gpu_session.sh lays its numbers beside these.
            println!("profile: {what}: {} wavefronts, {} sectors", 33 + wavefronts, 4 + sectors);
            continue;
        }
        let ideal = if vector == 1 { 4 } else { 1 };
        assert_eq!(
            (s.shared_requests, s.shared_wavefronts, s.shared_ideal),
            (34, 33 + wavefronts, 33 + ideal),
            "{what}"
        );
        assert_eq!(s.bank_conflicts(), wavefronts - ideal);
        let (loads, ideal) = if vector == 1 { (0, 0) } else { (1, if stride == 0 { 1 } else { 4 }) };
        assert_eq!(
            (s.global_requests, s.global_sectors, s.global_ideal),
            (1 + loads, 4 + sectors, 4 + ideal),
            "{what}"
        );
    }
    if skipped("the profile under every schedule") {
        return;
    }
    // The same counts whatever the order, and where warps meet in the middle of a request of others.
    for base in twelve() {
        let config = Config { profile: true, checks: false, ..base };
        let (out, input) = (fresh::<f32>(64), memory(&[0f32; 64]));
        let s = run("uneven_lanes", geometry(1, 64, 0), &[at(&out), at(&input)], &config).unwrap();
        assert_eq!(
            (s.shared_requests, s.shared_wavefronts, s.global_requests, s.global_sectors),
            (4, 4, 4, 16),
            "{config:?}"
        );
    }
}

#[test]
fn runs_repeat_bit_for_bit() {
    let x: Vec<f32> = (0..384).map(|i| i as f32).collect();
    for config in twelve() {
        let once = || {
            let (out, input) = (fresh::<f32>(384), memory(&x));
            run("cluster_ring", cluster(6, 3, 64, 0), &[at(&out), at(&input), arg(3i32), arg(0i32)], &config)
                .unwrap()
        };
        assert_eq!(once(), once(), "{config:?}");
    }
}
