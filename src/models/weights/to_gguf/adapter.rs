//! A LoRA adapter as a GGUF file, for llama.cpp's `--lora`: `blk.N.attn_q.weight.lora_a` (R, in) and `.lora_b` (out, R), whose rows stand as those of the model's own matrix do.
//!
//! llama.cpp scales by alpha / R with one alpha for the file and each pair's own R. Where PEFT scales otherwise (rsLoRA, patterns of alphas), B takes the rest.
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{FileType, Outgoing, QUANTIZATION_VERSION, Rows, Written, file, general, kept};
use crate::{
    error::{Error, Kind},
    models::{
        transformer::{
            config::Config,
            gguf_keys::layout,
            lora::{Adapter, Lora},
            tree::Place,
        },
        weights::peft::load_low_rank,
    },
    report::out::note,
    tensor::Tensor,
};

/// Writes the adapter in `dir`, of the model in `base`, to the new file `out`, under the name `name`.
///
/// # Errors
/// An adapter that is more than low-rank updates of the layers' linears, which is all that such a file holds.
pub fn write_adapter(base: &Path, dir: &Path, name: &str, kind: FileType, out: &Path) -> Result<Written> {
    file::refuse_existing(out)?;
    let config = Config::of_model(base)?;
    let lora = load_low_rank(dir, &config.spec()?)?;
    let wrong = |message| Error::unsupported(dir.display(), message);
    let (alpha, tensors) = tensors(&lora, &config, kind)
        .with_context(|| format!("adapter {} as a GGUF file", dir.display()))
        .or_kind(wrong)?;
    let mut m = general(layout(&config)?.architecture, "adapter", name);
    m.text("adapter.type", "lora");
    m.number("adapter.lora.alpha", alpha);
    m.count("general.file_type", kind.number())?;
    m.count("general.quantization_version", QUANTIZATION_VERSION)?;
    let bytes = file::write(out, &m, &tensors, 0, &|_| Ok(()))?;
    Ok(Written::of(&tensors, bytes))
}

/// The file's alpha and its tensors.
fn tensors<'a>(lora: &'a Lora, config: &Config, kind: FileType) -> Result<(f64, Vec<Outgoing<'a>>)> {
    ensure!(
        !lora.config.use_dora,
        "it is DoRA's, whose magnitudes llama.cpp does not read: `sdrrl merge` it, then quantise the merged model"
    );
    // llama.cpp takes an alpha of 0 for none.
    let alpha = if lora.config.alpha == 0.0 { 1.0 } else { lora.config.alpha };
    let (mut out, mut scaled) = (vec![], 0);
    for (l, id, adapter) in lora.adapters() {
        let Adapter { a, b, .. } = adapter;
        let place = Place::Weight(l, id);
        let (order, _) = kept(config, place)?;
        let theirs = alpha as f32 / a.shape()[0] as f32;
        let factor = if adapter.scale == theirs { 1.0 } else { adapter.scale / theirs };
        scaled += (factor != 1.0) as usize;
        for (part, t, factor) in [("lora_a", a, 1.0), ("lora_b", b, factor)] {
            let order = if part == "lora_b" { order } else { Default::default() };
            out.push(Outgoing {
                name: format!("{}.{part}", place.gguf()),
                dims: t.shape().to_vec(),
                kind: kind.of_factor(t.shape()[1])?,
                open: Box::new(move || rows(t).map(|rows| Rows { order, factor, ..rows })),
            });
        }
    }
    if scaled > 0 {
        note!("{scaled} linears have another scale than alpha / rank: the rest is in their B");
    }
    Ok((alpha, out))
}

fn rows(t: &Tensor) -> Result<Rows<'static>> {
    Ok(Rows::of(&t.to_f32_vec()?))
}
