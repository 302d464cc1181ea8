//! Burmese syllables by the rules of Ding et al. (2019, ACM TALLIP 18(4), article 36), as XL-SUM's authors apply them.
use super::split;

const DOT_BELOW: char = '\u{1037}';
/// Silences the letter before it, which then closes the syllable.
const ASAT: char = '\u{103a}';
/// Stacks the letter behind it under the one before it.
const VIRAMA: char = '\u{1039}';
/// Units of so many characters with an asat are no syllable's end (they are vowels).
const LONG: usize = 4;

/// A vowel sign, tone mark or medial: it belongs to the letter before it.
fn is_dependent(c: char) -> bool {
    matches!(c, '\u{102b}'..='\u{1032}' | '\u{1036}'..='\u{1038}' | ASAT | '\u{103b}'..='\u{103e}')
}

/// The syllables of `text`; spaces are dropped and bind nothing.
pub fn syllables(text: &str) -> Vec<String> {
    let (swapped, usual) = (format!("{DOT_BELOW}{ASAT}"), format!("{ASAT}{DOT_BELOW}"));
    let text = text.replace(&swapped, &usual);
    let mut units: Vec<String> = vec![];
    for c in split(&text).flat_map(str::chars) {
        match units.last_mut().filter(|_| is_dependent(c)) {
            Some(unit) => unit.push(c),
            None => units.push(c.into()),
        }
    }
    // A silenced letter closes the syllable before it. Where that one has itself moved, it stands in its place.
    for i in 1..units.len() {
        if units[i].contains(ASAT) && units[i].chars().count() < LONG {
            let unit = std::mem::take(&mut units[i]);
            units[i - 1].push_str(&unit);
        }
    }
    units.retain(|unit| !unit.is_empty());
    // Letters that are stacked are one syllable, unless nothing stands on either side.
    let spaced = units.join(" ").replace(&format!(" {VIRAMA} "), &VIRAMA.to_string());
    split(&spaced).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn syllables_are_cut_before_each_letter_that_is_neither_silenced_nor_stacked() {
        assert_eq!(syllables("မြန်မာ နိုင်ငံ"), ["မြန်", "မာ", "နိုင်", "ငံ"]);
        assert_eq!(syllables("ဗုဒ္ဓ"), ["ဗု", "ဒ္ဓ"], "stacked");
        let (swapped, usual) = ("ခွင\u{1037}\u{103a}", "ခွင\u{103a}\u{1037}");
        assert_eq!(syllables(swapped), [usual], "a dot before an asat stands behind it");
        assert!(syllables(" ").is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_but_spaces(text in "[က-ဪါ-၏ \u{103a}\u{1039}]{0,30}") {
            let ordered = text.replace("\u{1037}\u{103a}", "\u{103a}\u{1037}");
            prop_assert_eq!(syllables(&text).concat(), ordered.split_whitespace().collect::<String>());
        }
    }
}
