//! Training as one rank of several: what each shows before, and what only rank 0 does.
use std::{
    cell::{Cell, RefCell},
    path::Path,
    rc::Rc,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::{Value, json};

use super::{
    Args, Train, data,
    launch::{LAUNCHED, has_packed, is_of_recipe},
    load,
};
use crate::{
    data::files::host,
    device::{self, DeviceChoice, nccl::Nccl},
    distributed::{
        lobby::{Answer, Hello, Lobby, join},
        ranks::Ranks,
        team::Team,
    },
    error::Error,
    models::{transformer::weights::Transformer, weights::resolve},
    pipeline::{
        interrupt::interrupted,
        manifest::Manifest,
        stage::{self, Ran, Stage, expected},
    },
    recipe::{objective::Objective, train::Reduce},
    report::out::{Mode, set_mode},
    stages::pack::Validation,
    train::shares::Shard,
};

/// Rank 0's place to meet the others.
pub(super) struct First {
    ranks: Ranks,
    lobby: Lobby,
    met: Cell<bool>,
    /// From the meeting until training begins.
    team: RefCell<Option<Team>>,
}

impl First {
    /// How many train together.
    pub fn ranks(&self) -> usize {
        self.ranks.world.size()
    }

    /// Waits for the others and compares what they are about to do with `manifest`.
    ///
    /// # Errors
    /// Ranks that do not come, that cannot train or that would train something else.
    pub fn meet(&self, args: &Args, manifest: &Manifest) -> Result<()> {
        self.met.set(true);
        let nccl = usable(args.placement.device);
        let own = nccl.and_then(|nccl| Ok((hello(&self.ranks, args, manifest, &nccl)?, nccl)));
        // The others have come for nothing.
        let (own, nccl) = own.inspect_err(|_| self.lobby.dismiss(true))?;
        let work = own.work.clone();
        let differs = |theirs: &Value| differences(&work, theirs);
        let met = self.lobby.meet(own, &differs, || nccl.unique_id(), &interrupted)?;
        *self.team.borrow_mut() = Some(Team::begin(&self.ranks, met)?);
        Ok(())
    }

    /// Those that have met.
    pub fn team(&self) -> Option<Team> {
        self.team.take()
    }
}

/// Trains as the rank that this process is.
///
/// # Errors
/// Rows that several ranks cannot read; a device or a library that is missing; ranks that do not belong together; a rank that fails.
pub(super) fn run(args: &Args, ranks: &Ranks) -> Result<()> {
    if std::env::var_os(LAUNCHED).is_some() {
        // The process that started this one may be killed.
        set_parent_process_death_signal(Some(Signal::TERM)).context("watch the starting process")?;
    }
    if ranks.world.rank() > 0 {
        // Rank 0 speaks for all.
        set_mode(Mode::Embedded);
        return follow(args, ranks);
    }
    let first = First {
        ranks: ranks.clone(),
        lobby: Lobby::open(ranks)?,
        met: Cell::new(false),
        team: RefCell::default(),
    };
    let done = own(args, ranks).and_then(|args| super::run_with(&args, Some(&first)));
    if !first.met.get() {
        first.lobby.dismiss(done.is_err());
    }
    match first.team() {
        // They wait for a training that could not begin.
        Some(team) => team.ended(done),
        None => done,
    }
}

/// Any rank but the first.
fn follow(args: &Args, ranks: &Ranks) -> Result<()> {
    let device = args.placement.device;
    let mut packed = None;
    let args = own(args, ranks).and_then(|args| data::of_follower(&args, &mut packed));
    let prepared = args
        .as_ref()
        .map_err(|e| format!("{e:#}"))
        .and_then(|args| prepare(args, ranks).map_err(|e| format!("{e:#}")));
    // What was packed is open.
    drop(packed);
    let hello = match &prepared {
        Ok((_, _, hello)) => hello.clone(),
        Err(why) => Hello { failed: Some(why.clone()), ..stranger(ranks, device) },
    };
    // Without rank 0 each speaks for itself.
    let met = match join(ranks, hello).inspect_err(|_| set_mode(Mode::Work))? {
        Answer::Go(met) => met,
        Answer::Nothing => return Ok(()),
        // Rank 0 has said why.
        Answer::End => std::process::exit(1),
    };
    let (mut train, manifest, _) = prepared.map_err(anyhow::Error::msg)?;
    let team = Rc::new(Team::begin(ranks, met)?);
    let done = train.work(&manifest, None, &team);
    team.ended(done).map(drop)
}

/// What this rank would train.
fn prepare<'a>(args: &'a Args, ranks: &Ranks) -> Result<(Train<'a>, Manifest, Hello)> {
    load::check_placement(args)?;
    let mut train = Train { ranks: ranks.world.size(), ..Train::new(args, resolve(&args.model)?, None)? };
    if args.data.is_some() {
        train.opened = Some(data::Shards::open(&train.shards, &args.settings)?);
    }
    let manifest = expected(&train, train.inputs()?)?;
    let nccl = usable(args.placement.device)?;
    let hello = hello(ranks, args, &manifest, &nccl)?;
    Ok((train, manifest, hello))
}

/// The arguments with this rank's own device.
///
/// # Errors
/// What one process reads, or trains, alone.
fn own(args: &Args, ranks: &Ranks) -> Result<Args> {
    let mut args = args.clone();
    let size = ranks.world.size();
    let setting = |name: &str, ok: bool, message: &str| -> Result<()> {
        ensure!(
            ok,
            Error::setting(name, format!("{message} (this is rank {} of {size})", ranks.world.rank()))
        );
        Ok(())
    };
    // The recipe's next stages look for what one process would have made; `sdrrl run` starts the ranks of several devices itself.
    let fixed = "several ranks train a recipe with train.reduce = \"fixed\": the result is the same for any number of them";
    let alike = is_of_recipe() || args.settings.reduce == Reduce::Fixed;
    setting("train.reduce", !args.replace || alike, fixed)?;
    let data = "standard input has one reader, and each rank reads the rows: name a file that all of them reach, or use --shards";
    let is_read = |path: Option<&Path>| path == Some(Path::new("-"));
    let held_out = if let Some(Validation::File(file)) = &args.validation { Some(&**file) } else { None };
    let reads = (is_read(args.data.as_deref()) || is_read(held_out)) && !has_packed();
    setting("data", !reads, data)?;
    let sft = args.settings.shard != Shard::Weights || args.settings.objective == Objective::Sft;
    setting("train.shard", sft, "shard weights is for objective sft: leave one of the two out")?;
    let probe = "tasks at evaluations are generated by rank 0, which has a part of the weights with shard weights: leave one of the two out";
    let whole = args.settings.shard != Shard::Weights || args.probe_tasks.is_none() && args.probe.is_none();
    setting("train.shard", whole, probe)?;
    let stored = "shard weights parts weights in f32 or bf16, not the blocks of a .gguf file: leave base-dtype stored out";
    let dense = args.settings.shard != Shard::Weights || !args.placement.keeps_blocks();
    setting("train.shard", dense, stored)?;
    let aligned = "parallel sentences are aligned by one process: several ranks learn without alignment";
    setting("train.alignment-weight", args.settings.aligning().is_none(), aligned)?;
    args.settings.batch_documents.get_or_insert(super::data::STEP_DOCUMENTS);
    args.placement.device = match args.placement.device {
        DeviceChoice::Cuda(0) => DeviceChoice::Cuda(ordinal(ranks.local)?),
        DeviceChoice::Several(_) => {
            let own = args.placement.device.each().get(ranks.local).map(|(_, device)| *device);
            let few = "--device names fewer GPUs than ranks run on this machine";
            setting("device", own.is_some(), few)?;
            own.unwrap_or_default()
        }
        other => other,
    };
    Ok(args)
}

/// The GPU of a rank where none is named: by its number on the machine, unless it sees one alone.
fn ordinal(local: usize) -> Result<usize> {
    let there = device::gpus().map_or(1, |gpus| gpus.len());
    let message =
        || format!("this is local rank {local}, but there are {there} GPUs here: start one process a GPU");
    ensure!(there == 1 || local < there, Error::no_device(format!("cuda:{local}"), message()));
    Ok(if there == 1 { 0 } else { local })
}

/// NCCL, if it goes with the device.
pub(super) fn usable(device: DeviceChoice) -> Result<Arc<Nccl>> {
    let cpu = "several ranks train on GPUs, over NCCL: use --device cuda, or start one process";
    ensure!(device != DeviceChoice::Cpu, Error::setting("device", cpu));
    let nccl = Nccl::open()?;
    let rehearsed = match device {
        DeviceChoice::Cuda(at) => {
            device::gpus().is_ok_and(|g| g.get(at).is_some_and(|g| g.name.starts_with("rehearsal")))
        }
        _ => true,
    };
    ensure!(
        nccl.is_rehearsal() == rehearsed,
        "NCCL and --device {device} do not go together: an emulated GPU takes the libnccl.so.2 of scripts/rehearsal_nccl.sh, and a GPU takes NVIDIA's (SDRRL_NCCL names it)"
    );
    Ok(nccl)
}

fn stranger(ranks: &Ranks, device: DeviceChoice) -> Hello {
    let world = ranks.world;
    let device = [device.to_string(), format!("of process {}", std::process::id())];
    Hello { rank: world.rank(), size: world.size(), host: host(), device, work: Value::Null, failed: None }
}

/// What this rank shows.
fn hello(ranks: &Ranks, args: &Args, manifest: &Manifest, nccl: &Nccl) -> Result<Hello> {
    let (device, shard) = (args.placement.device, args.settings.shard);
    let work = json!({"manifest": manifest, "nccl": nccl.version()?, "shard": shard});
    let mut hello = Hello { work, ..stranger(ranks, device) };
    if let DeviceChoice::Cuda(at) = device {
        let gpus = device::gpus().map_err(anyhow::Error::msg)?;
        let gpu = gpus.get(at).with_context(|| format!("there is no CUDA device {at}"))?;
        hello.device = [gpu.name.clone(), gpu.uuid.clone()];
    }
    Ok(hello)
}

/// In what another rank's work differs from rank 0's.
fn differences(own: &Value, theirs: &Value) -> Vec<String> {
    let manifest = |work: &Value| serde_json::from_value::<Manifest>(work["manifest"].clone());
    let (Ok(ours), Ok(other)) = (manifest(own), manifest(theirs)) else {
        return vec!["what it shows: it is of another version".into()];
    };
    let mut all = other.differences(&ours);
    for (key, what) in [("nccl", "the version of NCCL"), ("shard", "shard")] {
        if own[key] != theirs[key] {
            all.push(format!("{what}: {} -> {}", own[key], theirs[key]));
        }
    }
    all
}

/// The model on this rank's device, whole or its part of it, and the communicator of a team of several there.
pub(super) fn place(args: &Args, model: Transformer, team: &Rc<Team>) -> Result<Transformer> {
    let device = args.placement.device;
    let several = team.world().size() > 1;
    if several && args.settings.shard == Shard::Weights {
        let device = device.open()?;
        team.connect(&device, &Nccl::open()?)?;
        return model.in_parts(&device, team);
    }
    let model = model.place(device)?;
    if several {
        team.connect(&model.device(), &Nccl::open()?)?;
    }
    Ok(model)
}

/// Runs a stage of rank 0 whose work all ranks share, between [`connect`] and the first step. Where it has work to do ([`begins`]), the others do theirs by `help`.
pub(super) fn stage<S: Stage>(
    team: &Team,
    stage: &mut S,
    help: impl FnOnce(&mut S) -> Result<()>,
) -> Result<()> {
    if !team.is_first() {
        return if team.any(false)? { help(stage) } else { Ok(()) };
    }
    // Until it has looked at what is there, however long that takes, the others wait.
    if team.alone(|| stage::run(stage))? == Ran::Unchanged {
        team.any(false)?;
    }
    Ok(())
}

/// Tells the others that rank 0's stage has work for them.
pub(super) fn begins(team: &Team) -> Result<()> {
    team.any(true).map(drop)
}
