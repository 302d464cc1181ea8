//! The texts of a row on their way to a translation and back.
use anyhow::Result;
use rayon::prelude::*;

use super::TranslatedBy;
use crate::{
    data::{
        alarms::translation_alarms,
        record::{Row, Translation},
    },
    mt::{
        file::FileTranslator,
        segment::{TranslatedText, put_together},
    },
};

pub(super) fn from_file(file: &FileTranslator, row: &Row) -> Result<Translation> {
    let t = file.get(&row.id)?.clone();
    Ok(Translation {
        instruction: t.instruction,
        input: t.input,
        answer: t.answer,
        output: t.output,
        engine: file.name().into(),
        ..Default::default()
    })
}

/// The sides of each row, put together again.
pub(super) fn from_sentences(
    rows: &[Row],
    translated: &[String],
    scores: &[f64],
    engine: &str,
    source: &str,
) -> Result<Vec<Translation>> {
    let texts: Vec<&str> = rows.iter().flat_map(sides).map(|(_, text)| text).collect();
    let out = put_together(&texts, source, engine, translated, scores)?;
    let one = |side: &[TranslatedText]| Translation {
        instruction: side[0].text.clone(),
        input: side[1].text.clone(),
        answer: side[2].text.clone(),
        output: side[3].text.clone(),
        engine: engine.into(),
        scores: ["instruction", "input", "answer", "output"]
            .iter()
            .zip(side)
            .filter(|(_, text)| !text.scores.is_empty())
            .map(|(name, text)| (name.to_string(), text.scores.clone()))
            .collect(),
        ..Default::default()
    };
    Ok(out.chunks_exact(4).map(one).collect())
}

/// The rows with their translations into all target languages.
pub(super) fn with_translations(
    mut rows: Vec<Row>,
    made: Vec<TranslatedBy>,
    source: &str,
    targets: &[String],
) -> Result<Vec<Row>> {
    for (target, made) in targets.iter().zip(made) {
        insert(&mut rows, made, source, target)?;
    }
    Ok(rows)
}

/// Gives each row its translation, with the alarms that it raises.
fn insert(rows: &mut [Row], made: TranslatedBy, source: &str, target: &str) -> Result<()> {
    let translations = match made {
        TranslatedBy::Rows(translations) => translations,
        TranslatedBy::Sentences { translated, scores, engine } => {
            from_sentences(rows, &translated, &scores, &engine, source)?
        }
    };
    let looked_at = |(row, mut t): (&Row, Translation)| {
        for ((side, text), other) in sides(row).iter().zip([&t.instruction, &t.input, &t.answer, &t.output]) {
            let alarms = translation_alarms(text, other, source, target);
            if !alarms.is_empty() {
                t.alarms.insert(side.to_string(), alarms);
            }
        }
        t
    };
    let translations: Vec<Translation> = rows.par_iter().zip(translations).map(looked_at).collect();
    for (row, t) in rows.iter_mut().zip(translations) {
        row.translations.insert(target.to_string(), t);
    }
    Ok(())
}

/// The sides of a row that are translated and scored, by name.
pub fn sides(row: &Row) -> [(&'static str, &str); 4] {
    [
        ("instruction", &row.instruction),
        ("input", &row.input),
        ("answer", row.answer.as_ref().map_or("", |a| &a.text)),
        ("output", &row.output),
    ]
}

/// The translated sides, in the same order.
pub fn translated_sides(t: &Translation) -> [&str; 4] {
    [&t.instruction, &t.input, &t.answer, &t.output]
}
