//! Languages: their codes, English names, and identification of a text's language (whatlang: trigrams and scripts).
use anyhow::{Context, Result};
use whatlang::{Detector, Lang};

/// A language as the field names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Language {
    /// ISO 639-1.
    pub code: &'static str,
    /// ISO 639-3.
    pub code3: &'static str,
    /// English name.
    pub name: &'static str,
    /// NLLB-200's code.
    pub nllb: &'static str,
    lang: Option<Lang>,
    /// Written without spaces between words.
    pub unspaced: bool,
}

const fn language(
    code: &'static str,
    code3: &'static str,
    name: &'static str,
    nllb: &'static str,
    lang: Option<Lang>,
) -> Language {
    Language { code, code3, name, nllb, lang, unspaced: false }
}

/// The paper's languages, and others with data at hand.
pub const LANGUAGES: &[Language] = &[
    language("en", "eng", "English", "eng_Latn", Some(Lang::Eng)),
    language("cs", "ces", "Czech", "ces_Latn", Some(Lang::Ces)),
    language("da", "dan", "Danish", "dan_Latn", Some(Lang::Dan)),
    language("uk", "ukr", "Ukrainian", "ukr_Cyrl", Some(Lang::Ukr)),
    language("bg", "bul", "Bulgarian", "bul_Cyrl", Some(Lang::Bul)),
    language("fi", "fin", "Finnish", "fin_Latn", Some(Lang::Fin)),
    language("hu", "hun", "Hungarian", "hun_Latn", Some(Lang::Hun)),
    language("no", "nob", "Norwegian", "nob_Latn", Some(Lang::Nob)),
    language("id", "ind", "Indonesian", "ind_Latn", Some(Lang::Ind)),
    Language { unspaced: true, ..language("ja", "jpn", "Japanese", "jpn_Jpan", Some(Lang::Jpn)) },
    language("ko", "kor", "Korean", "kor_Hang", Some(Lang::Kor)),
    language("pt", "por", "Portuguese", "por_Latn", Some(Lang::Por)),
    language("sl", "slv", "Slovenian", "slv_Latn", Some(Lang::Slv)),
    language("vi", "vie", "Vietnamese", "vie_Latn", Some(Lang::Vie)),
    language("pl", "pol", "Polish", "pol_Latn", Some(Lang::Pol)),
    Language { unspaced: true, ..language("th", "tha", "Thai", "tha_Thai", Some(Lang::Tha)) },
    Language { unspaced: true, ..language("km", "khm", "Khmer", "khm_Khmr", Some(Lang::Khm)) },
    language("fr", "fra", "French", "fra_Latn", Some(Lang::Fra)),
    language("es", "spa", "Spanish", "spa_Latn", Some(Lang::Spa)),
    language("de", "deu", "German", "deu_Latn", Some(Lang::Deu)),
    language("it", "ita", "Italian", "ita_Latn", Some(Lang::Ita)),
    language("nl", "nld", "Dutch", "nld_Latn", Some(Lang::Nld)),
    language("sv", "swe", "Swedish", "swe_Latn", Some(Lang::Swe)),
    language("ca", "cat", "Catalan", "cat_Latn", Some(Lang::Cat)),
    language("ro", "ron", "Romanian", "ron_Latn", Some(Lang::Ron)),
    language("hi", "hin", "Hindi", "hin_Deva", Some(Lang::Hin)),
    language("ru", "rus", "Russian", "rus_Cyrl", Some(Lang::Rus)),
    language("tr", "tur", "Turkish", "tur_Latn", Some(Lang::Tur)),
    Language { unspaced: true, ..language("zh", "zho", "Chinese", "zho_Hans", Some(Lang::Cmn)) },
];

/// The language of a code (639-1, 639-3, NLLB, or `nb`), if known.
pub fn find(code: &str) -> Option<&'static Language> {
    let code = if code == "nb" { "no" } else { code };
    LANGUAGES.iter().find(|l| [l.code, l.code3, l.nllb].contains(&code))
}

/// As [`find`], with an error that lists what is known.
pub fn require(code: &str) -> Result<&'static Language> {
    let known = || LANGUAGES.iter().map(|l| l.code).collect::<Vec<_>>().join(" ");
    find(code).with_context(|| format!("language `{code}` is not known; known are {}", known()))
}

/// The English name of a code, or the code itself.
pub fn name(code: &str) -> &str {
    find(code).map_or(code, |l| l.name)
}

/// What a text seems to be written in.
#[derive(Clone, Debug, PartialEq)]
pub struct Identified {
    /// ISO 639-1 (639-3 where the language is not in [`LANGUAGES`]).
    pub code: String,
    /// Sure enough to act upon: enough letters, and a clear lead over the runner-up.
    pub reliable: bool,
}

/// Letters below which a text tells too little of its language.
const ENOUGH_LETTERS: usize = 24;

/// The language of `text` among [`LANGUAGES`].
pub fn identify(text: &str) -> Option<Identified> {
    let langs: Vec<Lang> = LANGUAGES.iter().filter_map(|l| l.lang).collect();
    let info = Detector::with_allowlist(langs).detect(text)?;
    let language = LANGUAGES.iter().find(|l| l.lang == Some(info.lang()));
    let letters = text.chars().filter(|c| c.is_alphabetic()).count();
    let own_script = language.is_some_and(|l| ["th", "km", "ko", "ja", "zh", "hi"].contains(&l.code));
    let reliable = if own_script { letters >= 4 } else { letters >= ENOUGH_LETTERS && info.is_reliable() };
    let code = language.map_or(info.lang().code(), |l| l.code);
    Some(Identified { code: code.into(), reliable })
}

/// Pairs that the identifier confuses even on long texts.
const CONFUSABLE: &[(&str, &str)] = &[("no", "da"), ("es", "ca"), ("es", "pt"), ("no", "sv")];

/// True if `text` is surely not in `language`.
pub fn is_wrong_language(text: &str, language: &str) -> bool {
    let Some(wanted) = find(language) else { return false };
    let Some(found) = identify(text) else { return false };
    let confusable = CONFUSABLE
        .iter()
        .any(|&(a, b)| (a == wanted.code && b == found.code) || (b == wanted.code && a == found.code));
    found.reliable && found.code != wanted.code && !confusable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_identified_and_short_ones_are_not_judged() {
        let spanish = "La capital de Francia es París y la ciudad es muy grande y antigua.";
        assert_eq!(identify(spanish), Some(Identified { code: "es".into(), reliable: true }));
        assert!(is_wrong_language(spanish, "en") && !is_wrong_language(spanish, "es"));
        assert!(!is_wrong_language("No.", "ja"));
        assert!(is_wrong_language("สวัสดีครับผมชื่อสมชาย", "en"));
    }

    #[test]
    fn codes_of_every_kind_are_found() {
        for code in ["uk", "ukr", "ukr_Cyrl"] {
            assert_eq!(require(code).unwrap().name, "Ukrainian");
        }
        assert_eq!(require("nb").unwrap().code, "no");
        assert!(require("xx").unwrap_err().to_string().contains("known are en"));
    }
}
