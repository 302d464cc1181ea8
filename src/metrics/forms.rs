//! Unicode's two ways to write a letter with its accent: one character (NFC), or the letter and a mark (NFD).
use unicode_normalization::is_nfc;

/// What to say where one side has its accents as letters of their own and the other as marks behind letters: no metric takes them for equal. Each side
/// has a name and its lines.
pub fn differ(
    hypotheses: (&str, &mut dyn Iterator<Item = &String>),
    references: (&str, &mut dyn Iterator<Item = &String>),
) -> Option<String> {
    let decomposed = |lines: &mut dyn Iterator<Item = &String>| {
        lines.fold((0, 0), |(all, not), line| (all + 1, not + usize::from(!is_nfc(line))))
    };
    let (own, theirs) = (decomposed(hypotheses.1), decomposed(references.1));
    let (most, least) = (own.1.max(theirs.1), own.1.min(theirs.1));
    (most > 2 * least).then(|| {
        format!(
            "{} of {} lines of {} are not in Unicode's form NFC, of {} {}: the same letters count as different ones; bring both into one form",
            own.1, own.0, hypotheses.0, references.0, theirs.1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_that_differ_are_counted() {
        let (composed, decomposed) = (vec!["caf\u{e9}".to_string()], vec!["cafe\u{301}".to_string()]);
        let said = |a: &Vec<String>, b: &Vec<String>| differ(("a", &mut a.iter()), ("b", &mut b.iter()));
        assert!(
            said(&composed, &decomposed)
                .unwrap()
                .starts_with("0 of 1 lines of a are not in Unicode's form NFC, of b 1")
        );
        assert!(said(&decomposed, &composed).unwrap().contains("1 of 1 lines of a"));
        assert_eq!((said(&composed, &composed), said(&decomposed, &decomposed)), (None, None));
        // Letters that have no composed form in NFC (Hindi with a nukta) are on both sides.
        let hindi = vec!["\u{958}".to_string()];
        assert_eq!(said(&hindi, &hindi), None);
    }
}
