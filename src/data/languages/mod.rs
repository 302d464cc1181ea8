//! What is known of languages, in one place: codes and names, scripts, and (in [`charset`]) what Unicode says of their characters.
//!
//! A language goes by its ISO 639-1 or 639-3 code, its code in NLLB-200, its English name, or one of these with subtags of BCP 47: a script is kept
//! (`sr-Latn`, `zh-Hant`), a region chooses the script that is usual there (`zh-TW`, `pa-PK`) and says nothing else.
pub mod charset;
mod table;

use std::{collections::HashMap, sync::LazyLock};

use anyhow::{Context, Result, bail};

pub use table::LANGUAGES;
use table::{ALIASES, AMBIGUOUS, SCRIPT_OF_REGION};

/// A language under the names that the field gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Language {
    /// What this program writes: ISO 639-1, or for most of NLLB's languages the code there.
    pub code: &'static str,
    /// ISO 639-1, also that of the macrolanguage; empty if there is none.
    pub code1: &'static str,
    /// ISO 639-3.
    pub code3: &'static str,
    /// In English.
    pub name: &'static str,
    /// NLLB-200 and FLORES-200: 639-3 and script.
    pub nllb: &'static str,
    /// Further scripts in everyday use, ISO 15924, a space between them.
    pub further_scripts: &'static str,
}

impl Language {
    /// The script of the table, ISO 15924.
    pub fn script(&self) -> &'static str {
        &self.nllb[4..]
    }

    /// Every script in everyday use, the table's first.
    pub fn scripts(&self) -> impl Iterator<Item = &'static str> {
        [self.script()].into_iter().chain(self.further_scripts.split_whitespace())
    }
}

/// A language as someone named it: with a script if the name has one that is not the table's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The language.
    pub language: &'static Language,
    /// The script asked for, where that is another than the table's.
    pub script: Option<&'static str>,
}

impl Written {
    /// The scripts that a text in it may be written in.
    pub fn scripts(self) -> Vec<&'static str> {
        self.script.map_or_else(|| self.language.scripts().collect(), |script| vec![script])
    }

    /// As this program writes it: [`Language::code`], or with another script in NLLB's form (`srp_Latn`).
    fn code(self) -> String {
        match self.script {
            Some(script) => format!("{}_{script}", &self.language.nllb[..3]),
            None => self.language.code.into(),
        }
    }
}

/// What a name means.
enum Meaning {
    One(Written),
    Several(Vec<&'static str>),
    /// Of NLLB's form with a script in use: a model may have been taught more languages.
    Foreign(String),
    Nothing,
}

/// The subtags of a name that looks like a tag: language, script, region; further ones must have the form of a variant.
fn tag(name: &str) -> Option<(String, Option<String>, Option<String>)> {
    let mut parts = name.split(['_', '-']);
    let language = parts.next()?.to_lowercase();
    let is = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphabetic())
    };
    if !is(&language, 2..=3) {
        return None;
    }
    let (mut script, mut region) = (None, None);
    for part in parts {
        if is(part, 4..=4) && script.is_none() && region.is_none() {
            let (head, tail) = part.split_at(1);
            // Hani (Han of any kind, in GlotLID's labels) says no more than the language does.
            script = Some(format!("{}{}", head.to_uppercase(), tail.to_lowercase())).filter(|s| s != "Hani");
        } else if (is(part, 2..=2) || part.len() == 3 && part.bytes().all(|b| b.is_ascii_digit()))
            && region.is_none()
        {
            region = Some(part.to_uppercase());
        } else if !(4..=8).contains(&part.len()) || !part.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return None;
        }
    }
    Some((language, script, region))
}

/// The rows that a name (lower case, without subtags) may mean: by our code or an alias, else by ISO 639-1, else by 639-3, NLLB's code, the English name.
static BY_NAME: LazyLock<HashMap<String, Vec<&'static Language>>> = LazyLock::new(|| {
    let kinds: [&dyn Fn(&Language) -> Vec<String>; 5] = [
        &|l| {
            let aliases = ALIASES.iter().filter(|(alias, code)| *code == l.code && *alias != l.code);
            [l.code].into_iter().chain(aliases.map(|(alias, _)| *alias)).map(String::from).collect()
        },
        &|l| vec![l.code1.into()],
        &|l| vec![l.code3.into()],
        &|l| vec![l.nllb.to_ascii_lowercase()],
        &|l| vec![l.name.to_lowercase()],
    ];
    let mut all = HashMap::new();
    for names in kinds {
        let mut found: HashMap<String, Vec<&Language>> = HashMap::new();
        for (name, l) in LANGUAGES.iter().flat_map(|l| names(l).into_iter().map(move |name| (name, l))) {
            found.entry(name).or_default().push(l);
        }
        for (name, rows) in found {
            // A language of the table under its own code comes before its other scripts.
            let own = rows.iter().find(|l| !l.code.contains('_')).map(|l| vec![*l]);
            all.entry(name).or_insert(own.unwrap_or(rows));
        }
    }
    all.remove("");
    all
});

/// The code of the first row of each language, by its code in NLLB's.
static OWN: LazyLock<HashMap<&str, &str>> =
    LazyLock::new(|| LANGUAGES.iter().rev().map(|l| (&l.nllb[..3], l.code)).collect());

fn rows(name: &str) -> &'static [&'static Language] {
    BY_NAME.get(name).map_or(&[], Vec::as_slice)
}

fn meaning(name: &str) -> Meaning {
    let name = name.trim();
    let lower = name.to_lowercase();
    if let Some((_, choices)) = AMBIGUOUS.iter().find(|(ambiguous, _)| *ambiguous == lower) {
        return Meaning::Several(choices.to_vec());
    }
    let found = rows(&lower);
    match found {
        [] => {}
        [language] => return Meaning::One(Written { language, script: None }),
        _ => return Meaning::Several(found.iter().map(|l| l.code).collect()),
    }
    let Some((language, script, region)) = tag(name) else { return Meaning::Nothing };
    let bases = rows(&language);
    let usual = |l: &Language| {
        let of_region = SCRIPT_OF_REGION.iter().find(|r| r.0 == l.code && Some(r.1) == region.as_deref());
        of_region.map(|r| r.2.to_string())
    };
    let [first, ..] = bases else {
        let known = script.as_deref().and_then(charset::script_code).is_some();
        return if known && language.len() == 3 {
            Meaning::Foreign(format!("{language}_{}", script.unwrap_or_default()))
        } else {
            Meaning::Nothing
        };
    };
    let Some(script) = script.or_else(|| usual(first)) else {
        return match bases {
            [language] => Meaning::One(Written { language, script: None }),
            _ => Meaning::Several(bases.iter().map(|l| l.code).collect()),
        };
    };
    // A row of its own for this script, else the language with another script than the table's.
    let row = LANGUAGES.iter().find(|l| l.nllb[..3] == first.nllb[..3] && l.script() == script);
    match (row, charset::script_code(&script)) {
        (Some(language), _) => Meaning::One(Written { language, script: None }),
        (None, Some(script)) => Meaning::One(Written { language: first, script: Some(script) }),
        _ => Meaning::Nothing,
    }
}

/// The language called `name`, in the script of the table.
pub fn find(name: &str) -> Option<&'static Language> {
    written(name).filter(|w| w.script.is_none()).map(|w| w.language)
}

/// The language called `name`, in the script that the name asks for.
pub fn written(name: &str) -> Option<Written> {
    match meaning(name) {
        Meaning::One(written) => Some(written),
        _ => None,
    }
}

/// How this program writes the language called `name`: by code, ISO 639-3 or English name (see the module). A code of NLLB's form with a script in use
/// passes too: a model may have been taught more languages. Errors say what else was meant, or what to write.
pub fn code(name: &str) -> Result<String> {
    match meaning(name) {
        Meaning::One(written) => Ok(written.code()),
        Meaning::Foreign(code) => Ok(code),
        Meaning::Several(choices) => bail!("language `{name}` is ambiguous: write {}", choices.join(" or ")),
        Meaning::Nothing => {
            let near = suggestion(name).map_or(String::new(), |n| format!(" (did you mean `{n}`?)"));
            bail!(
                "language `{name}` is not known{near}; languages go by ISO codes (cs, ces), English names (Czech) and the codes of NLLB-200 (ces_Latn)"
            )
        }
    }
}

/// What `name` was probably meant to be: a name or code that differs by one slip, or has it as a word. Never another language that merely looks
/// like it: Frisian is not Friulian.
fn suggestion(name: &str) -> Option<&'static str> {
    let lower = name.trim().to_lowercase();
    if let Some((language, Some(_), _)) = tag(name) {
        // A script that there is not.
        return rows(&language).first().map(|l| l.nllb);
    }
    if lower.chars().count() < 5 {
        return None;
    }
    let has_word = |l: &&Language| l.name.to_lowercase().split([' ', '-']).any(|w| w == lower);
    let slip = |l: &&Language| {
        let other = l.name.to_lowercase();
        let letters = |text: &str| {
            let mut all: Vec<char> = text.chars().collect();
            all.sort_unstable();
            all
        };
        strsim::osa_distance(&lower, &other) <= 1
            || lower.chars().next() == other.chars().next() && letters(&lower) == letters(&other)
    };
    LANGUAGES.iter().find(has_word).or_else(|| LANGUAGES.iter().find(slip)).map(|l| l.name)
}

/// As [`find`], with the error of [`code`].
pub fn require(name: &str) -> Result<&'static Language> {
    code(name)?;
    find(name).with_context(|| format!("language `{name}` is not in the table of languages in this script"))
}

/// The English name of a language; a code that is not in the table stands for itself.
pub fn name(code: &str) -> &str {
    written(code).map_or(code, |w| w.language.name)
}

/// The code of the language itself, whatever script it is in: `zh` for `zho_Hant`, `sr` for `srp_Latn`. What is not in the table stays as it is.
pub fn without_script(name: &str) -> &str {
    let Some(written) = written(name) else { return name };
    OWN.get(&written.language.nllb[..3]).copied().unwrap_or(name)
}

/// Whether two names mean one language, in whatever script (`no` and `nob_Latn` do).
pub fn same_language(a: &str, b: &str) -> bool {
    without_script(a).eq_ignore_ascii_case(without_script(b))
}

/// Whether words of the language are not separated by spaces.
pub fn is_unspaced(name: &str) -> bool {
    let script = match meaning(name) {
        Meaning::One(written) => written.scripts()[0].to_string(),
        Meaning::Foreign(code) => code[4..].to_string(),
        _ => return false,
    };
    ["Hans", "Hant", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"].contains(&script.as_str())
}

/// `quy_Latn`: three small letters of a language and the four of a script.
pub fn is_nllb_code(code: &str) -> bool {
    let Some((language, script)) = code.split_once('_') else { return false };
    let small = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase());
    language.len() == 3
        && script.len() == 4
        && small(language)
        && script.as_bytes()[0].is_ascii_uppercase()
        && script.is_char_boundary(1)
        && small(&script[1..])
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod true_pairs;
