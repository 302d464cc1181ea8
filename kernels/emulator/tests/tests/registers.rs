//! setmaxnreg: what a block may ask for, and every rule broken once.
use sdrrl_emulator::{Config, Stats};
use sdrrl_emulator_tests::*;

#[test]
fn registers_of_a_block() {
    let go = |fault: &str, config: &Config| {
        let out = fresh::<u32>(384);
        run(&format!("registers_{fault}"), geometry(1, 384, 0), &[at(&out)], config)
            .map(|_| values::<u32>(&out))
    };
    for config in all_configs() {
        assert_eq!(go("NONE", &config).unwrap(), (0..384).collect::<Vec<u32>>());
    }
    let faults: &[(&str, &[&str])] = &[
        // 40 + 240 + 240 of 3 x 168.
        (
            "BEYOND_THE_POOL",
            &["deadlock", "wait in setmaxnreg at registers.cu:", "registers of the block's 64512 are free"],
        ),
        ("ONE_WARP", &["setmaxnreg at registers.cu:", "32 of the 128 threads of a warpgroup ran it"]),
        (
            "FEWER_AT_FIRST",
            &["setmaxnreg at registers.cu:", "inc to 160 registers where the launch gave 168"],
        ),
        ("FEWER_LATER", &["setmaxnreg.inc at registers.cu:", "to 224 registers where 232 are owned"]),
        ("MORE_LATER", &["setmaxnreg.dec at registers.cu:", "to 48 registers where 40 are owned"]),
        (
            "DIFFERENT",
            &["setmaxnreg at registers.cu:", "another warp of the warpgroup runs the one at registers.cu:"],
        ),
    ];
    for config in reporting() {
        for (fault, words) in faults {
            assert_report(&config, go(fault, &config).map(|_| Stats::default()), words);
        }
    }
}
