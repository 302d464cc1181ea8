//! What a GPU makes of one planted fault: it may hang or end the context, so that each runs in a process of its own (scripts/calibrate.sh).
use std::{io::Write, thread, time::Duration};

use sdrrl_emulator::{Asynchrony, Schedule};
use sdrrl_emulator_tests::{
    ring::{FAULTS, RING_TOLERANCE, ring, ring_error},
    *,
};

/// A product of this size takes some microseconds.
const HANGS: Duration = Duration::from_secs(5);
/// A race may end well now and then.
const RUNS: usize = 20;

unsafe extern "C" {
    fn _exit(status: i32) -> !;
}

/// Prints `fault NAME: right result | wrong result | hang | error TEXT`, the text on the emulator being the beginning of its report. SDRRL_FAULT is
/// the fault's number, or `list` for all names.
#[test]
#[ignore = "one fault a process: scripts/calibrate.sh"]
fn planted_fault() {
    let choice = std::env::var("SDRRL_FAULT").expect("SDRRL_FAULT: a number, or list");
    if choice == "list" {
        println!("\nfaults: {}", FAULTS.join(" "));
        return;
    }
    let fault = choice.parse().ok().filter(|&n: &usize| n < FAULTS.len());
    let fault = fault.unwrap_or_else(|| panic!("SDRRL_FAULT={choice}: a number below {}", FAULTS.len()));
    let name = FAULTS[fault];
    // Opens the device, which is not what may hang.
    let _opened = memory(&[0u8]);
    if on_gpu() {
        thread::spawn(move || {
            thread::sleep(HANGS);
            println!("\nfault {name}: hang");
            // SAFETY: ends the process without the driver's handlers, which would wait for the kernel. A failed flush loses a line.
            unsafe {
                let _ = std::io::stdout().flush();
                _exit(0)
            }
        });
    }
    println!("\nfault {name}: {}", outcome(fault));
}

fn outcome(fault: usize) -> String {
    let config = checked(Schedule::WarpPriority, Asynchrony::Late, 5, 0);
    let runs = if on_gpu() { RUNS } else { 1 };
    let (mut wrong, mut worst) = (0, 0f64);
    for _ in 0..runs {
        match ring(fault, &config) {
            Err(report) => return format!("error {}", beginning(&report)),
            Ok(got) => {
                let error = ring_error(&got);
                wrong += usize::from(error >= RING_TOLERANCE);
                worst = worst.max(error);
            }
        }
    }
    match wrong {
        0 => "right result".into(),
        _ => format!("wrong result ({wrong} of {runs} runs, off by {worst:.2e})"),
    }
}

/// A report without its kernel, block, thread and schedule, and of the rest what fits a table.
fn beginning(report: &str) -> String {
    let rest = report.split_once(", thread ").and_then(|(_, rest)| rest.split_once(": "));
    let rest = rest.or_else(|| report.split_once(": ")).map_or(report, |(_, rest)| rest);
    let rest = rest.rsplit_once(" (").filter(|_| !on_gpu()).map_or(rest, |(rest, _)| rest);
    let short: String = rest.chars().take(100).collect();
    if short.len() < rest.len() { format!("{short}...") } else { short }
}
