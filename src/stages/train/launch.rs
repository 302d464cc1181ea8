//! `--device cuda:0-3`: starts a process for each GPU of this machine, with torchrun's variables, and passes signals and the exit status on.
//!
//! They have this process's arguments, or those of a recipe's training: then the settings come through their standard input.
use std::{
    borrow::Cow,
    io::{Write, read_to_string, stdin},
    net::TcpListener,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::{
    Args,
    data::{self, STEP_DOCUMENTS},
    together,
};
use crate::{
    data::language_id,
    device::DeviceChoice,
    error::Error,
    pipeline::{
        clock,
        interrupt::interrupted,
        placement::Placement,
        plan::{self, Planned},
    },
    recipe::{eval::EvalSettings, train::TrainSettings},
    report::out,
};

const PAUSE: Duration = Duration::from_millis(50);

/// Set for the processes that are started: they end with the one that started them.
pub(super) const LAUNCHED: &str = "SDRRL_LAUNCHED";
/// Its value where a recipe's settings come through standard input.
const RECIPE: &str = "recipe";
/// Its value where the rows of `--data` are packed already.
const PACKED: &str = "packed";

/// What a recipe has and the command line of `train` has not.
#[derive(Serialize, Deserialize)]
struct Given {
    settings: TrainSettings,
    probe: Option<EvalSettings>,
}

/// A recipe's settings and placement of a training where several devices may be named: those of several ranks, or one device for what one process learns.
pub fn for_devices(settings: &TrainSettings, placement: Placement) -> (TrainSettings, Placement) {
    let mut settings = settings.clone();
    let device = match placement.device {
        DeviceChoice::Several(_) if settings.aligning().is_none() => {
            settings.batch_documents.get_or_insert(STEP_DOCUMENTS);
            placement.device
        }
        device => device.first(),
    };
    (settings, Placement { device, ..placement })
}

/// Refuses several devices that cannot train together, before anything is done.
///
/// # Errors
/// NCCL that is missing, or does not go with the devices.
pub fn check_devices(placement: Placement) -> Result<()> {
    match placement.device {
        DeviceChoice::Several(_) => together::usable(placement.device.first()).map(drop),
        _ => Ok(()),
    }
}

/// Runs this program again for each of several devices, and waits for all.
///
/// # Errors
/// A device that is not there; a program that cannot be started. Where a rank fails, rank 0 has said why: a recipe ends with an error, and else this process with the
/// rank's exit status.
pub(super) fn run(args: &Args) -> Result<()> {
    args.placement.device.check_there()?;
    if args.replace {
        return run_of_recipe(args);
    }
    if args.data.is_some() {
        check_devices(args.placement)?;
        super::check_place(args)?;
        data::prepare(args)?;
    }
    let launched = if args.data.is_some() { PACKED } else { "1" };
    let code = wait(start(args, &mut || {
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.args(std::env::args_os().skip(1)).env(LAUNCHED, launched);
        Ok((command, None))
    })?);
    if code == 0 { Ok(()) } else { std::process::exit(code) }
}

fn run_of_recipe(args: &Args) -> Result<()> {
    let plan = out::silently(|| plan::collect(|| super::run_with(args, None)))?;
    if plan.iter().all(|step| step.planned == Planned::Unchanged) {
        return super::run_with(args, None);
    }
    let given = Given { settings: args.settings.clone(), probe: args.probe.clone() };
    let given = serde_json::to_string(&given)?;
    let began = Instant::now();
    let code = wait(start(args, &mut || Ok((command(args)?, Some(given.clone()))))?);
    clock::note(&args.out, began.elapsed().as_secs_f64());
    let device = args.placement.device;
    match code {
        0 => Ok(()),
        130 => bail!(Error::interrupted("training has stopped: run the same command again to resume")),
        69 => {
            bail!(Error::no_device(device, format!("training on {device}: rank 0 has said what is missing")))
        }
        code => bail!("training on {device} has failed (exit status {code}); rank 0 has said why"),
    }
}

/// `sdrrl train` as a recipe has it, but for what is [`Given`].
fn command(args: &Args) -> Result<Command> {
    let at = args.placement;
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.env(LAUNCHED, RECIPE).stdin(Stdio::piped()).args(["train", "--model", &args.model]);
    command.arg("--shards").arg(args.shards.as_ref().context("--shards is missing")?);
    command.arg("--out").arg(&args.out);
    command.args(["--device", &at.device.to_string(), "--dtype", at.dtype.suffix()]);
    command.args(["--base-dtype", if at.keeps_blocks() { "stored" } else { "dtype" }]);
    command.args(["--probe-template", &args.probe_template]);
    command.args(args.probe_system.iter().flat_map(|system| ["--probe-system", system]));
    command.args(args.restart.then_some("--restart"));
    if let Some(file) = language_id::model_file() {
        command.arg("--language-id").arg(file);
    }
    Ok(command)
}

/// Whether this is a rank of a recipe's training.
pub(super) fn is_of_recipe() -> bool {
    std::env::var(LAUNCHED).is_ok_and(|value| value == RECIPE)
}

/// Whether the process that started this rank has packed the rows of `--data`.
pub(super) fn has_packed() -> bool {
    std::env::var(LAUNCHED).is_ok_and(|value| value == PACKED)
}

/// The arguments; of a rank of a recipe's training with those that the command line has not.
///
/// # Errors
/// Settings that do not come.
pub(super) fn given(args: &Args) -> Result<Cow<'_, Args>> {
    if !is_of_recipe() {
        return Ok(Cow::Borrowed(args));
    }
    let text = read_to_string(stdin()).context("read the recipe's settings")?;
    let Given { settings, probe } = serde_json::from_str(&text).context("read the recipe's settings")?;
    Ok(Cow::Owned(Args { settings, probe, replace: true, ..args.clone() }))
}

/// Starts a process for each device, with torchrun's variables, and hands each its text.
fn start(args: &Args, make: &mut dyn FnMut() -> Result<(Command, Option<String>)>) -> Result<Vec<Child>> {
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).context("find a free port")?.port();
    let size = args.placement.device.each().len();
    let mut children: Vec<Child> = vec![];
    for rank in 0..size {
        let numbers = [
            ("RANK", rank),
            ("LOCAL_RANK", rank),
            ("WORLD_SIZE", size),
            ("LOCAL_WORLD_SIZE", size),
            ("MASTER_PORT", port.into()),
        ];
        let started = make().and_then(|(mut command, text)| {
            command.process_group(0).envs(numbers.map(|(name, n)| (name, n.to_string())));
            let mut child = command.env("MASTER_ADDR", "127.0.0.1").spawn()?;
            if let (Some(mut to), Some(text)) = (child.stdin.take(), text) {
                // One that has ended already says so itself.
                let _ = to.write_all(text.as_bytes());
            }
            Ok(child)
        });
        match started {
            Ok(child) => children.push(child),
            Err(e) => {
                tell(&children, Signal::KILL);
                return Err(e).with_context(|| format!("start rank {rank}"));
            }
        }
    }
    Ok(children)
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
