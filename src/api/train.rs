//! Training from conversations, a file, or packed tokens.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::Conversation;
use crate::{
    data::{
        questions,
        record::Example,
        tally::{OnBadRow, Tally},
    },
    device::DeviceChoice,
    error::{Error, Kind, Result},
    pipeline::{
        identity::{Identity, Inputs},
        manifest::{Counts, Manifest},
        placement::Placement,
        rows::ROW_FILES,
        stage::{self, Made, Open, Stage},
        work_dir::{Room, WorkDir},
    },
    recipe::{pack::PackSettings, ranges::check_settings, train::TrainSettings},
    stages::{pack, train as training},
    tensor::DType,
};

/// The training data.
#[derive(Clone, Copy, Debug)]
pub enum TrainData<'a> {
    /// These conversations: every answer in them, or the last ([`PackSettings::train_on`]).
    Conversations(&'a [Conversation]),
    /// A file of rows that `sdrrl pack` reads (JSON Lines, JSON, Parquet; Alpaca, messages, ShareGPT ...), or a folder that `assemble` wrote.
    File(&'a Path),
    /// A folder that `pack` wrote.
    Packed(&'a Path),
}

/// How to train.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Method, adapters, learning rate, epochs ...: the section `train` of a recipe.
    pub train: TrainSettings,
    /// How conversations are tokenised: the section `pack` of a recipe.
    pub pack: PackSettings,
    /// Data type of the frozen weights in memory.
    pub dtype: DType,
    /// The device to train on.
    pub device: DeviceChoice,
    /// Start from this PEFT adapter instead of a new one.
    pub adapter: Option<PathBuf>,
    /// Replace a finished training run with other data or settings; without this, finding one is an error.
    pub replace: bool,
}

impl Default for TrainOptions {
    /// Adapters of rank 8 on a frozen base in F32 on the CPU, three epochs; nothing is replaced.
    fn default() -> TrainOptions {
        TrainOptions {
            train: TrainSettings::default(),
            pack: PackSettings::default(),
            dtype: DType::F32,
            device: DeviceChoice::Cpu,
            adapter: None,
            replace: false,
        }
    }
}

/// The result of a training run.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The folder of the adapter (PEFT's format) or, with other methods, of the model.
    pub folder: PathBuf,
    /// Documents trained on.
    pub documents: usize,
    /// Documents left out, counted by reason; empty for data that was already packed.
    pub dropped: BTreeMap<String, usize>,
    /// Optimizer steps.
    pub steps: u64,
    /// Loss of the last step, nats.
    pub loss: f64,
    /// The best validation loss and its step, if there was validation data: the folder holds the parameters of that step.
    pub best: Option<(f64, u64)>,
}

/// Trains `model` (path or name) in the folder `work`: `work/train` holds the adapter or model and the logs, `work/examples` and `work/pack` the data. Calling
/// it again returns the finished result; after an interruption or a kill it resumes from the last checkpoint and ends with the same bits.
///
/// # Errors
/// [`BadInput`](crate::Error::BadInput) (a row, with its place), [`Setting`](crate::Error::Setting), [`NotFound`](crate::Error::NotFound),
/// [`Unsupported`](crate::Error::Unsupported), [`Exists`](crate::Error::Exists) (there is a result of other data or settings), [`Locked`](crate::Error::Locked),
/// [`Interrupted`](crate::Error::Interrupted), [`OutOfMemory`](crate::Error::OutOfMemory), [`NoDevice`](crate::Error::NoDevice),
/// [`CannotWrite`](crate::Error::CannotWrite).
pub fn train(model: &str, data: TrainData, work: &Path, options: &TrainOptions) -> Result<Trained> {
    check_settings("train", &options.train)?;
    check_settings("pack", &options.pack)?;
    let (work, mut dropped) = (WorkDir::new(work), BTreeMap::new());
    let (examples, packed) = (work.root().join("examples"), work.room(Room::Pack(None)));
    let shards = match data {
        TrainData::Packed(folder) => folder.to_path_buf(),
        TrainData::File(_) | TrainData::Conversations(_) => {
            if let TrainData::Conversations(all) = data {
                stage::run(&mut Examples::of(all, &examples, options.pack.on_bad_row)?)?;
                add(&mut dropped, &examples)?;
            }
            let rows = if let TrainData::File(file) = data { file.to_path_buf() } else { examples };
            let (model, settings) = (model.to_string(), options.pack.clone());
            pack::run(&pack::Args {
                model,
                examples: rows,
                validation: None,
                out: packed.clone(),
                rows: options.train.objective.rows(),
                settings,
            })?;
            add(&mut dropped, &packed)?;
            packed
        }
    };
    let folder = work.room(Room::Train(None));
    training::run(&training::Args {
        model: model.into(),
        shards: Some(shards),
        data: None,
        validation: None,
        adapter: options.adapter.clone(),
        out: folder.clone(),
        placement: Placement { dtype: options.dtype, device: options.device, ..Placement::default() },
        restart: false,
        resume: false,
        quiet: false,
        pack: PackSettings::default(),
        replace: options.replace,
        settings: options.train.clone(),
        parallel: None,
        probe_tasks: None,
        probe_rows: 0,
        probe_template: options.pack.template.clone(),
        probe_system: None,
        probe: None,
    })?;
    let manifest = finished(&folder)?;
    let summary = &manifest.summary;
    let best = (summary["best"]["loss"].as_f64()).zip(summary["best"]["step"].as_u64());
    Ok(Trained {
        folder,
        documents: manifest.counts.map_or(0, |c| c.written),
        dropped,
        steps: summary["steps"].as_u64().unwrap_or_default(),
        loss: summary["train-loss"].as_f64().unwrap_or(f64::NAN),
        best,
    })
}

fn finished(folder: &Path) -> anyhow::Result<Manifest> {
    Manifest::load(folder)?.with_context(|| format!("{} has no manifest", folder.display()))
}

fn add(dropped: &mut BTreeMap<String, usize>, folder: &Path) -> anyhow::Result<()> {
    for (reason, n) in finished(folder)?.counts.unwrap_or_default().dropped {
        *dropped.entry(reason).or_default() += n;
    }
    Ok(())
}

/// Writes conversations as the examples that `pack` reads.
struct Examples<'a> {
    out: &'a Path,
    examples: Vec<Example>,
    read: usize,
    dropped: usize,
}

impl Examples<'_> {
    /// Read as a file of `messages` is.
    fn of<'a>(all: &[Conversation], out: &'a Path, on_bad: OnBadRow) -> anyhow::Result<Examples<'a>> {
        let (mut examples, mut dropped) = (vec![], 0);
        for (i, conversation) in all.iter().enumerate() {
            let place = format!("conversation {i}");
            match example(conversation, &place) {
                Ok(example) => examples.push(Example { id: i.to_string(), row: i.to_string(), ..example }),
                Err(_) if on_bad == OnBadRow::Skip => dropped += 1,
                Err(e) => return Err(e.context(place.clone())).or_kind(|m| Error::bad_input(place, m)),
            }
        }
        Ok(Examples { out, examples, read: all.len(), dropped })
    }
}

fn example(conversation: &Conversation, place: &str) -> anyhow::Result<Example> {
    let mut object = Map::new();
    object.insert("messages".into(), serde_json::to_value(conversation.turns())?);
    let mut tally = Tally::default();
    let source = questions::parse(object, &mut tally, place)?;
    match source.into_example(&mut tally, place)? {
        Some(example) if tally.is_whole() => Ok(example),
        _ => bail!("{tally}"),
    }
}

impl Stage for Examples<'_> {
    const NAME: &'static str = "examples";
    const FILES: &'static [&'static str] = ROW_FILES;

    fn out(&self) -> &Path {
        self.out
    }

    fn identity(&self) -> anyhow::Result<Identity> {
        let text = serde_json::to_string(&self.examples)?;
        Identity::of(&json!({"examples": format!("{:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes()))}))
    }

    fn inputs(&self) -> anyhow::Result<Inputs> {
        Ok(Inputs::new())
    }

    fn quiet(&self) -> bool {
        true
    }

    fn run(&mut self, open: &mut Open) -> anyhow::Result<Made> {
        let written = open.write_rows(&self.examples, 1000)?;
        let counts = Counts { read: self.read, written, ..Counts::default() };
        Ok(Made { summary: Value::Null, ..Made::default() }
            .counting(counts.dropping("not fit to train on", self.dropped)))
    }
}
