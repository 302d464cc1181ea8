//! `sdrrl code-switch`: questions in which some words are replaced by dictionary equivalents (SDRRL, step 5; CoSDA-ML, Qin et al. 2020).
use std::path::PathBuf;

use crate::error::Error;
use anyhow::{Result, ensure};

use crate::pipeline::{
    identity::{Identity, Inputs},
    rows::{RowArgs, RowStage, dictionary_files, path_for},
    stage::{self, Made, Open},
};
use crate::{
    data::{
        dictionary::Dictionary,
        markup,
        random::RowRandom,
        record::{CodeSwitched, Row},
        words::{self, Token, units, with_case_of},
    },
    recipe::code_switch::{CodeSwitchSettings, RateBasis},
};

/// Arguments of `code-switch`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Rows
    #[command(flatten)]
    pub rows: RowArgs,
    /// How
    #[command(flatten)]
    pub settings: CodeSwitchSettings,
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    let s = &args.settings;
    let message = || format!("code-switch.rate is {}: a probability was expected", s.rate);
    ensure!((0.0..=1.0).contains(&s.rate), Error::setting("code-switch.rate", message()));
    stage::run(&mut CodeSwitch { args }).map(drop)
}

struct CodeSwitch<'a> {
    args: &'a Args,
}

impl RowStage for CodeSwitch<'_> {
    const NAME: &'static str = "code-switch";

    fn rows(&self) -> &RowArgs {
        &self.args.rows
    }

    fn identity(&self) -> Result<Identity> {
        self.args.rows.identity(&self.args.settings)
    }

    fn inputs(&self) -> Result<Inputs> {
        let (source, targets) = self.args.rows.languages()?;
        let mut inputs: Vec<(String, PathBuf)> = vec![];
        for target in &targets {
            let path = path_for(&self.args.settings.dictionary, "code-switch.dictionary", &source, target)?;
            inputs.extend(dictionary_files("dictionary", &path, target));
        }
        Ok(self.args.rows.inputs().files(inputs))
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let s = &self.args.settings;
        let (source, targets) = self.args.rows.languages()?;
        let mut dictionaries: Vec<(Dictionary, Dictionary)> = vec![];
        let (mut words, mut replaced) = (0, 0);
        let summary = open.map_rows(&self.args.rows.input, 4096, &mut |mut rows: Vec<Row>| {
            if dictionaries.is_empty() {
                dictionaries = targets.iter().map(|t| load(s, &source, t)).collect::<Result<_>>()?;
            }
            for (target, (forth, back)) in targets.iter().zip(&dictionaries) {
                let mut known = 0;
                for row in &mut rows {
                    let mixed = mix_row(row, target, forth, back, s);
                    words += mixed.tokens;
                    known += mixed.translatable;
                    replaced += mixed.replaced;
                    row.code_switched.insert(target.to_string(), mixed);
                }
                if known == 0 {
                    columns_agree(&rows, target, back)?;
                }
            }
            Ok(rows)
        })?;
        let share = 100.0 * replaced as f64 / f64::max(1.0, words as f64);
        summary.made(Self::NAME, &format!("{replaced} of {words} words replaced ({share:.1} %)"))
    }
}

/// An error where no word of the rows has an entry, but some are equivalents of others.
fn columns_agree(rows: &[Row], target: &str, back: &Dictionary) -> Result<()> {
    let words = || rows.iter().flat_map(|r| [&r.instruction, &r.input]).flat_map(|text| words::words(text));
    let turned = words().filter(|w| !back.lookup(w).is_empty()).count();
    ensure!(
        turned == 0,
        "code-switch: none of the {} words of these rows has an entry in the dictionary of {target}, and {turned} are equivalents in it: are its columns the other way round (--invert)?",
        words().count()
    );
    Ok(())
}

fn load(s: &CodeSwitchSettings, source: &str, target: &str) -> Result<(Dictionary, Dictionary)> {
    let path = path_for(&s.dictionary, "code-switch.dictionary", source, target)?;
    let read = Dictionary::load(&path, s.format)?.filtered(true, true);
    let other = read.invert();
    Ok(if s.invert { (other, read) } else { (read, other) })
}

fn mix_row(
    row: &Row,
    target: &str,
    forth: &Dictionary,
    back: &Dictionary,
    s: &CodeSwitchSettings,
) -> CodeSwitched {
    let mut random = RowRandom::new(s.seed, "code-switch", &format!("{}\t{target}", row.id));
    let mut out = CodeSwitched::default();
    let mut mix = |text: &str, dictionary: &Dictionary, counted: bool| {
        let language = if counted { target } else { row.language.as_str() };
        let mixed = mix_text(text, dictionary, language, s, &mut random);
        if counted {
            out.tokens += mixed.1;
            out.translatable += mixed.2;
            out.replaced += mixed.3;
        }
        mixed.0
    };
    let instruction = mix(&row.instruction, forth, true);
    let input = mix(&row.input, forth, true);
    let translated = row.translations.get(target).filter(|_| s.both_sides);
    let translated_instruction = translated.map_or(String::new(), |t| mix(&t.instruction, back, false));
    let translated_input = translated.map_or(String::new(), |t| mix(&t.input, back, false));
    CodeSwitched { instruction, input, translated_instruction, translated_input, ..out }
}

/// The mixed text, with words of `language`; words, words in the dictionary, words replaced. Code, addresses, numbers and all white space stay.
fn mix_text(
    text: &str,
    dictionary: &Dictionary,
    language: &str,
    s: &CodeSwitchSettings,
    random: &mut RowRandom,
) -> (String, usize, usize, usize) {
    // Of a word that may be replaced its equivalents, of anything else nothing.
    let mut parts: Vec<(Option<&[String]>, &str)> = vec![];
    for (kept, part) in protect(text) {
        if kept {
            parts.push((None, part));
            continue;
        }
        let known = |word: &str| !dictionary.lookup(word).is_empty();
        parts.extend(units(part, &known).into_iter().map(|Token { text, is_word }| {
            let open = is_word && text.chars().any(char::is_alphabetic);
            (open.then(|| dictionary.lookup(text)), text)
        }));
    }
    let words = parts.iter().filter(|p| p.0.is_some()).count();
    let known = parts.iter().filter(|p| p.0.is_some_and(|found| !found.is_empty())).count();
    let rate = match s.basis {
        RateBasis::Translatable => s.rate,
        RateBasis::Token => s.rate * words as f64 / known.max(1) as f64,
    };
    let mut replaced = 0;
    let mut out = String::with_capacity(text.len());
    for (equivalents, word) in parts {
        let Some(equivalents) = equivalents else {
            out.push_str(word);
            continue;
        };
        // Two draws a word, used or not: another dictionary then changes only the words that it knows.
        let (gate, which) = (random.uniform(), random.next_u64());
        if !equivalents.is_empty() && gate < rate {
            let choice = ((which as u128 * equivalents.len() as u128) >> 64) as usize;
            out.push_str(&with_case_of(word, &equivalents[choice], language));
            replaced += 1;
        } else {
            out.push_str(word);
        }
    }
    (out, words, known, replaced)
}

/// Parts of a text; true: code, formulas, placeholders ([`markup::spans`]), addresses, mail addresses, names with underscores.
fn protect(text: &str) -> Vec<(bool, &str)> {
    let mut out = vec![];
    let mut at = 0;
    for span in markup::spans(text) {
        protect_words(&text[at..span.start], &mut out);
        out.push((true, &text[span.clone()]));
        at = span.end;
    }
    protect_words(&text[at..], &mut out);
    out
}

fn protect_words<'a>(text: &'a str, out: &mut Vec<(bool, &'a str)>) {
    // What may be replaced is one part, up to the next word that may not.
    let (mut from, mut at) = (0, 0);
    for word in text.split_inclusive(char::is_whitespace) {
        let odd = word.contains(['@', '{', '}', '\\', '_', '<', '>', '%'])
            || word.contains("://")
            || word.starts_with("www.");
        let end = at + word.len();
        if odd {
            out.extend((from < at).then(|| (false, &text[from..at])));
            out.push((true, word));
            from = end;
        }
        at = end;
    }
    out.extend((from < at).then(|| (false, &text[from..at])));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dictionary() -> Dictionary {
        let mut d = Dictionary::default();
        for (a, b) in
            [("house", "casa"), ("house", "hogar"), ("green", "verde"), ("the", "la"), ("test", "prueba")]
        {
            d.insert(a, b);
        }
        d
    }

    fn mixed(text: &str, rate: f64) -> (String, usize, usize, usize) {
        let s = CodeSwitchSettings { rate, ..Default::default() };
        mix_text(text, &dictionary(), "es", &s, &mut RowRandom::new(1, "t", "r"))
    }

    #[test]
    fn at_rate_1_every_known_word_is_replaced_and_the_rest_stays() {
        let (text, words, known, replaced) =
            mixed("The GREEN house: `test the` x_test https://a.b/test test@x.y 3 tests,\n  test!", 1.0);
        assert!(
            text == "La VERDE casa: `test the` x_test https://a.b/test test@x.y 3 tests,\n  prueba!"
                || text == "La VERDE hogar: `test the` x_test https://a.b/test test@x.y 3 tests,\n  prueba!",
            "{text}"
        );
        assert_eq!((words, known, replaced), (5, 4, 4));
        assert_eq!(mixed("The green house", 0.0).0, "The green house");
    }

    #[test]
    fn a_known_word_is_replaced_in_any_script() {
        for (language, text, word) in [
            ("hi", "वह विद्यालय बड़ा है।", "विद्यालय"),
            ("mr", "ही शाळा मोठी आहे.", "शाळा"),
            ("bn", "আমার বন্ধু এসেছে।", "বন্ধু"),
            ("ta", "அந்த பள்ளி பெரியது.", "பள்ளி"),
            ("te", "ఇది పుస్తకం.", "పుస్తకం"),
            ("ml", "ഈ പുസ്തകം നല്ലതാണ്.", "പുസ്തകം"),
            ("kn", "ಇದು ಪುಸ್ತಕ.", "ಪುಸ್ತಕ"),
            ("gu", "આ પુસ્તક છે.", "પુસ્તક"),
            ("pa", "ਇਹ ਕਿਤਾਬ ਹੈ।", "ਕਿਤਾਬ"),
            ("or", "ଏହା ବହି ଅଟେ।", "ବହି"),
            ("si", "මෙය ක්‍රීඩා පොතකි.", "ක්‍රීඩා"),
            ("my", "ဒါဟာကျောင်းဖြစ်ပါတယ်။", "ကျောင်း"),
            ("km", "នេះ សាលា ធំ។", "សាលា"),
            ("th", "นี่คือโรงเรียนของฉัน", "โรงเรียน"),
            ("lo", "ນີ້ແມ່ນໂຮງຮຽນ", "ໂຮງຮຽນ"),
            ("bod_Tibt", "ང་སློབ་གྲྭ་ལ།", "སློབ་གྲྭ"),
            ("fa", "این کتاب را می‌خوانم.", "می‌خوانم"),
            ("am", "ይህ ትምህርት ነው።", "ትምህርት"),
            ("ja", "これは学校です。", "学校"),
            ("zh", "这是我的学校。", "学校"),
            ("he", "קראתי ספר אחד.", "ספר"),
            ("ko", "이것은 학교 입니다.", "학교"),
            ("ka", "ეს არის სკოლა.", "სკოლა"),
            ("sat_Olck", "ᱱᱚᱶᱟ ᱯᱩᱛᱷᱤ ᱠᱟᱱᱟ᱾", "ᱯᱩᱛᱷᱤ"),
            ("yo", "Mo ń ka ìwé náà.", "ìwé"),
        ] {
            let mut d = Dictionary::default();
            d.insert(word, "school");
            let s = CodeSwitchSettings { rate: 1.0, ..Default::default() };
            let found = mix_text(text, &d, "en", &s, &mut RowRandom::new(1, "t", "r"));
            assert_eq!(found.0, text.replace(word, "school"), "{language}");
            assert_eq!((found.2, found.3), (1, 1), "{language}");
        }
    }

    #[test]
    fn columns_the_other_way_round_are_named() {
        let row: Row = serde_json::from_str(r#"{"id": "0", "instruction": "la casa verde"}"#).unwrap();
        let error = columns_agree(&[row], "es", &dictionary().invert()).unwrap_err().to_string();
        assert!(error.contains("3 of") || error.contains("3 are equivalents"), "{error}");
        let row: Row = serde_json::from_str(r#"{"id": "0", "instruction": "nothing here"}"#).unwrap();
        assert!(columns_agree(&[row], "es", &dictionary().invert()).is_ok());
    }

    #[test]
    fn code_formulas_placeholders_and_addresses_stay() {
        for text in [
            "`house` ``house`` $house$ $$house$$ \\(house\\) \\house{house} ```\nhouse\n```",
            "{{house}} {house} ${house} %(house)s %{house} <house> <|house|> https://house.org/house house@house.org",
            "~~~\nhouse\n~~~ \\begin{house} house \\end{house} house_green www.house.org",
        ] {
            assert_eq!(mixed(text, 1.0).0, text);
        }
        assert_eq!(mixed("the `house", 1.0).0.split(' ').next(), Some("la"));
    }

    #[test]
    fn the_rate_is_met() {
        let text = "house ".repeat(20_000);
        let share = |text: &str, basis| {
            let s = CodeSwitchSettings { rate: 0.15, basis, ..Default::default() };
            let (_, words, _, replaced) =
                mix_text(text, &dictionary(), "es", &s, &mut RowRandom::new(1, "t", "r"));
            replaced as f64 / words as f64
        };
        let half = "house unknown ".repeat(20_000);
        for (text, basis, expected) in [
            (&text, RateBasis::Translatable, 0.15),
            (&half, RateBasis::Translatable, 0.075),
            (&half, RateBasis::Token, 0.15),
        ] {
            let rate = share(text, basis);
            assert!((rate - expected).abs() < 0.01, "{rate} is not {expected}");
        }
    }

    proptest! {
        #[test]
        fn an_empty_dictionary_changes_nothing(text in "\\PC{0,60}") {
            let s = CodeSwitchSettings { rate: 1.0, ..Default::default() };
            let out = mix_text(&text, &Dictionary::default(), "es", &s, &mut RowRandom::new(1, "t", "r"));
            prop_assert_eq!(out.0, text);
        }
    }
}
