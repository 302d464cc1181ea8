//! Whether a reply is in the language that was asked for.
use crate::data::{alarms::has_content, language_id::contradicts};

/// Whether `text` is empty or reliably in another language than `language`. Short texts and unknown languages get the benefit of the doubt,
/// so that a rate of these is a lower bound.
pub fn is_off_target(text: &str, language: &str) -> bool {
    !has_content(text) || contradicts(text, language, &["en"]).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clear_cases_are_off_target() {
        assert!(
            is_off_target("", "es") && is_off_target("The weather is very nice here today, I think.", "es")
        );
        assert!(
            !is_off_target("Creo que hoy hace muy buen tiempo aquí.", "es") && !is_off_target("OK", "es")
        );
    }
}
