//! What a decoder computes as the metadata of a GGUF file: the inverse of `gguf_fields`, under the keys that llama.cpp's converter writes.
//!
//! [`check_read`] reads back what was written: whatever a file has no key for is found there, as a difference.
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    config::Config,
    gguf_fields::{FACTORS, OPTIONAL_SIZES, SIZES, is_read},
    registry::{FAMILIES, GgufFamily},
    rope_table::{RopeSpec, kind_of},
    spec::Spec,
};
use crate::{
    data::gguf::{Gguf, writer::Metadata},
    error::Error,
    report::out::note,
};

/// Architectures whose head llama.cpp takes to be the embedding, whatever the file holds.
const ALWAYS_TIED: [&str; 2] = ["gemma", "gemma2"];

/// Architectures that llama.cpp reads factors of the rotary frequencies for.
const WITH_FACTORS: [&str; 1] = ["llama"];

/// A small tensor of F32 that belongs to the settings: its name and values.
pub type Factors = (&'static str, Vec<f32>);

/// Model types whose files were compared with llama.cpp's own, and their architectures there.
const COMPARED: [(&str, &str); 7] = [
    ("llama", "llama"),
    ("mistral", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3_text", "gemma3"),
];

/// How the files of `config`'s family are laid out.
pub fn layout(config: &Config) -> Result<&'static GgufFamily> {
    let known = COMPARED.iter().find(|(model_type, _)| *model_type == config.model_type);
    let (_, architecture) = known.with_context(|| {
        let which = COMPARED.map(|(model_type, _)| model_type).join(", ");
        format!("models of type {} are not written as GGUF files; {which} are", config.model_type)
    })?;
    let mut layouts = FAMILIES.iter().filter_map(|f| f.gguf.as_ref());
    layouts.find(|g| g.architecture == *architecture).context("no family has this architecture")
}

/// Puts the settings of a model into the metadata, and gives the tensors that go with them.
///
/// # Errors
/// What a GGUF file of this architecture cannot hold, as far as it is known before the file is read back.
pub fn write(config: &Config, spec: &Spec, m: &mut Metadata) -> Result<Vec<Factors>> {
    let architecture = layout(config)?.architecture;
    ensure!(
        spec.tied_head || !ALWAYS_TIED.contains(&architecture),
        "its head is not its embedding, but llama.cpp takes the two for one in every {architecture}"
    );
    let key = |name: &str| format!("{architecture}.{name}");
    let sizes = [
        spec.hidden_size,
        spec.intermediate_size,
        spec.layers.len(),
        spec.heads,
        spec.kv_heads,
        spec.head_size,
    ];
    for ((_, name), size) in SIZES.iter().chain(&OPTIONAL_SIZES).zip(sizes) {
        m.count(&key(name), size)?;
    }
    m.count(&key("attention.value_length"), spec.head_size)?;
    m.count(&key("rope.dimension_count"), spec.head_size)?;
    m.count(&key("vocab_size"), spec.vocab_size)?;
    m.count(&key("context_length"), config.max_position_embeddings)?;
    m.number(&key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps);
    for (name, cap) in
        [("attn_logit_softcapping", spec.attention_softcap), ("final_logit_softcapping", spec.final_softcap)]
    {
        cap.into_iter().for_each(|cap| m.number(&key(name), cap as f64));
    }
    windows(spec, architecture, m)?;
    let (full, rest) = spec.ropes.split_first().context("it has no rotary embedding")?;
    m.number(&key("rope.freq_base"), full.theta);
    for sliding in rest {
        m.number(&key("rope.freq_base_swa"), sliding.theta);
    }
    scaling(full, architecture, m)
}

/// The sliding window, and the period of the layers without one where the architecture has a key for it.
fn windows(spec: &Spec, architecture: &str, m: &mut Metadata) -> Result<()> {
    let Some(window) = spec.layers.iter().find_map(|l| l.window) else { return Ok(()) };
    ensure!(
        spec.layers.iter().all(|l| l.window.is_none_or(|w| w == window)),
        "its layers have sliding windows of several sizes, and a GGUF file has one"
    );
    m.count(&format!("{architecture}.attention.sliding_window"), window)?;
    if architecture == "llama" {
        note!(
            "llama.cpp knows no sliding window in files of this family: beyond {window} tokens its results differ"
        );
    }
    let first_full = spec.layers.iter().position(|l| l.window.is_none());
    if is_read("attention.sliding_window_pattern", architecture) {
        let period = first_full.map_or(spec.layers.len() + 1, |at| at + 1);
        m.count(&format!("{architecture}.attention.sliding_window_pattern"), period)?;
    }
    Ok(())
}

fn scaling(rope: &RopeSpec, architecture: &str, m: &mut Metadata) -> Result<Vec<Factors>> {
    let Some(fields) = &rope.scaling else { return Ok(vec![]) };
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let (kind, number) = (kind_of(fields), |name: &str| fields.get(name).and_then(Value::as_f64));
    let original = number("original_max_position_embeddings").map_or(rope.max_positions, |n| n as usize);
    if ["llama3", "longrope"].contains(&kind) {
        ensure!(
            WITH_FACTORS.contains(&architecture),
            "its rotary embedding has scaling of type {kind}, which llama.cpp does not read for {architecture}"
        );
    }
    let (_, attention) = rope.frequencies(1)?;
    match kind {
        "default" | "none" => Ok(vec![]),
        "linear" => {
            m.text(&key("type"), "linear");
            m.number(&key("factor"), number("factor").context("no number `factor`")?);
            Ok(vec![])
        }
        "yarn" => {
            let factor = number("factor").unwrap_or(rope.max_positions as f64 / original.max(1) as f64);
            m.text(&key("type"), "yarn");
            m.number(&key("factor"), factor);
            m.count(&key("original_context_length"), original)?;
            // What the type itself brings is left out.
            let more = attention / (1.0 + 0.1 * factor.ln());
            if (more - 1.0).abs() > 1e-6 {
                m.number(&key("attn_factor"), more);
            }
            for (field, name) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
                number(field).into_iter().for_each(|x| m.number(&key(name), x));
            }
            Ok(vec![])
        }
        "llama3" => Ok(vec![(FACTORS[0], ratios(rope, 1)?)]),
        "longrope" => {
            m.text(&key("type"), "longrope");
            m.count(&key("original_context_length"), original)?;
            m.number(&key("attn_factor"), attention);
            let beyond = rope.changes_beyond().map_or(1, |n| n + 1);
            Ok(vec![(FACTORS[1], ratios(rope, 1)?), (FACTORS[2], ratios(rope, beyond)?)])
        }
        other => {
            bail!("its rotary embedding has scaling of type {other}, which llama.cpp has no counterpart of")
        }
    }
}

/// By how much the frequencies of sequences of `length` are lower than without scaling.
fn ratios(rope: &RopeSpec, length: usize) -> Result<Vec<f32>> {
    let plain = RopeSpec { scaling: None, ..rope.clone() }.frequencies(length)?.0;
    let scaled = rope.frequencies(length)?.0;
    Ok(plain.iter().zip(scaled).map(|(p, s)| (p / s) as f32).collect())
}

/// Refuses a file that would be read as another model than `spec`, by what differs.
pub fn check_read(gguf: &Gguf, spec: &Spec) -> Result<()> {
    let read = Config::from_gguf(gguf)
        .and_then(|config| config.spec())
        .context("a GGUF file cannot hold this model")?;
    let same_ropes = read.ropes.len() == spec.ropes.len()
        && read.ropes.iter().zip(&spec.ropes).all(|(a, b)| same_angles(a, b).unwrap_or(false));
    let plain = |spec: &Spec| Spec { ropes: vec![], ..spec.clone() };
    let (own, found) = (plain(spec), plain(&read));
    let difference = match (same_ropes, own == found) {
        (true, true) => return Ok(()),
        (false, _) => format!("its rotary embeddings {:?} would be read as {:?}", spec.ropes, read.ropes),
        (true, false) => {
            let (own, found) = (format!("{own:#?}"), format!("{found:#?}"));
            first_difference(&own, &found)
        }
    };
    Err(Error::unsupported("GGUF", format!("a GGUF file cannot hold this model: {difference}")).into())
}

/// The first lines of two listings that differ, behind the line that they are part of.
fn first_difference(own: &str, found: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut pairs = own.lines().zip(found.lines());
    let Some(at) = pairs.position(|(a, b)| a != b) else { return "it would be read with others".into() };
    let line = |text: &str| text.lines().nth(at).unwrap_or("").trim().trim_end_matches(',').to_string();
    let depth = own.lines().nth(at).map_or(0, indent);
    let parent = own.lines().take(at).filter(|l| indent(l) < depth).last().unwrap_or("").trim();
    format!("{parent} {} would be read as {}", line(own), line(found))
}

/// Whether frequencies and factors of attention agree to the precision of F32, before and behind the length where they change.
fn same_angles(a: &RopeSpec, b: &RopeSpec) -> Result<bool> {
    let close = |x: f64, y: f64| (x - y).abs() <= 1e-5 * y.abs();
    let beyond = [a, b].map(|rope| rope.changes_beyond().map_or(1, |n| n + 1));
    for length in [1, beyond[0], beyond[1]] {
        let ((f, x), (g, y)) = (a.frequencies(length)?, b.frequencies(length)?);
        if f.len() != g.len() || !close(x, y) || !f.iter().zip(&g).all(|(&f, &g)| close(f, g)) {
            return Ok(false);
        }
    }
    Ok(true)
}
