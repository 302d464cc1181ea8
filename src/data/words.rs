//! Words and what lies between them, for dictionaries; and capitals.

/// A word, or the text between two words. All tokens' concatenation is the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    /// As it stands.
    pub text: &'a str,
    /// Letters and digits, with apostrophes and hyphens inside.
    pub is_word: bool,
}

/// Splits `text` into words and what lies between.
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '\'' | '’' | '-') || is_mark(c);
    let mut out = vec![];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_word = first.is_alphanumeric();
        let ends = |c: char| if is_word { !inside(c) } else { c.is_alphanumeric() };
        let mut end = rest.find(ends).unwrap_or(rest.len());
        if is_word {
            end = rest[..end].trim_end_matches(['\'', '’', '-']).len();
        }
        let (head, tail) = rest.split_at(end.max(first.len_utf8()));
        out.push(Token { text: head, is_word });
        rest = tail;
    }
    out
}

/// The words alone.
pub fn words(text: &str) -> Vec<&str> {
    tokens(text).into_iter().filter(|t| t.is_word).map(|t| t.text).collect()
}

/// Combining marks and vowel signs belong to the word that they stand in.
fn is_mark(c: char) -> bool {
    matches!(c as u32, 0x300..=0x36F | 0x900..=0x903 | 0x93A..=0x94F | 0xE31 | 0xE34..=0xE3A | 0xE47..=0xE4E | 0x17B4..=0x17D3)
}

/// The words that a phrase beginning at the first token could have: up to the first separator that is not one space.
pub fn phrase<'a>(tokens: &[Token<'a>]) -> Vec<&'a str> {
    let mut out = vec![];
    for t in tokens {
        match (t.is_word, t.text) {
            (true, text) => out.push(text),
            (false, " ") => {}
            _ => break,
        }
    }
    out
}

/// `to` in capitals where `from` is, or with a first capital where `from` has one (behind opening marks).
pub fn with_case_of(from: &str, to: &str) -> String {
    let mut letters = from.chars().filter(|c| c.is_alphabetic());
    let first = letters.next().is_some_and(char::is_uppercase);
    let rest: Vec<char> = letters.collect();
    if first && rest.len() > 1 && rest.iter().all(|c| c.is_uppercase()) {
        return to.to_uppercase();
    }
    if first && from != "I" { capitalised(to) } else { to.into() }
}

/// With the first letter as a capital, also behind opening marks.
pub fn capitalised(text: &str) -> String {
    match text.char_indices().find(|(_, c)| c.is_alphabetic()) {
        Some((i, c)) => format!("{}{}{}", &text[..i], c.to_uppercase(), &text[i + c.len_utf8()..]),
        None => text.into(),
    }
}

/// The name among `known` that is nearest to `unknown`, if any is near.
pub fn nearest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.into_iter().map(|name| (strsim::jaro_winkler(unknown, name), name));
    scored.filter(|(score, _)| *score > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
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
    }

    #[test]
    fn case_is_carried_over() {
        for (from, to, expected) in [
            ("House", "casa", "Casa"),
            ("HOUSE", "casa", "CASA"),
            ("house", "casa", "casa"),
            ("What", "¿qué", "¿Qué"),
            ("I", "yo", "yo"),
        ] {
            assert_eq!(with_case_of(from, to), expected);
        }
    }

    proptest! {
        #[test]
        fn tokens_concatenate_to_the_text(text in "\\PC{0,60}") {
            let all = tokens(&text);
            prop_assert!(all.iter().all(|t| !t.text.is_empty()));
            prop_assert_eq!(all.iter().map(|t| t.text).collect::<String>(), text);
        }
    }
}
