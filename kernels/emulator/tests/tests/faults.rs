//! Every planted fault is reported, by a message that says where; the same kernel without it is right and silent under every schedule.
use sdrrl_emulator::{Asynchrony, Config, Schedule, Stats};
use sdrrl_emulator_tests::{
    ring::{FAULTS, RING_TOLERANCE, ring, ring_error},
    *,
};

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32 + 0.5).collect()
}

/// A kernel of signature (out, in, fault) with `n` floats in and out.
fn simple(
    kernel: &str,
    n: usize,
    threads: u32,
    shared: u32,
    fault: i32,
    config: &Config,
) -> Result<Vec<f32>, String> {
    let (out, input) = (fresh::<f32>(n), memory(&ramp(n)));
    run(kernel, geometry(1, threads, shared), &[at(&out), at(&input), arg(fault)], config)?;
    Ok(values(&out))
}

/// Fault 0 gives `want` everywhere.
fn sound(kernel: &str, n: usize, threads: u32, shared: u32, want: impl Fn(usize) -> f32) {
    for config in all_configs() {
        let got = simple(kernel, n, threads, shared, 0, &config).unwrap_or_else(|e| panic!("{e}"));
        let want: Vec<f32> = (0..n).map(&want).collect();
        assert_eq!(got, want, "{kernel} {config:?}");
    }
}

/// A fault is reported under every schedule and asynchrony.
#[track_caller]
fn reported(kernel: &str, n: usize, threads: u32, shared: u32, fault: i32, words: &[&str]) {
    for config in reporting() {
        let outcome = simple(kernel, n, threads, shared, fault, &config).map(|_| Stats::default());
        assert_report(&config, outcome, words);
    }
}

#[test]
fn shared_memory() {
    sound("shared_exchange", 128, 128, 0, |i| (i + (i ^ 96)) as f32 + 1.0);
    // Written, then read by other warps without a barrier.
    reported(
        "shared_exchange",
        128,
        128,
        0,
        1,
        &["shared_exchange, block (0,0,0), thread", "shared memory at offset"],
    );
    // Read by other warps, then written: the detector names both threads.
    reported(
        "shared_exchange",
        128,
        128,
        0,
        2,
        &["race: ", "of shared memory at offset", "after an unordered", "by thread"],
    );
    reported("shared_exchange", 128, 128, 0, 3, &["read of uninitialised shared memory at offset 20"]);
    reported(
        "shared_exchange",
        128,
        128,
        0,
        4,
        &["thread 127", "out of bounds: offset 512 of 512 bytes of static array 1"],
    );
    // The bytes behind a static array, which belong to no array though they are shared memory.
    reported(
        "shared_exchange",
        128,
        128,
        0,
        5,
        &["thread 0", "out of bounds: offset 128 of 128 bytes of static array 2"],
    );
    sound("dynamic_exchange", 64, 64, 256, |i| (i ^ 33) as f32 + 0.5);
    reported(
        "dynamic_exchange",
        64,
        64,
        256,
        1,
        &["thread 63", "out of bounds: offset 256 of 256 bytes of dynamic shared memory"],
    );
}

#[test]
fn global_memory() {
    sound("global_double", 128, 128, 0, |i| 2.0 * (i as f32 + 0.5));
    reported(
        "global_double",
        128,
        128,
        0,
        1,
        &["thread 127", "load of 4 bytes at offset 512 of a buffer of 512 bytes"],
    );
    reported(
        "global_double",
        128,
        128,
        0,
        2,
        &["4-byte load from 0x", "which is neither shared memory nor in any buffer"],
    );
    reported(
        "global_double",
        128,
        128,
        0,
        3,
        &["thread 7", "uninitialised global memory at offset 28 of a buffer of 512"],
    );
    reported("global_double", 128, 128, 0, 4, &["thread", "16-byte load at"]);
    reported(
        "global_double",
        128,
        128,
        0,
        5,
        &["thread 0", "store of 4 bytes at offset -4 of a buffer of 512 bytes"],
    );
    if on_gpu() {
        return;
    }
    // Bounds and alignment need no checks switched on.
    for (fault, words) in [(1, "offset 512 of a buffer"), (4, "misaligned"), (5, "offset -4")] {
        let outcome = simple("global_double", 128, 128, 0, fault, &Config::default());
        assert_report(&Config::default(), outcome.map(|_| Stats::default()), &[words]);
    }
}

#[test]
fn races_across_blocks() {
    let blocks = 5;
    let run_with = |fault: i32, config: &Config| {
        let (out, input, count) = (fresh::<f32>(160), memory(&ramp(160)), memory(&[0i32]));
        let args = [at(&out), at(&input), at(&count), arg(fault)];
        run("across_blocks", geometry(blocks, 32, 0), &args, config).map(|_| values::<f32>(&out))
    };
    for config in all_configs() {
        let got = run_with(0, &config).unwrap();
        let sum = |i: usize| (0..5).map(|k| (k * 32 + (i ^ 1)) as f32 + 0.5).sum::<f32>();
        let last = (0..5).find(|&b| got[b * 32] != (b * 32) as f32 + 0.5).unwrap();
        assert_eq!(last, 0, "the last block writes the first rows");
        assert_eq!(got[..32], (0..32).map(sum).collect::<Vec<_>>());
    }
    for config in reporting() {
        let report = |fault| run_with(fault, &config).map(|_| Stats::default());
        assert_report(&config, report(1), &["race: write of global memory", "by a thread of another block"]);
        // No __threadfence: the flag says nothing of the data.
        assert_report(&config, report(2), &["race: read of global memory", "by a thread of another block"]);
        // No barrier before the flag: it speaks for one thread.
        assert_report(&config, report(3), &["race: read of global memory", "by a thread of another block"]);
    }
    for config in twelve() {
        let count = memory(&[5i32]);
        let outcome = run("counted", geometry(1, 64, 0), &[at(&count), arg(0)], &config);
        assert_eq!((outcome.is_ok(), values::<i32>(&count)[0]), (true, 69));
        if on_gpu() {
            continue;
        }
        let outcome = run("counted", geometry(1, 64, 0), &[at(&count), arg(1)], &config);
        assert_report(&config, outcome, &["race: write of global memory at offset 0", "by thread"]);
    }
}

#[test]
fn collectives() {
    let go = |fault: i32, config: &Config| {
        let (out, input) = (fresh::<f32>(256), memory(&ramp(256)));
        run("collectives", geometry(1, 256, 0), &[at(&out), at(&input), arg(fault)], config)
            .map(|_| values::<f32>(&out))
    };
    for config in all_configs() {
        let want: Vec<f32> = (0..256).map(|i| (i % 128 + ((i % 128) ^ 1)) as f32 + 1.0).collect();
        assert_eq!(go(0, &config).unwrap(), want);
    }
    for config in reporting() {
        let report = |fault: i32, words: &[&str]| {
            eprintln!("fault {fault}");
            assert_report(&config, go(fault, &config).map(|_| Stats::default()), words)
        };
        report(
            1,
            &[
                "deadlock: 231 threads finished; ",
                "(first: thread 231) wait in __shfl_xor_sync at faults.cu:",
            ],
        );
        report(2, &["meets other lanes of its warp in a different collective", "line "]);
        report(3, &["mask 0000ffff"]);
        report(4, &["the calling lane", "is not in mask 0000ffff"]);
        report(
            5,
            &["deadlock: 128 threads finished; 128 (first: thread 0) wait in __syncthreads at faults.cu:"],
        );
        report(6, &["threads of one block meet in different __syncthreads"]);
        report(7, &["barrier 1: line", "expects", "threads, line"]);
        report(
            8,
            &["deadlock: 160 threads finished; 96 (first: thread 0) wait in named barrier at faults.cu:"],
        );
    }
    sound("named_handover", 64, 64, 0, |i| (i ^ 1) as f32 + 0.5);
    reported("named_handover", 64, 64, 0, 1, &["shared memory at offset"]);
    reported("named_handover", 64, 64, 0, 2, &["shared memory at offset"]);
    sound("warp_handover", 32, 32, 0, |i| (i ^ 7) as f32 + 0.5);
    reported(
        "warp_handover",
        32,
        32,
        0,
        1,
        &["race: read of shared memory at offset", "unordered write by thread"],
    );
}

#[test]
fn cp_async_and_rows_of_matrices() {
    let steps = 7;
    let go = |fault: i32, config: &Config| {
        let (out, input) = (fresh::<f32>(512), memory(&ramp(512 * (steps + 2))));
        run("copy_ring", geometry(1, 128, 0), &[at(&out), at(&input), arg(steps as i32), arg(fault)], config)
            .map(|_| values::<f32>(&out))
    };
    for config in all_configs() {
        let one = |i: usize| (0..steps).map(|t| (t * 512 + (i ^ 256)) as f32 + 0.5).sum::<f32>();
        assert_eq!(go(0, &config).unwrap(), (0..512).map(one).collect::<Vec<_>>());
    }
    for config in reporting() {
        let report = |fault: i32, words: &[&str]| {
            eprintln!("fault {fault}");
            assert_report(&config, go(fault, &config).map(|_| Stats::default()), words)
        };
        report(1, &["read of shared memory at offset", "while an asynchronous copy is writing it"]);
        report(2, &["shared "]);
        report(3, &["cp.async at faults.cu:", "misaligned address"]);
        report(4, &["the thread ended with a cp.async not waited for"]);
    }
    let rows: Vec<u32> = (0..128).collect();
    for config in twelve() {
        let go = |fault: i32| {
            let (out, input) = (fresh::<u32>(128), memory(&rows));
            run("matrix_rows", geometry(1, 32, 0), &[at(&out), at(&input), arg(fault)], &config)
                .map(|_| values::<u32>(&out))
        };
        let want: Vec<u32> = (0..128).map(|i| i % 4 * 32 + i / 16 * 4 + i / 4 % 4).collect();
        assert_eq!(go(0).unwrap(), want);
        if on_gpu() {
            continue;
        }
        assert_report(&config, go(1).map(|_| Stats::default()), &["ldmatrix at", "not 16-byte aligned"]);
        assert_report(&config, go(2).map(|_| Stats::default()), &["ldmatrix at", "not in shared memory"]);
    }
}

#[test]
fn runaway_threads() {
    if skipped("threads without end or with too large a stack") {
        return;
    }
    let config = Config::default();
    let out = fresh::<f32>(32);
    run("deep_stack", geometry(1, 32, 0), &[at(&out), arg(2)], &config).unwrap();
    let outcome = run("deep_stack", geometry(1, 32, 0), &[at(&out), arg(100)], &config);
    assert_report(&config, outcome, &["stack of 64 KiB overflowed"]);
    let flag = memory(&[0u32]);
    for config in [config, checked(Schedule::WarpPriority, Asynchrony::Late, 1, 0)] {
        let outcome = run("never_set", geometry(1, 32, 0), &[at(&flag)], &config);
        assert_report(&config, outcome, &["polled 20 million times"]);
    }
    // The process and the thread's emulator go on.
    sound("warp_handover", 32, 32, 0, |i| (i ^ 7) as f32 + 0.5);
}

// ---- the Hopper ring ----
#[test]
fn hopper_ring_without_fault() {
    for config in all_configs() {
        let error = ring_error(&ring(0, &config).unwrap_or_else(|e| panic!("{e}")));
        assert!(error < RING_TOLERANCE, "{error:e} under {config:?}");
    }
}

#[test]
fn hopper_ring_with_faults() {
    let faults: &[(usize, &[&str])] = &[
        (1, &["deadlock", "wait in mbarrier wait at ring.cu:", "1 arrivals and 0 bytes missing"]),
        (2, &["shared "]),
        (3, &["use of an uninitialised mbarrier at ring.cu:", "shared offset"]),
        (4, &["mbarrier at ring.cu:", "more arrivals than its count 1 in one phase"]),
        (5, &["wgmma", "shared "]),
        (6, &["shared "]),
        (7, &["wgmma at ring.cu:", "without a wgmma.fence"]),
        (9, &["the threads of a warpgroup disagree on the operands of its wgmma number"]),
        (12, &["TMA store (line", "wrote with ordinary stores and no fence.proxy.async since"]),
        (13, &["TMA store (line", "by thread"]),
        (14, &["write of shared memory at offset", "while an asynchronous operation is reading it"]),
        (15, &["shared memory at offset", "while an asynchronous operation is reading it"]),
        (16, &["TMA load at ring.cu:", "not 128-byte aligned"]),
        (17, &["TMA load (line", "not a tensor map"]),
        (18, &["TMA load at ring.cu:", "pass the end of their array"]),
        (20, &["deadlock", "wait in mbarrier wait at ring.cu:", "0 arrivals and 16 bytes missing"]),
        (19, &["TMA store (line", "fence.proxy.async"]),
        (21, &["TMA load at ring.cu:", "initialised without a fence.mbarrier_init since"]),
        (
            22,
            &[
                "wgmma at ring.cu:",
                "a begins 128 bytes into a swizzle atom of 1024 bytes, with base offset 0",
            ],
        ),
    ];
    for config in reporting() {
        for (fault, words) in faults {
            eprintln!("fault {}", FAULTS[*fault]);
            if *fault == 13 {
                // The fence of another thread may or may not have come first.
                let outcome = ring(*fault, &config).map(|_| Stats::default());
                assert_report(&config, outcome, &["TMA store (line"]);
                continue;
            }
            assert_report(&config, ring(*fault, &config).map(|_| Stats::default()), words);
        }
        // Seen in the numbers: accumulators read before the wait, a wrong stride, a wrong swizzle.
        for fault in [8, 10, 11] {
            let error = ring(fault, &config).map(|got| ring_error(&got));
            assert!(error.clone().is_ok_and(|e| e > 0.05), "fault {fault} under {config:?}: {error:?}");
        }
    }
}

#[test]
fn refused_launches_and_maps() {
    if skipped("the words of the emulator's refusals (tests/rules.rs compares what is refused)") {
        return;
    }
    let config = Config::default();
    let (out, input) = (fresh::<f32>(128), memory(&ramp(128)));
    let args = [at(&out), at(&input), arg(0i32)];
    let refused = |kernel, threads, shared, args: &[Vec<u8>]| {
        run(kernel, geometry(1, threads, shared), args, &config).unwrap_err()
    };
    assert!(refused("nothing", 32, 0, &args).contains("there is no kernel of this name"));
    assert!(refused("shared_exchange", 32, 0, &args[..2]).contains("2 arguments given, it takes 3"));
    assert!(
        refused("shared_exchange", 32, 0, &[at(&out), at(&input), arg(0u64)])
            .contains("argument 2 has 8 bytes, it takes 4")
    );
    assert!(refused("shared_exchange", 160, 0, &args).contains("exceeds its launch bound of 128"));
    assert!(refused("shared_exchange", 128, 300_000, &args).contains("232448 is the limit"));
    let map = |base: u64, dims: &[u64], strides: &[u64], tile: &[u32]| {
        tensor_map(base, 2, dims, strides, tile, 3).unwrap_err()
    };
    let base = out.address();
    assert!(map(base + 8, &[64, 8], &[128], &[64, 8]).contains("multiple of 16"));
    assert!(map(base, &[64, 8], &[120], &[64, 8]).contains("strides"));
    assert!(map(base, &[128, 8], &[256], &[128, 8]).contains("wider than the swizzle"));
    assert!(map(base, &[64, 8], &[128], &[64, 300]).contains("1 to 256"));
}

#[test]
fn the_source_of_a_tma_load_is_free_once_the_box_has_landed() {
    let run_with = |fault: i32, config: &Config| {
        let source = memory(&[1f32; 256]);
        let map = tensor_map(source.address(), 4, &[32, 8], &[128], &[32, 8], 0).unwrap();
        run("tma_overwrite", geometry(1, 64, 1040), &[arg(map), at(&source), arg(fault)], config)
    };
    for config in twelve() {
        run_with(0, &config).unwrap();
    }
    for config in reporting() {
        assert_report(&config, run_with(1, &config), &["race", "of global memory at offset 0"]);
    }
}
