//! What a training leaves behind: the adapter or the model, its tokenizer and chat template, and a card.
use std::path::Path;

use anyhow::Result;

use super::{Args, card::Card};
use crate::pipeline::manifest::Manifest;
use crate::{
    data::{files::write_atomic, template::ChatTemplate, tokenizer::Tokenizer},
    device::Device,
    models::{
        transformer::{train_step::TrainStep, weights::Transformer},
        weights::{WeightSource, export::copy_tokenizer, hub, stored::Stored},
    },
    recipe::train::Method,
    report::out::note,
    stages::model_card,
    train::trainer::TrainOutcome,
};

const TEMPLATE: &str = "chat_template.jinja";

/// Writes everything into `--out`; `path` is where the base was found, `lr` the peak learning rate.
pub(super) fn export(
    args: &Args,
    shards: &Path,
    model: &Transformer,
    step: &TrainStep,
    path: &Path,
    (lr, outcome): (f64, &TrainOutcome),
) -> Result<()> {
    let (base, revision) = hub::reference(&args.model)?;
    match step.adapter() {
        Some(lora) => {
            lora.to_device(&model.spec, &Device::Cpu)?.save(&args.out, &base, revision.as_deref())?
        }
        None => {
            let model = model.to_device(&Device::Cpu)?;
            let stored = stored_as(args, &model, path)?;
            model.save_pretrained(&args.out, stored, path.is_dir().then_some(path))?
        }
    }
    if path.is_dir() {
        copy_tokenizer(path, &args.out)?;
    } else {
        Tokenizer::load(path)?.save(&args.out)?;
    }
    let packed = Manifest::load(shards).ok().flatten().filter(|m| m.stage == "pack");
    let template = packed.as_ref().and_then(|m| m.settings["template"].as_str()).unwrap_or("auto");
    if template != "auto" {
        match jinja(template, path) {
            Ok(text) => write_atomic(&args.out.join(TEMPLATE), text.as_bytes())?,
            Err(e) => note!(
                "train: the chat template {template} that the data was packed with is not written beside the result: {e:#}"
            ),
        }
    }
    let card = Card {
        base: &base,
        on_hub: !Path::new(&base).is_absolute(),
        adapter: step.adapter().map(|lora| &lora.config),
        settings: &args.settings,
        data: packed.as_ref().map(|m| &m.summary),
        lr,
        outcome,
    };
    model_card::write(&args.out, &card.text(), "train")
}

/// The type that all weights are written in: as asked, or that of the base.
fn stored_as(args: &Args, model: &Transformer, base: &Path) -> Result<Stored> {
    let s = &args.settings;
    let of_base = || WeightSource::open(base).map(|(_, weights)| weights.stored().unwrap_or(Stored::F32));
    let stored = match s.save_dtype {
        Some(asked) => asked,
        None if s.method == Method::Scratch => Stored::F32,
        None => of_base()?,
    };
    if s.save_dtype.is_none() && stored == Stored::F16 && !model.fits_f16()? {
        note!("train: the base is stored as f16, which cannot hold what was trained: written as f32");
        return Ok(Stored::F32);
    }
    Ok(stored)
}

fn jinja(template: &str, model: &Path) -> Result<String> {
    let tokenizer = Tokenizer::load(model)?;
    ChatTemplate::load(template, &tokenizer)?.to_jinja(&tokenizer)
}
