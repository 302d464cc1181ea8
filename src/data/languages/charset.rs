//! Unicode's properties of characters, from the tables that the crate `regex` brings along; no list is kept by hand but what Unicode leaves open.
use std::sync::LazyLock;

use regex_syntax::{
    Parser,
    hir::{Class, HirKind},
};

/// A set of characters.
#[derive(Debug, Default)]
pub struct CharSet {
    /// Sorted.
    ranges: Vec<(char, char)>,
    /// A bit for each character of ASCII, which most are.
    ascii: u128,
}

impl CharSet {
    /// The set of a character class in the syntax of the crate `regex`, such as `[\p{M}\p{Nd}]`. A class that it does not know is empty.
    pub fn of(class: &str) -> CharSet {
        let Ok(parsed) = Parser::new().parse(class) else { return CharSet::default() };
        match parsed.kind() {
            HirKind::Class(Class::Unicode(set)) => {
                let ranges: Vec<_> = set.ranges().iter().map(|r| (r.start(), r.end())).collect();
                let of = |c: u8| ranges.iter().any(|(first, last)| (*first..=*last).contains(&char::from(c)));
                let ascii = (0..128).filter(|c| of(*c)).fold(0, |bits, c| bits | 1 << c);
                CharSet { ranges, ascii }
            }
            _ => CharSet::default(),
        }
    }

    /// Whether `c` is in the set.
    pub fn contains(&self, c: char) -> bool {
        if c.is_ascii() { self.ascii >> c as u32 & 1 == 1 } else { self.range_of(c).is_some() }
    }

    fn range_of(&self, c: char) -> Option<(char, char)> {
        let at = self.ranges.partition_point(|(_, last)| *last < c);
        self.ranges.get(at).copied().filter(|(first, _)| *first <= c)
    }
}

macro_rules! sets {
    ($($(#[$about:meta])* $name:ident, $set:ident, $class:expr;)*) => {$(
        static $set: LazyLock<CharSet> = LazyLock::new(|| CharSet::of($class));
        $(#[$about])*
        pub fn $name(c: char) -> bool {
            $set.contains(c)
        }
    )*};
}

sets! {
    /// Marks: they belong to the letter before them (vowel signs, virama, asat, tone marks, accents).
    is_any_mark, MARKS, r"\p{M}";
    /// Sentence_Terminal, and what ends sentences although the property leaves it out: the ellipsis, Khmer and Tibetan signs, the
    /// Thai end of a paragraph, and the places for dandas in each Indic block, which Unicode leaves empty and texts use (Odia's U+0B64).
    ends_sentence, TERMINALS, r"[\p{Sentence_Terminal}…៖។៕༎།༏༐༑๚๛\x{9E4}\x{9E5}\x{A64}\x{A65}\x{AE4}\x{AE5}\x{B64}\x{B65}\x{BE4}\x{BE5}\x{C64}\x{C65}\x{CE4}\x{CE5}\x{D64}\x{D65}]";
    /// Closing brackets and quotation marks of any kind (opening ones too, since languages disagree which is which), and marks of emphasis.
    closes, CLOSERS, r#"[\p{Pe}\p{Pf}\p{Pi}"'`*_＂＇〞〟„]"#;
    /// Letters of scripts that put no spaces between words, by Unicode's Line_Break classes ID and SA.
    is_unspaced_letter, UNSPACED, r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}々〆ー&&[\p{L}\p{M}]]";
    /// Formatting characters: invisible, part of no word's spelling but the joiners' ([`is_joiner`]).
    is_format, FORMAT, r"\p{Cf}";
}

static DIGITS: LazyLock<CharSet> = LazyLock::new(|| CharSet::of(r"\p{Nd}"));

/// As [`is_any_mark`], at once for the many letters that are none.
pub fn is_mark(c: char) -> bool {
    c >= '\u{300}' && is_any_mark(c)
}

/// Zero width joiner and non-joiner, and the soft hyphen: inside of a word they are part of its spelling.
pub fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}' | '\u{ad}')
}

/// The apostrophe in its forms: straight, typographic, modifier letters (ʼokina, Hausa, Ukrainian), Armenian, full width.
pub fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '’' | '‘' | 'ʼ' | 'ʻ' | 'ˈ' | '′' | '՚' | '＇' | '‛')
}

/// The value of a decimal digit of any script. Unicode keeps the ten of a script together, zero first.
pub fn digit(c: char) -> Option<u32> {
    if c.is_ascii() {
        return c.to_digit(10);
    }
    // Arabic's are the first behind those of ASCII.
    if c < '\u{660}' {
        return None;
    }
    DIGITS.range_of(c).map(|(first, _)| (c as u32 - first as u32) % 10)
}

/// Inside of a word: letters, digits, marks and joiners.
pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || is_mark(c) || is_joiner(c)
}

/// The letters of a script by its ISO 15924 code; `None` for codes whose letters are not told apart.
pub fn script(code: &str) -> Option<&'static CharSet> {
    SCRIPTS.iter().find(|(known, _)| *known == code).map(|(_, set)| set)
}

/// The code of a script whose letters are told apart, as it is kept here.
pub fn script_code(code: &str) -> Option<&'static str> {
    SCRIPTS.iter().find(|(known, _)| *known == code).map(|(known, _)| *known)
}

macro_rules! scripts {
    ($($code:literal $class:literal,)*) => {
        static SCRIPTS: LazyLock<Vec<(&str, CharSet)>> = LazyLock::new(|| vec![$(($code, CharSet::of($class))),*]);
    };
}

scripts! {
    "Latn" r"\p{scx=Latin}", "Cyrl" r"\p{scx=Cyrillic}", "Grek" r"\p{scx=Greek}", "Arab" r"\p{scx=Arabic}", "Hebr" r"\p{scx=Hebrew}",
    "Deva" r"\p{scx=Devanagari}", "Beng" r"\p{scx=Bengali}", "Guru" r"\p{scx=Gurmukhi}", "Gujr" r"\p{scx=Gujarati}",
    "Orya" r"\p{scx=Oriya}", "Taml" r"\p{scx=Tamil}", "Telu" r"\p{scx=Telugu}", "Knda" r"\p{scx=Kannada}", "Mlym" r"\p{scx=Malayalam}",
    "Sinh" r"\p{scx=Sinhala}", "Thai" r"\p{scx=Thai}", "Laoo" r"\p{scx=Lao}", "Tibt" r"\p{scx=Tibetan}", "Mymr" r"\p{scx=Myanmar}",
    "Geor" r"\p{scx=Georgian}", "Ethi" r"\p{scx=Ethiopic}", "Khmr" r"\p{scx=Khmer}", "Armn" r"\p{scx=Armenian}",
    "Hang" r"[\p{scx=Hangul}\p{scx=Han}]", "Jpan" r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}]", "Hans" r"[\p{scx=Han}\p{scx=Bopomofo}]",
    "Hant" r"[\p{scx=Han}\p{scx=Bopomofo}]", "Olck" r"\p{scx=Ol_Chiki}", "Tfng" r"\p{scx=Tifinagh}", "Mong" r"\p{scx=Mongolian}",
    "Mtei" r"\p{scx=Meetei_Mayek}", "Java" r"\p{scx=Javanese}", "Bali" r"\p{scx=Balinese}", "Sund" r"\p{scx=Sundanese}",
    "Bugi" r"\p{scx=Buginese}", "Syrc" r"\p{scx=Syriac}", "Thaa" r"\p{scx=Thaana}", "Nkoo" r"\p{scx=Nko}", "Cher" r"\p{scx=Cherokee}",
    "Cans" r"\p{scx=Canadian_Aboriginal}", "Adlm" r"\p{scx=Adlam}", "Vaii" r"\p{scx=Vai}", "Yiii" r"\p{scx=Yi}",
}

/// A character's form at full width as the usual one (`Ａ` as `A`, `１` as `1`, `．` as `.`).
pub fn half_width(c: char) -> char {
    match c as u32 {
        wide @ 0xFF01..=0xFF5E => char::from_u32(wide - 0xFEE0).unwrap_or(c),
        0x3000 => ' ',
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_unicodes() {
        for c in "!.?؟۔\u{b64}।॥။፧։。｡．！？⁇᱾…។།".chars() {
            assert!(ends_sentence(c), "{c}");
        }
        for c in ",;:،、aक".chars() {
            assert!(!ends_sentence(c), "{c}");
        }
        assert!("”’»」』）)]\"'".chars().all(closes) && !closes('a'));
        assert!(
            is_mark('\u{94d}') && is_mark('\u{103a}') && is_mark('\u{e34}') && !is_mark('a') && !is_mark('ไ')
        );
        assert!("学かカไກកကཀ".chars().all(is_unspaced_letter) && !"aक한".chars().any(is_unspaced_letter));
        for (digits, zero) in [("0٠۰०০០၀๐༠０", 0), ("9٩۹९৯៩၉๙༩９", 9)] {
            assert!(digits.chars().all(|c| digit(c) == Some(zero)), "{digits}");
        }
        assert!(DIGITS.ranges.iter().all(|(first, _)| first.is_ascii() || *first >= '\u{660}'));
        assert_eq!((digit('一'), digit('²'), digit('a')), (None, None, None));
        assert!(SCRIPTS.iter().all(|(_, set)| !set.ranges.is_empty()));
        assert!(script("Cyrl").is_some_and(|s| s.contains('ж') && !s.contains('a')));
        assert_eq!("ＡＢ１．".chars().map(half_width).collect::<String>(), "AB1.");
    }
}
