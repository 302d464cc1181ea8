//! `--device cuda:0-3`: starts a process for each GPU of this machine, with torchrun's variables, and passes signals and the exit status on.
use std::{
    net::TcpListener,
    ops::RangeInclusive,
    os::unix::process::CommandExt,
    process::{Child, Command},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::Args;
use crate::{device, error::Error, pipeline::interrupt::interrupted};

const PAUSE: Duration = Duration::from_millis(50);

/// Set for the processes that are started: they end with the one that started them.
pub(super) const LAUNCHED: &str = "SDRRL_LAUNCHED";

/// Runs this program again for each of `devices`, and waits for all.
///
/// # Errors
/// A program that cannot be started. Where a rank fails, rank 0 has said why, and this process ends with its exit status.
pub(super) fn run(args: &Args, devices: RangeInclusive<usize>) -> Result<()> {
    let last = *devices.end();
    let gpus = device::gpus().map_err(|why| Error::no_device(args.placement.device, why))?;
    let few = || format!("--device {}: this machine has {} GPUs", args.placement.device, gpus.len());
    ensure!(last < gpus.len(), Error::no_device(args.placement.device, few()));
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).context("find a free port")?.port();
    let size = devices.count();
    let program = std::env::current_exe().context("find this program")?;
    let mut children: Vec<Child> = vec![];
    for rank in 0..size {
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1)).process_group(0);
        let numbers = [
            ("RANK", rank),
            ("LOCAL_RANK", rank),
            ("WORLD_SIZE", size),
            ("LOCAL_WORLD_SIZE", size),
            ("MASTER_PORT", port.into()),
        ];
        command
            .envs(numbers.map(|(name, n)| (name, n.to_string())))
            .env("MASTER_ADDR", "127.0.0.1")
            .env(LAUNCHED, "1");
        match command.spawn() {
            Ok(child) => children.push(child),
            Err(e) => {
                tell(&children, Signal::KILL);
                return Err(e).with_context(|| format!("start rank {rank}"));
            }
        }
    }
    let code = wait(children);
    if code == 0 {
        return Ok(());
    }
    // Rank 0 has said why.
    std::process::exit(code)
}

/// The exit status of all: rank 0's, or the first that is not 0.
fn wait(mut children: Vec<Child>) -> i32 {
    let mut codes = vec![None; children.len()];
    let mut told = false;
    while codes.iter().any(Option::is_none) {
        for (child, code) in children.iter_mut().zip(&mut codes).filter(|(_, code)| code.is_none()) {
            if let Ok(Some(status)) = child.try_wait() {
                *code = Some(status.code().unwrap_or(1));
            }
        }
        if interrupted() && !std::mem::replace(&mut told, true) {
            tell(&children, Signal::TERM);
        }
        sleep(PAUSE);
    }
    codes.into_iter().flatten().find(|code| *code != 0).unwrap_or(0)
}

fn tell(children: &[Child], signal: Signal) {
    for child in children {
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            // One that has ended is not there any more.
            let _ = kill_process(pid, signal);
        }
    }
}
