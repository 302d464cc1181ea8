//! Which language a text is in: whatlang's trigrams, a look at the script, and where the user names one a fastText model ([`use_model`]).
use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context, Result};
use whatlang::{Detector, Lang};

use super::{
    fasttext::FastText,
    languages::{self, LANGUAGES, Language, Written, charset, find, without_script, written},
    words,
};

/// What a text seems to be written in.
#[derive(Clone, Debug, PartialEq)]
pub struct Identified {
    /// As [`Language::code`].
    pub code: String,
    /// The detector's confidence is above 0.9: on FLORES sentences it is then right in 999 of 1,000 cases.
    pub reliable: bool,
}

/// The model that the user named, for the whole run of the program.
static MODEL: OnceLock<Model> = OnceLock::new();

/// The file of the model in use, by its name.
pub fn model_name() -> Option<String> {
    MODEL.get().and_then(|m| m.path.file_name()).map(|name| name.to_string_lossy().into_owned())
}

/// The file of the model in use.
pub fn model_file() -> Option<&'static Path> {
    MODEL.get().map(|m| m.path.as_path())
}

/// A fastText model whose labels are mapped to the table of languages.
struct Model {
    path: PathBuf,
    model: FastText,
    /// Of each label: its row in the table, if it has one.
    languages: Vec<Option<&'static Language>>,
}

/// Judges languages by the fastText model in `path` from now on (lid.176, OpenLID, GlotLID or another, `.bin` or `.ftz`); whatlang and the script
/// speak where it knows nothing. Returns what to say of it: how many of its labels are languages of the table, and which are not. A second call in one
/// process changes nothing.
///
/// # Errors
/// A file that is no fastText model for classification, or one whose labels name hardly any language.
pub fn use_model(path: &Path) -> Result<String> {
    let model = FastText::open(path).context("the model that identifies languages (--language-id)")?;
    let languages: Vec<_> = model.labels().iter().map(|l| language_of_label(l)).collect();
    let known = languages.iter().flatten().map(|l| l.code).collect::<BTreeSet<_>>().len();
    anyhow::ensure!(
        known >= 2,
        "{}: its labels ({}) are no languages: a model that identifies languages was expected",
        path.display(),
        model.labels().iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ")
    );
    let labels = model.labels().iter().zip(&languages);
    let others: Vec<&str> =
        labels.filter(|(_, language)| language.is_none()).map(|(label, _)| name_of_label(label)).collect();
    let shown = others.iter().take(8).copied().collect::<Vec<_>>().join(", ");
    let others = match others.len() {
        0 => String::new(),
        n => format!(
            "; {n} of its {} labels are not of the table and count as other languages ({shown}{})",
            languages.len(),
            if n > 8 { ", ..." } else { "" }
        ),
    };
    let said = format!(
        "language identifier {}: {known} of the {} languages of the table{others}",
        path.display(),
        LANGUAGES.len()
    );
    let _ = MODEL.set(Model { path: path.into(), model, languages });
    Ok(said)
}

fn name_of_label(label: &str) -> &str {
    label.strip_prefix("__label__").unwrap_or(label)
}

/// Labels that mean another thing in Wikipedia's scheme (lid.176) than as codes: `als` is Alemannic; its `ku` and `bh` are written in one language, and what
/// `sh` stands for counts as Croatian, which is not held against Serbian or Bosnian.
const WIKIPEDIA: &[(&str, Option<&str>)] =
    &[("als", None), ("ku", Some("kmr_Latn")), ("bh", Some("bho_Deva")), ("sh", Some("hr"))];

/// The language of a label: `__label__en`, `__label__eng_Latn` (OpenLID, GlotLID), `__label__zh`, `__label__zsm_Latn`.
fn language_of_label(label: &str) -> Option<&'static Language> {
    let name = name_of_label(label);
    if let Some((_, own)) = WIKIPEDIA.iter().find(|(short, _)| *short == name) {
        return own.and_then(find);
    }
    // A label without a script of a language with rows in several: most text is in Latin letters.
    written(name).map(|w| w.language).or_else(|| find(&format!("{name}_Latn")))
}

/// The most likely language of `text`; `None` without letters.
pub fn identify(text: &str) -> Option<Identified> {
    let text = plain(text);
    if let Some((language, probability)) = by_model(&text) {
        return Some(Identified { code: language.code.into(), reliable: probability > RELIABLE });
    }
    let (code, reliable) = known(whatlang::detect(&text))?;
    Some(Identified { code: code.to_string(), reliable })
}

/// A model's answer counts above this probability.
const RELIABLE: f32 = 0.9;

fn by_model(text: &str) -> Option<(&'static Language, f32)> {
    let model = MODEL.get()?;
    let (label, probability) = model.model.predict(text)?;
    Some((model.languages[label]?, probability))
}

fn known(info: Option<whatlang::Info>) -> Option<(&'static str, bool)> {
    let info = info?;
    Some((find(info.lang().code())?.code, info.is_reliable()))
}

fn trigrams(language: &Language) -> Option<Lang> {
    match without_script(language.code) {
        "zh" => Some(Lang::Cmn),
        _ => Lang::from_code(language.code3),
    }
}

/// How far texts can be said not to be in a language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// An identifier knows the language.
    Full,
    /// None does: only texts in another script are noticed, and in the source language.
    Script,
    /// Nothing is known of the language.
    None,
}

/// What the identifiers at hand can say of texts in the language called `name`.
pub fn coverage(name: &str) -> Coverage {
    let Some(expected) = written(name) else { return Coverage::None };
    let in_model = || MODEL.get().is_some_and(|m| m.languages.contains(&Some(expected.language)));
    match (expected.script, trigrams(expected.language)) {
        _ if in_model() => Coverage::Full,
        (None, Some(_)) => Coverage::Full,
        (Some(script), _) if stand_in(expected.language.code, script).is_some() => Coverage::Full,
        _ => Coverage::Script,
    }
}

/// What to say, once, before texts in `name` are judged; `None` where an identifier knows the language.
pub fn warning(name: &str) -> Option<String> {
    let called = languages::name(name);
    let what = match coverage(name) {
        Coverage::Full => return None,
        Coverage::Script => {
            "of texts only the script is checked, and that they are not in the source language or English: another language of that script passes"
        }
        Coverage::None => "the language of texts is not checked",
    };
    Some(format!(
        "no identifier at hand knows {called} ({name}): {what}. Name a fastText model that does (lid.176, OpenLID, GlotLID) with --language-id FILE"
    ))
}

/// Fewer letters than this and the script is not judged.
const SCRIPT_LETTERS: usize = 10;
/// A text is in the wrong script if less than this share of its letters is in the right one.
const SCRIPT_SHARE: f64 = 0.25;
/// Letters needed for the test by trigrams or a model.
const TRIGRAM_LETTERS: usize = 20;
/// Languages that identifiers mix up: one is no evidence against another.
const CLOSE: &[&[&str]] = &[
    &["da", "no", "nn", "sv"],
    &["cs", "sk"],
    &["hr", "sr", "bs", "sl"],
    &["id", "ms", "jv", "min_Latn", "bjn_Latn", "sun_Latn", "ban_Latn", "ace_Latn"],
    &["bg", "mk"],
    &["pt", "gl"],
    &["fr", "oci_Latn"],
    &["ca", "es", "gl", "ast_Latn", "oci_Latn"],
    &["zh", "ja", "yue_Hant", "zho_Hant"],
    &["nl", "af", "lim_Latn"],
    &["it", "vec_Latn", "lmo_Latn", "scn_Latn", "fur_Latn", "lij_Latn", "srd_Latn"],
    &["fa", "prs_Arab"],
    &["az", "azb_Arab", "tr", "crh_Latn"],
    &["hi", "awa_Deva", "bho_Deva", "mag_Deva", "mai_Deva", "hne_Deva"],
    &["ar", "acm_Arab", "acq_Arab", "aeb_Arab", "ajp_Arab", "apc_Arab", "ars_Arab", "ary_Arab", "arz_Arab"],
    &["xho_Latn", "zu", "ssw_Latn"],
    &["tsn_Latn", "nso_Latn", "sot_Latn"],
    &["bam_Latn", "dyu_Latn"],
    &["kin_Latn", "run_Latn"],
    &["ak", "twi_Latn"],
    &["bod_Tibt", "dzo_Tibt"],
    &["pl", "szl_Latn"],
    &["lv", "ltg_Latn"],
];

/// Whether two names mean one language, or two that identifiers mix up.
pub fn are_alike(a: &str, b: &str) -> bool {
    languages::same_language(a, b) || is_close(without_script(a), without_script(b))
}

fn is_close(a: &str, b: &str) -> bool {
    CLOSE.iter().any(|group| group.contains(&a) && group.contains(&b))
}

/// Whose trigrams stand for a language in a script in which whatlang does not know it.
fn stand_in(code: &str, script: &str) -> Option<Lang> {
    match (code, script) {
        ("sr", "Latn") => Some(Lang::Hrv),
        ("bs", "Cyrl") => Some(Lang::Srp),
        _ => None,
    }
}

/// The language that `text` seems to be in when that is reliably not `expected`; otherwise `None`, also when the text is too short to tell.
///
/// Two tests: the script (10 letters or more, less than a quarter of them in a script in which `expected` is written), and the identifier (20 letters
/// or more): the user's model if it knows `expected`, else trigrams of `expected` against each of `rivals` (the source of a translation, say) and
/// against the language that looks most likely. Where none knows `expected`: whether the text is surely in one of `rivals`. Code blocks, inline code and addresses are not looked at. Numbers of false alarms and of faults
/// found: `language_check_on_flores` in `tests/data_formats.rs`.
pub fn contradicts(text: &str, expected: &str, rivals: &[&str]) -> Option<&'static str> {
    let expected = written(expected)?;
    let text = plain(text);
    let letters: Vec<char> = text.chars().filter(|c| c.is_alphabetic()).collect();
    if letters.len() < SCRIPT_LETTERS {
        return None;
    }
    let Some(script) = script_in_use(expected, &letters) else {
        return Some(known(whatlang::detect(&text)).map_or("und", |d| d.0));
    };
    if letters.len() < TRIGRAM_LETTERS {
        return None;
    }
    let own = expected.language;
    if let Some(model) = MODEL.get().filter(|m| m.languages.contains(&Some(own))) {
        return against_model(model, &text, own);
    }
    let detected = known(whatlang::detect(&text));
    let Some(lang) = (if script == own.script() { trigrams(own) } else { stand_in(own.code, script) }) else {
        // Of languages that nothing knows, a text is still not expected to be surely in the source language.
        let (found, _) = detected.filter(|(_, reliable)| *reliable)?;
        let left = rivals.iter().any(|r| without_script(r) == found) && !are_alike(own.code, found);
        return (left && speaks(&text, found)).then_some(found);
    };
    let likely = detected.map(|d| d.0);
    for rival in rivals.iter().copied().chain(likely).filter_map(find) {
        let Some(other) =
            trigrams(rival).filter(|o| *o != lang && rival != own && !is_close(own.code, rival.code))
        else {
            continue;
        };
        let found = Detector::with_allowlist(vec![lang, other]).detect(&text);
        if found.is_some_and(|f| f.lang() == other && f.is_reliable()) {
            return Some(rival.code);
        }
    }
    None
}

/// Words of a text that are function words of its language: of English and Spanish sentences (FLORES) half, of texts in other languages at most a tenth.
const FUNCTION_SHARE: f64 = 0.2;

/// Whether the text has the function words of the language with this two-letter code. Letters and sounds alone make many languages look like one that an
/// identifier knows (Kyrgyz like Russian, Somali like Tagalog).
fn speaks(text: &str, code: &str) -> bool {
    let Some(listed) = stop_words::lookup(code) else { return false };
    let listed: HashSet<&str> = listed.iter().copied().filter(|w| w.chars().nth(1).is_some()).collect();
    let words: Vec<String> = words::words(text).iter().map(|w| w.to_lowercase()).collect();
    let found = words.iter().filter(|w| listed.contains(w.as_str())).count();
    found as f64 >= FUNCTION_SHARE * words.len() as f64
}

/// What the model takes the text for, if that is reliably another language.
fn against_model(model: &Model, text: &str, expected: &Language) -> Option<&'static str> {
    let (label, probability) = model.model.predict(text)?;
    let found = model.languages[label];
    let same = found.is_some_and(|l| {
        without_script(l.code) == without_script(expected.code) || is_close(expected.code, l.code)
    });
    (!same && probability > RELIABLE).then(|| found.map_or("und", |l| l.code))
}

/// The script of `expected` that enough letters are in: the one with most of them, of those in which the language is written.
fn script_in_use(expected: Written, letters: &[char]) -> Option<&'static str> {
    let count = |script: &&'static str| {
        let Some(set) = charset::script(script) else { return letters.len() };
        letters.iter().filter(|c| set.contains(**c)).count()
    };
    let scripts = expected.scripts();
    let counted = scripts.iter().map(|s| (count(s), *s)).rev();
    let (most, script) = counted.max_by_key(|(n, _)| *n)?;
    (most as f64 >= SCRIPT_SHARE * letters.len() as f64).then_some(script)
}

/// The text without fenced code, inline code and addresses, which look English in any language.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, outside) in text.split("```").enumerate() {
        if i % 2 == 1 {
            continue;
        }
        let mut parts: Vec<&str> = outside.split('`').collect();
        // An odd number of backticks: the last one opens nothing.
        let unpaired = if parts.len().is_multiple_of(2) { parts.pop() } else { None };
        for prose in parts.into_iter().step_by(2).chain(unpaired) {
            for word in prose.split_inclusive(char::is_whitespace) {
                if !word.contains("://") && !word.starts_with("www.") && !word.contains('@') {
                    out.push_str(word);
                }
            }
            out.push(' ');
        }
    }
    out
}

/// Languages of the table that no identifier at hand knows, by their code.
pub fn not_covered() -> Vec<&'static str> {
    LANGUAGES.iter().map(|l| l.code).filter(|code| coverage(code) != Coverage::Full).collect()
}

#[cfg(test)]
mod tests;
