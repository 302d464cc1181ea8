//! Words and what lies between them, for dictionaries; and capitals.
use std::sync::LazyLock;

use icu_segmenter::{WordSegmenter, WordSegmenterBorrowed, options::WordBreakInvariantOptions};

use super::languages::{
    charset::{is_apostrophe, is_mark, is_unspaced_letter, is_word},
    without_script,
};

/// A word, or the text between two words. All tokens' concatenation is the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    /// As it stands.
    pub text: &'a str,
    /// Letters and digits with their marks and joiners, with apostrophes and hyphens inside.
    pub is_word: bool,
}

/// Splits `text` into words and what lies between. Scripts without spaces are cut by Unicode's dictionaries (Japanese, Chinese, Thai, Lao, Khmer,
/// Burmese) or into syllables (Tibetan).
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    units(text, &|_| false)
}

/// As [`tokens`]; in scripts without spaces, neighbours that are one word to `known` are one token.
pub fn units<'a>(text: &'a str, known: &dyn Fn(&str) -> bool) -> Vec<Token<'a>> {
    let inside = |c: char| is_word(c) || is_apostrophe(c) || matches!(c, '-' | '·' | '׳' | '״' | TSHEG);
    let ends = |c: char| is_apostrophe(c) || matches!(c, '-' | '·' | '׳' | '״' | TSHEG);
    let mut out = Vec::with_capacity(text.len() / 3);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let starts_word = first.is_alphanumeric();
        let at_end = |c: char| if starts_word { !inside(c) } else { c.is_alphanumeric() };
        let mut end = rest.find(at_end).unwrap_or(rest.len());
        if starts_word {
            end = rest[..end].trim_end_matches(ends).len();
        }
        let (head, tail) = rest.split_at(end.max(first.len_utf8()));
        if starts_word && head.chars().any(|c| c >= '\u{e00}' && is_unspaced_letter(c)) {
            segments(head, known, &mut out);
        } else {
            out.push(Token { text: head, is_word: starts_word });
        }
        rest = tail;
    }
    out
}

/// Tibetan's mark between syllables.
const TSHEG: char = '་';

/// Pieces that one word may consist of.
const LONGEST_WORD: usize = 8;

static SEGMENTER: LazyLock<WordSegmenterBorrowed<'static>> =
    LazyLock::new(|| WordSegmenter::new_dictionary(WordBreakInvariantOptions::default()));

fn segments<'a>(run: &'a str, known: &dyn Fn(&str) -> bool, out: &mut Vec<Token<'a>>) {
    let mut ends: Vec<usize> = SEGMENTER
        .segment_str(run)
        // The dictionary of Burmese cuts other languages of its script inside of syllables.
        .filter(|at| *at > 0 && !run[*at..].starts_with(is_mark))
        .collect();
    if ends.last() != Some(&run.len()) {
        ends.push(run.len());
    }
    let (mut start, mut i) = (0, 0);
    while i < ends.len() {
        let longer = (i + 1..ends.len().min(i + LONGEST_WORD)).rev();
        let last = longer
            .into_iter()
            .find(|j| !run[start..ends[*j]].ends_with(TSHEG) && known(&run[start..ends[*j]]));
        let last = last.unwrap_or(i);
        let text = &run[start..ends[last]];
        out.push(Token { text, is_word: text.chars().any(char::is_alphanumeric) });
        (start, i) = (ends[last], last + 1);
    }
}

/// The words alone.
pub fn words(text: &str) -> Vec<&str> {
    let mut all = tokens(text);
    all.retain(|t| t.is_word);
    all.into_iter().map(|t| t.text).collect()
}

/// The words that a phrase beginning at the first token could have: up to the first separator that is not one space.
pub fn phrase<'a>(tokens: &[Token<'a>]) -> Vec<&'a str> {
    let mut out: Vec<&str> = vec![];
    let mut spaced = true;
    for t in tokens {
        match (t.is_word, t.text) {
            // Two words without a space between them are of a script that has none: no phrase.
            (true, _) if !spaced => break,
            (true, text) => {
                out.push(text);
                spaced = false;
            }
            (false, " ") => spaced = true,
            _ => break,
        }
    }
    out
}

/// `to`, of language `language`, in capitals where `from` is, or with a first capital where `from` has one (behind opening marks).
pub fn with_case_of(from: &str, to: &str, language: &str) -> String {
    let mut letters = from.chars().filter(|c| c.is_alphabetic());
    let first = letters.next().is_some_and(char::is_uppercase);
    let rest: Vec<char> = letters.collect();
    if first && rest.len() > 1 && rest.iter().all(|c| c.is_uppercase()) {
        return to.chars().map(|c| upper(c, language)).collect();
    }
    if first && from != "I" { capitalised(to, language) } else { to.into() }
}

/// With the first letter as a capital, also behind opening marks.
pub fn capitalised(text: &str, language: &str) -> String {
    let Some((i, c)) = text.char_indices().find(|(_, c)| c.is_alphabetic()) else { return text.into() };
    let rest = &text[i + c.len_utf8()..];
    match rest.strip_prefix('j') {
        // One letter in Dutch.
        Some(rest) if c == 'i' && without_script(language) == "nl" => format!("{}IJ{rest}", &text[..i]),
        _ => format!("{}{}{rest}", &text[..i], upper(c, language)),
    }
}

/// A capital letter by the rules of the language: the Turkic i keeps its dot; Georgian has capitals for whole headlines only, which are left out.
fn upper(c: char, language: &str) -> String {
    match c {
        'i' if ["tr", "az", "crh_Latn"].contains(&without_script(language)) => "İ".into(),
        'ა'..='ჿ' => c.into(),
        _ => c.to_uppercase().collect(),
    }
}

/// Small letters, Turkic I as ı and İ as i.
pub fn turkic_lowercase(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c {
            'I' => vec!['ı'],
            'İ' => vec!['i'],
            other => other.to_lowercase().collect(),
        })
        .collect()
}

/// The name among `known` that is nearest to `unknown`, if any is near.
pub fn nearest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.into_iter().map(|name| (strsim::jaro_winkler(unknown, name), name));
    scored.filter(|(score, _)| *score > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// The number of letters of a word, marks and joiners left out.
pub fn letters(word: &str) -> usize {
    word.chars().filter(|c| c.is_alphanumeric() && !is_mark(*c)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_keep_what_is_inside_them() {
        assert_eq!(
            words("Don't stop—well-known 'quoted' x2."),
            ["Don't", "stop", "well-known", "quoted", "x2"]
        );
        assert_eq!(words("¿Qué?"), ["Qué"]);
        assert_eq!(phrase(&tokens("a b, c")), ["a", "b"]);
        for (text, word) in [
            ("वह विद्यालय बड़ा है।", "विद्यालय"),
            ("আমার বন্ধু এসেছে।", "বন্ধু"),
            ("அந்த பள்ளி பெரியது.", "பள்ளி"),
            ("ഈ പുസ്തകം നല്ലതാണ്.", "പുസ്തകം"),
            ("ఇది పుస్తకం.", "పుస్తకం"),
            ("ಇದು ಪುಸ್ತಕ.", "ಪುಸ್ತಕ"),
            ("આ પુસ્તક છે.", "પુસ્તક"),
            ("ਇਹ ਕਿਤਾਬ ਹੈ।", "ਕਿਤਾਬ"),
            ("ଏହା ବହି ଅଟେ।", "ବହି"),
            ("මෙය පොතකි ක්‍රීඩා.", "ක්‍රීඩා"),
            ("این کتاب را می‌خوانم.", "می‌خوانم"),
            ("ይህ ትምህርት ነው።", "ትምህርት"),
            ("Bu oʻqituvchi.", "oʻqituvchi"),
            ("Це п’ять книг.", "п’ять"),
        ] {
            assert!(words(text).contains(&word), "{word}: {:?}", words(text));
        }
    }

    #[test]
    fn scripts_without_spaces_are_cut_into_words() {
        for (text, word) in [
            ("これは学校です。", "学校"),
            ("这是我的学校。", "学校"),
            ("นี่คือโรงเรียนของฉัน", "โรงเรียน"),
            ("ນີ້ແມ່ນໂຮງຮຽນ", "ໂຮງຮຽນ"),
            ("နေ့ ဒါဟာကျောင်းဖြစ်ပါတယ်", "ကျောင်း"),
            ("នេះ សាលា ធំ។", "សាលា"),
        ] {
            assert!(words(text).contains(&word), "{word}: {:?}", words(text));
        }
        assert_eq!(words("ང་སློབ་གྲྭ་ལ།"), ["ང", "སློབ", "གྲྭ", "ལ"]);
        let known = |word: &str| word == "སློབ་གྲྭ" || word == "学校教育";
        let found: Vec<&str> = units("ང་སློབ་གྲྭ་ལ།", &known).into_iter().map(|t| t.text).collect();
        assert_eq!(found, ["ང", "་", "སློབ་གྲྭ", "་", "ལ", "།"]);
        assert!(units("日本の学校教育は", &known).iter().any(|t| t.text == "学校教育"));
        assert_eq!(phrase(&tokens("学校教育")).len(), 1);
    }

    #[test]
    fn case_is_carried_over() {
        for (from, to, language, expected) in [
            ("House", "casa", "es", "Casa"),
            ("HOUSE", "casa", "es", "CASA"),
            ("house", "casa", "es", "casa"),
            ("What", "¿qué", "es", "¿Qué"),
            ("I", "yo", "es", "yo"),
            ("First", "ilk", "tr", "İlk"),
            ("FIRST", "ilk", "az", "İLK"),
            ("First", "ilk", "es", "Ilk"),
            ("House", "სახლი", "ka", "სახლი"),
            ("HOUSE", "სახლი", "ka", "სახლი"),
            ("Ice", "ijs", "nl", "IJs"),
        ] {
            assert_eq!(with_case_of(from, to, language), expected);
        }
        assert_eq!(turkic_lowercase("IĞDIR İL"), "ığdır il");
    }

    proptest! {
        #[test]
        fn tokens_concatenate_to_the_text(text in "\\PC{0,60}|[ก-๛ぁ-ん一-十ក-៓က-၉་ཀ-ཀྵa' -]{0,40}") {
            let all = units(&text, &|w| w.len() % 2 == 0);
            prop_assert!(all.iter().all(|t| !t.text.is_empty()));
            prop_assert_eq!(all.iter().map(|t| t.text).collect::<String>(), text);
        }
    }
}
