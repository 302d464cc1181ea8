//! Ctrl-C and its kin: the first asks the work at hand to write its state and stop, the second ends the program.
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{data::line_process, report::out::note};

/// Set on Ctrl-C; stages end their current chunk, write their state and stop.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the user asked to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// The first SIGINT, SIGTERM or SIGHUP asks the running stage to write its state and stop; a second SIGINT or SIGHUP ends the process at once. SIGTERM may come
/// again from a scheduler, which kills whoever takes too long, and ends no state that is being written. A signal that
/// was ignored when the program started stays ignored: `nohup` ignores SIGHUP, a shell without job control ignores SIGINT for `&`.
pub fn on_interrupt() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let heard: Vec<i32> =
        [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !ignores(&status, *signal)).collect();
    let mut signals = Signals::new(heard).context("listen for Ctrl-C")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if INTERRUPTED.swap(true, Ordering::Relaxed) {
                    if signal == SIGTERM {
                        continue;
                    }
                    line_process::end_all();
                    std::process::exit(130);
                }
                note!("\nstopping after the current step; press Ctrl-C again to stop at once");
            }
        })
        .context("listen for Ctrl-C")?;
    Ok(())
}

/// Whether the text of /proc/PID/status says that `signal` is ignored.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        let status = "Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert!(ignores(status, SIGHUP) && !ignores(status, SIGINT) && !ignores(status, SIGTERM));
        assert!(!ignores("", SIGHUP));
    }
}
