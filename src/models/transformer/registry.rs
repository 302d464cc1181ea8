//! The families of decoders that can be read: their names in config.json and in GGUF files, and how their fields become a [`Spec`].
//!
//! A new family is a file in `families/` and two lines in `families/mod.rs`.
use crate::error::Error;
use anyhow::{Result, bail};
use serde_json::{Map, Value};

use super::{config::Config, families, fields, gguf_fields, spec::Spec};
use crate::{data::gguf::Gguf, models::weights::recognise};

/// A family of decoders.
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// The class in transformers, for `architectures`.
    pub class: &'static str,
    /// Examples, for messages.
    pub examples: &'static str,
    /// Values of fields that config.json may leave out, where they differ from [`Config`]'s.
    pub defaults: fn() -> Map<String, Value>,
    /// Fields of its own that it reads (beside those of [`Config`]).
    pub fields: &'static [&'static str],
    /// Its arithmetic.
    pub spec: fn(&Config) -> Result<Spec>,
    /// Its GGUF files, if it has an architecture of its own there.
    pub gguf: Option<GgufFamily>,
}

/// How a family's tensors and settings are kept in GGUF files.
pub struct GgufFamily {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Rows of q and k are interleaved for another layout of rotary embedding.
    pub permuted: bool,
    /// The file's gains are larger by this than Hugging Face's.
    pub gain_offset: f32,
    /// Adds the family's own fields to those that all share (see [`config_of_gguf`]).
    pub config: fn(&Gguf, &mut Map<String, Value>) -> Result<()>,
}

pub use families::FAMILIES;

/// What can be read, for messages.
fn known() -> String {
    let names: Vec<String> =
        FAMILIES.iter().map(|f| format!("`{}` ({})", f.model_type, f.examples)).collect();
    names.join(", ")
}

/// The family of a `model_type`.
pub fn family(model_type: &str) -> Result<&'static Family> {
    match FAMILIES.iter().find(|f| f.model_type == model_type) {
        Some(family) => Ok(family),
        None => {
            let kind = recognise::kind_of_model_type(model_type);
            let message = format!("model_type is {model_type}{kind}; these can be read: {}", known());
            bail!(Error::unsupported(model_type, message))
        }
    }
}

/// The family of a GGUF file's architecture, and how it is kept there.
pub fn gguf_family(gguf: &Gguf) -> Result<(&'static Family, &'static GgufFamily)> {
    let architecture = gguf.text("general.architecture").unwrap_or("absent");
    let with = FAMILIES.iter().filter_map(|f| Some((f, f.gguf.as_ref()?)));
    let names: Vec<&str> = with.clone().map(|(_, g)| g.architecture).collect();
    match with.into_iter().find(|(_, g)| g.architecture == architecture) {
        Some(found) => Ok(found),
        None => {
            let message =
                format!("its architecture is {architecture}; these can be read: {}", names.join(", "));
            bail!(Error::unsupported(architecture, message))
        }
    }
}

/// config.json of a GGUF file.
pub fn config_of_gguf(gguf: &Gguf) -> Result<Value> {
    recognise::refuse_other_ggufs(gguf)?;
    let (family, kept) = gguf_family(gguf)?;
    gguf_fields::check_keys(gguf, kept.architecture)?;
    let mut config = gguf_fields::of_gguf(gguf, kept.architecture)?;
    config.insert("model_type".into(), family.model_type.into());
    config.insert("architectures".into(), serde_json::json!([family.class]));
    (kept.config)(gguf, &mut config)?;
    Ok(Value::Object(config))
}

/// Refuses other heads by what they are, and fields that would change the arithmetic and that nobody here reads.
pub fn check_fields(family: &Family, config: &Map<String, Value>) -> Result<()> {
    recognise::refuse_other_heads(family.class, config)?;
    for (key, value) in config {
        if family.fields.contains(&key.as_str()) || fields::is_harmless(key, value) {
            continue;
        }
        let message = format!(
            "config.json has {key} = {value}, which is not supported for `{}`: the model would compute something else \
             (if the field is a note that changes no arithmetic, remove it)",
            family.model_type
        );
        bail!(Error::unsupported(key, message));
    }
    Ok(())
}
