//! What a training leaves behind: the adapter or the model, its tokenizer and chat template, and a card.
use std::path::Path;

use anyhow::Result;

use super::{
    Args,
    card::{self, Card},
};
use crate::pipeline::{manifest::Manifest, work_dir::CARD};
use crate::{
    data::{files::write_atomic, template::ChatTemplate, tokenizer::Tokenizer},
    device::Device,
    models::{
        transformer::{train_step::TrainStep, weights::Transformer},
        weights::{export::copy_tokenizer, hub, stored::Stored},
    },
    report::out::note,
    train::trainer::TrainOutcome,
};

const TEMPLATE: &str = "chat_template.jinja";

/// Writes everything into `--out`; `path` is where the base was found, `lr` the peak learning rate.
pub(super) fn export(
    args: &Args,
    model: &Transformer,
    step: &TrainStep,
    path: &Path,
    (lr, outcome): (f64, &TrainOutcome),
) -> Result<()> {
    let (base, revision) = hub::reference(&args.model)?;
    match step.adapter() {
        Some(lora) => lora.to_device(&Device::Cpu)?.save(&args.out, &base, revision.as_deref())?,
        None => {
            let model = model.to_device(&Device::Cpu)?;
            model.save_pretrained(&args.out, Stored::F32, path.is_dir().then_some(path))?
        }
    }
    if path.is_dir() {
        copy_tokenizer(path, &args.out)?;
    } else {
        Tokenizer::load(path)?.save(&args.out)?;
    }
    let packed = Manifest::load(&args.shards).ok().flatten().filter(|m| m.stage == "pack");
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
    let place = args.out.join(CARD);
    let ours = match std::fs::read(&place) {
        Ok(old) => card::is_untouched(&old),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    };
    if !ours {
        note!(
            "train: {} was not written by this program, or was changed since: it stays as it is",
            place.display()
        );
        return Ok(());
    }
    write_atomic(&place, card::signed(&card.text()).as_bytes())
}

fn jinja(template: &str, model: &Path) -> Result<String> {
    let tokenizer = Tokenizer::load(model)?;
    ChatTemplate::load(template, &tokenizer)?.to_jinja(&tokenizer)
}
