//! Model cards (README.md) beside what was made: signed, so that one which somebody wrote or changed stays; and the card of a merged model.
use std::{fmt::Write as _, io::ErrorKind, path::Path};

use anyhow::Result;
use xxhash_rust::xxh3::xxh3_64;

use crate::{data::files::write_atomic, pipeline::work_dir::CARD, report::out::note};

const SIGNATURE: &str = "\n<!-- Written by sdrrl; written again by the next run unless it is changed. ";

/// Writes the card into the folder `dir`, unless somebody else's stands there: then `stage` says so.
pub(super) fn write(dir: &Path, text: &str, stage: &str) -> Result<()> {
    let place = dir.join(CARD);
    let ours = match std::fs::read(&place) {
        Ok(old) => is_untouched(&old),
        Err(e) => e.kind() == ErrorKind::NotFound,
    };
    if !ours {
        let place = place.display();
        note!("{stage}: {place} was not written by this program, or was changed since: it stays as it is");
        return Ok(());
    }
    write_atomic(&place, signed(text).as_bytes())
}

/// The text with a note behind it by which a change is seen.
fn signed(text: &str) -> String {
    format!("{text}{SIGNATURE}{:016x} -->\n", xxh3_64(text.as_bytes()))
}

/// Whether a file is a card as [`signed`] made it.
fn is_untouched(file: &[u8]) -> bool {
    let text = String::from_utf8_lossy(file);
    let parts = text.rsplit_once(SIGNATURE);
    parts.is_some_and(|(body, _)| signed(body) == text)
}

/// A merged model.
pub(super) struct Merged<'a> {
    /// Hub name or absolute path of the base.
    pub base: &'a str,
    /// Whether it is a hub name.
    pub on_hub: bool,
    /// The adapter's rank, alpha and kind, in words.
    pub adapter: String,
    /// The type of the weights on disk.
    pub dtype: String,
    /// The adapter's own card, if it has one.
    pub card: Option<String>,
}

impl Merged<'_> {
    /// The card: what was merged, and below it what the adapter's card tells of its training. No clock, no machine.
    pub fn text(&self) -> String {
        let mut out =
            "---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: unknown\n".to_string();
        if self.on_hub {
            let _ = writeln!(out, "base_model: {}\nbase_model_relation: finetune", self.base);
        }
        let (front, body) = self.card.as_deref().map(parts).unwrap_or_default();
        out += &languages(front);
        out += "tags:\n- sdrrl\n---\n";
        let version = env!("CARGO_PKG_VERSION");
        let _ = write!(out, "\n# {} with an adapter merged in\n\nMade by sdrrl {version}.\n\n", self.base);
        let _ = writeln!(out, "| | |\n|---|---|\n| base | `{}` |\n| adapter | {} |", self.base, self.adapter);
        let _ = writeln!(out, "| weights | {}, merged in f32 and cast once |", self.dtype);
        if !body.trim().is_empty() {
            let _ = write!(out, "\nThe card of the adapter:\n\n{}\n", body.trim());
        }
        out
    }
}

/// A card's metadata and its text, without headings of the first order (a page has one) and without the signature.
fn parts(card: &str) -> (&str, String) {
    let card = card.rsplit_once(SIGNATURE).map_or(card, |(text, _)| text);
    let (front, body) = match card.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n")) {
        Some(parts) => parts,
        None => ("", card),
    };
    let demoted = |line: &str| if line.starts_with('#') { format!("#{line}") } else { line.to_string() };
    (front, body.lines().map(demoted).collect::<Vec<_>>().join("\n"))
}

/// The languages of a card's metadata, as they stand there.
fn languages(front: &str) -> String {
    let mut lines = front.lines().skip_while(|line| !line.starts_with("language:"));
    let Some(first) = lines.next() else { return String::new() };
    let items = lines.take_while(|line| line.trim_start().starts_with("- "));
    std::iter::once(first).chain(items).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_that_was_changed_is_somebodys() {
        let card = signed("# A\n\ntext\n");
        assert!(is_untouched(card.as_bytes()));
        for other in ["", "# A\n", &card.replace("text", "texts"), &(card.clone() + "more\n"), &card[1..]] {
            assert!(!is_untouched(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn a_merged_card_tells_of_base_adapter_and_what_its_card_told() {
        let card = signed(
            "---\nlibrary_name: peft\nlanguage:\n- en\n- es\ntags:\n- lora\n---\n\n# Adapter of a/b\n\n## Data\n\n| x |\n",
        );
        let mut merged = Merged {
            base: "org/name",
            on_hub: true,
            adapter: "LoRA of rank 8 with alpha 16".into(),
            dtype: "bf16".into(),
            card: Some(card),
        };
        let text = merged.text();
        for part in [
            "---\nlibrary_name: transformers\n",
            "base_model: org/name\n",
            "language:\n- en\n- es\ntags:\n- sdrrl\n---\n",
            "\n# org/name with an adapter",
            "| weights | bf16",
            "\n## Adapter of a/b\n\n### Data\n",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("peft") && !text.contains("Written by"), "{text}");
        // Of somebody else's card, and none.
        (merged.on_hub, merged.base, merged.card) = (false, "/models/x", Some("# Theirs\n".into()));
        let text = merged.text();
        assert!(
            text.contains("## Theirs") && !text.contains("base_model:") && !text.contains("language"),
            "{text}"
        );
        merged.card = None;
        assert!(!merged.text().contains("The card of the adapter"));
    }
}
