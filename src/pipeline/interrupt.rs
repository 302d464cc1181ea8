//! Ctrl-C: the first asks the work at hand to write its state and stop.
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow};

/// Set on Ctrl-C; stages end their current chunk, write their state and stop.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the user asked to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// The first Ctrl-C asks the running stage to write its state and stop; the second ends the process at once.
pub fn on_interrupt() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after the current step; once more ends at once");
    })
    .map_err(|e| anyhow!("listen for Ctrl-C: {e}"))
}
