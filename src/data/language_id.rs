//! Language codes and names, and which language a text is in (whatlang's trigrams plus a look at the script).
use anyhow::{Context, Result, bail};
use whatlang::{Detector, Lang};

pub use super::{
    flores::is_flores,
    languages::{LANGUAGES, Language},
};
use super::{
    flores::{FLORES, canonical},
    languages::ALIASES,
    words::nearest,
};

/// The language called `name`: an ISO 639-1 or 639-3 code, an NLLB code, an English name, or one of these with a region (`pt_BR`, `zh-CN`).
pub fn find(name: &str) -> Option<&'static Language> {
    let name = name.trim().to_lowercase();
    let known = |name: &str| {
        let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, code)| code);
        LANGUAGES.iter().find(|l| {
            l.code == name
                || l.code3 == name
                || l.nllb.eq_ignore_ascii_case(name)
                || l.name.to_lowercase() == name
        })
    };
    let by_part = || {
        let found = known(name.split(['_', '-']).next().unwrap_or_default())?;
        // Another script of a language is not that of the table.
        canonical(&name).is_none_or(|code| code[3..] == found.nllb[3..]).then_some(found)
    };
    known(&name).or_else(by_part)
}

/// How this program writes the language called `name`: [`Language::code`], or for the many more languages of NLLB-200 their code there (`quy_Latn`),
/// by code, ISO 639-3 or English name. A code of that form with a script in use passes too: a model may have been taught more languages.
pub fn code(name: &str) -> Result<String> {
    let name = name.trim();
    let scripts =
        || FLORES.iter().map(|f| f.0).chain(LANGUAGES.iter().map(|l| l.nllb)).map(|code| &code[3..]);
    if let Some(code) = canonical(name) {
        let own = FLORES.iter().any(|f| f.0 == code);
        if let Some(l) = find(&code).filter(|_| !own) {
            return Ok(l.code.into());
        }
        if own || scripts().any(|s| s == &code[3..]) {
            return Ok(code);
        }
    }
    let lower = name.to_lowercase();
    let named =
        |f: &&(&str, &str)| f.1.to_lowercase() == lower || f.0.split('_').next() == Some(lower.as_str());
    let mut more = FLORES.iter().filter(named);
    match (find(name), more.next(), more.next()) {
        (Some(l), _, _) => return Ok(l.code.into()),
        (None, Some(one), None) => return Ok(one.0.into()),
        (None, Some(a), Some(b)) => bail!("language `{name}` is ambiguous: write {} or {}", a.0, b.0),
        (None, None, _) => {}
    }
    let all =
        LANGUAGES.iter().flat_map(|l| [l.nllb, l.name, l.code]).chain(FLORES.iter().flat_map(|f| [f.0, f.1]));
    let part = |f: &&(&str, &str)| lower.len() > 3 && f.1.to_lowercase().contains(&lower);
    let near = FLORES.iter().find(part).map(|f| f.1).or_else(|| nearest(name, all));
    let near = near.map_or(String::new(), |n| format!(" (did you mean `{n}`?)"));
    bail!(
        "language `{name}` is not known{near}; languages go by ISO codes (cs, ces), English names (Czech) and the codes of NLLB-200 (ces_Latn)"
    )
}

/// As [`find`], with an error that lists what is known.
pub fn require(name: &str) -> Result<&'static Language> {
    let known = || LANGUAGES.iter().map(|l| l.code).collect::<Vec<_>>().join(" ");
    find(name).with_context(|| format!("language `{name}` is not known; known are {}", known()))
}

/// The English name of a language; a code that is not in the tables stands for itself.
pub fn name(code: &str) -> &str {
    let more = FLORES.iter().find(|f| f.0 == code).map(|f| f.1);
    more.or_else(|| find(code).map(|l| l.name)).unwrap_or(code)
}

/// Whether two names mean one language (`no` and `nob_Latn` do).
pub fn same_language(a: &str, b: &str) -> bool {
    match (find(a), find(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a.eq_ignore_ascii_case(b),
    }
}

/// What a text seems to be written in.
#[derive(Clone, Debug, PartialEq)]
pub struct Identified {
    /// As [`Language::code`].
    pub code: String,
    /// The detector's confidence is above 0.9: on FLORES sentences it is then right in 999 of 1,000 cases.
    pub reliable: bool,
}

/// The most likely language of `text`; `None` without letters.
pub fn identify(text: &str) -> Option<Identified> {
    let (code, reliable) = known(whatlang::detect(&plain(text)))?;
    Some(Identified { code: code.to_string(), reliable })
}

fn known(info: Option<whatlang::Info>) -> Option<(&'static str, bool)> {
    let info = info?;
    Some((find(info.lang().code())?.code, info.is_reliable()))
}

fn trigrams(language: &Language) -> Option<Lang> {
    if language.code == "zh" { Some(Lang::Cmn) } else { Lang::from_code(language.code3) }
}

/// Fewer letters than this and the script is not judged.
const SCRIPT_LETTERS: usize = 10;
/// A text is in the wrong script if less than this share of its letters is in the right one.
const SCRIPT_SHARE: f64 = 0.25;
/// Letters needed for the test by trigrams.
const TRIGRAM_LETTERS: usize = 20;
/// Languages that trigrams mix up: one is no evidence against another.
const CLOSE: &[&[&str]] = &[
    &["da", "no", "nn", "sv"],
    &["cs", "sk"],
    &["hr", "sr", "bs", "sl"],
    &["id", "ms", "jv"],
    &["bg", "mk"],
    &["pt", "gl"],
    &["ca", "es", "gl"],
    &["zh", "ja"],
    &["nl", "af"],
];

/// The language that `text` seems to be in when that is reliably not `expected`; otherwise `None`, also when the text is too short to tell.
///
/// Two tests: the script (10 letters or more, less than a quarter of them in the script of `expected`), and trigrams (20 letters or more) of
/// `expected` against each of `rivals` (the source of a translation, say) and against the language that looks most likely. Code blocks, inline
/// code and addresses are not looked at. Numbers of false alarms and of faults found: `language_check_on_flores` in `tests/data_formats.rs`.
pub fn contradicts(text: &str, expected: &str, rivals: &[&str]) -> Option<&'static str> {
    let expected = find(expected)?;
    let text = plain(text);
    let letters: Vec<char> = text.chars().filter(|c| c.is_alphabetic()).collect();
    if letters.len() < SCRIPT_LETTERS {
        return None;
    }
    if let Some(ranges) = script(expected) {
        let inside = letters.iter().filter(|c| ranges.iter().any(|(a, b)| (*a..=*b).contains(&(**c as u32))));
        if (inside.count() as f64) < SCRIPT_SHARE * letters.len() as f64 {
            return Some(known(whatlang::detect(&text)).map_or("und", |d| d.0));
        }
    }
    let close =
        |other: &str| CLOSE.iter().any(|group| group.contains(&expected.code) && group.contains(&other));
    let own = trigrams(expected)?;
    if letters.len() < TRIGRAM_LETTERS {
        return None;
    }
    let likely = known(whatlang::detect(&text)).map(|d| d.0);
    for rival in rivals.iter().copied().chain(likely).filter_map(find) {
        let Some(lang) = trigrams(rival).filter(|_| rival != expected && !close(rival.code)) else {
            continue;
        };
        let found = known(Detector::with_allowlist(vec![own, lang]).detect(&text));
        if found == Some((rival.code, true)) {
            return Some(rival.code);
        }
    }
    None
}

/// The code-point ranges of a language's letters, where its script says something.
fn script(language: &Language) -> Option<&'static [(u32, u32)]> {
    Some(match language.nllb.split('_').nth(1)? {
        // Serbian, Kazakh and some others are written in either script.
        "Cyrl" if ["sr", "kk", "ky"].contains(&language.code) => return None,
        "Latn" if ["uz", "az", "tk", "bs"].contains(&language.code) => return None,
        "Latn" => &[(0x41, 0x24F), (0x300, 0x36F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)],
        "Cyrl" => &[(0x400, 0x52F)],
        "Grek" => &[(0x370, 0x3FF), (0x1F00, 0x1FFF)],
        "Arab" => &[(0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFEFF)],
        "Hebr" => &[(0x590, 0x5FF), (0xFB1D, 0xFB4F)],
        "Deva" => &[(0x900, 0x97F)],
        "Beng" => &[(0x980, 0x9FF)],
        "Guru" => &[(0xA00, 0xA7F)],
        "Gujr" => &[(0xA80, 0xAFF)],
        "Orya" => &[(0xB00, 0xB7F)],
        "Taml" => &[(0xB80, 0xBFF)],
        "Telu" => &[(0xC00, 0xC7F)],
        "Knda" => &[(0xC80, 0xCFF)],
        "Mlym" => &[(0xD00, 0xD7F)],
        "Sinh" => &[(0xD80, 0xDFF)],
        "Thai" => &[(0xE00, 0xE7F)],
        "Laoo" => &[(0xE80, 0xEFF)],
        "Mymr" => &[(0x1000, 0x109F)],
        "Geor" => &[(0x10A0, 0x10FF), (0x1C90, 0x1CBF)],
        "Ethi" => &[(0x1200, 0x139F)],
        "Khmr" => &[(0x1780, 0x17FF)],
        "Armn" => &[(0x530, 0x58F)],
        "Hang" => &[(0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)],
        "Jpan" => &[(0x3005, 0x3007), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xFF66, 0xFF9F)],
        "Hans" => &[(0x3005, 0x3007), (0x3400, 0x9FFF), (0x20000, 0x2FA1F)],
        _ => return None,
    })
}

/// Whether words of the language are not separated by spaces.
pub fn is_unspaced(code: &str) -> bool {
    let script = || ["_Hant", "_Hans", "_Tibt", "_Mymr"].iter().any(|s| code.ends_with(s));
    find(code).map_or_else(script, |l| l.unspaced)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_found_by_any_of_their_names() {
        for name in ["no", "nb", "nob", "nor", "nob_Latn", "Norwegian", "nb_NO"] {
            assert_eq!(find(name).map(|l| l.code), Some("no"), "{name}");
        }
        assert_eq!(find("pt-BR").map(|l| l.name), Some("Portuguese"));
        assert_eq!(find("zh_CN").map(|l| l.nllb), Some("zho_Hans"));
        assert!(find("xx").is_none() && find("").is_none());
        assert_eq!(name("tlh"), "tlh");
        assert!(same_language("spa_Latn", "es") && !same_language("es", "pt"));
        assert!(find("arb_Latn").is_none(), "another script is another language");
    }

    #[test]
    fn every_language_of_nllb_has_a_code_and_a_name() {
        for nllb in crate::data::tokenizer::sentencepiece::NLLB_CODES.split_whitespace() {
            let own = code(nllb).unwrap();
            let table = LANGUAGES.iter().find(|l| l.nllb == nllb);
            assert_eq!(own, table.map_or(nllb, |l| l.code));
            assert!(name(&own) != own, "{nllb} has no name");
            assert_eq!(code(name(&own)).unwrap(), own, "{}", name(&own));
            assert_eq!(code(&nllb.to_lowercase()).unwrap(), own);
        }
        for (other, own) in [
            ("quy", "quy_Latn"),
            ("zh", "zh"),
            ("zho_Hant", "zho_Hant"),
            ("Greek", "el"),
            ("fas_Arab", "fa"),
            ("tyv_Cyrl", "tyv_Cyrl"),
        ] {
            assert_eq!(code(other).unwrap(), own);
        }
        for (wrong, near) in [
            ("quy_Latm", "quy_Latn"),
            ("Quechua", "Ayacucho Quechua"),
            ("Checz", "Czech"),
            ("ace", "ace_Latn"),
        ] {
            let error = code(wrong).unwrap_err().to_string();
            assert!(error.contains(near) && error.contains(wrong), "{error}");
        }
        assert!(is_unspaced("zho_Hant") && is_unspaced("bod_Tibt") && !is_unspaced("quy_Latn"));
    }

    #[test]
    fn codes_are_unique_and_the_detector_knows_the_languages_of_the_paper() {
        for (i, a) in LANGUAGES.iter().enumerate() {
            for b in &LANGUAGES[i + 1..] {
                assert!(
                    a.code != b.code && a.code3 != b.code3 && a.nllb != b.nllb && a.name != b.name,
                    "{a:?} {b:?}"
                );
            }
        }
        for l in &LANGUAGES[..17] {
            assert!(trigrams(l).is_some(), "{l:?}");
        }
        for lang in Lang::all() {
            assert!(find(lang.code()).is_some(), "{lang:?}");
        }
    }

    #[test]
    fn the_wrong_language_is_seen_and_the_right_one_left_alone() {
        let english = "The mountain is covered with snow for most of the year.";
        let spanish = "La montaña está cubierta de nieve durante la mayor parte del año.";
        assert_eq!(contradicts(english, "es", &["en"]), Some("en"));
        assert_eq!(contradicts(spanish, "es", &["en"]), None);
        assert_eq!(contradicts(spanish, "en", &[]), Some("es"));
        assert_eq!(contradicts(english, "th", &[]), Some("en"));
        assert_eq!(contradicts("ติดตั้ง LibreOffice บนเครื่อง", "th", &["en"]), None);
        assert_eq!(
            contradicts("Open Office", "uk", &["en"]),
            Some(known(whatlang::detect("Open Office")).map_or("und", |d| d.0))
        );
        assert_eq!(contradicts("OK.", "es", &["en"]), None, "too short to tell");
        let code = "Usa esto:\n```python\nfor line in the_file: print(the, words, that, are, english)\n```";
        assert_eq!(contradicts(code, "es", &["en"]), None);
        assert_eq!(contradicts(english, "xx", &["en"]), None, "an unknown language is not judged");
    }
}
