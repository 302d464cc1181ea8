//! Text for HTML and SVG.

use super::out::turns;

/// `text` with the characters replaced that mean something in HTML and SVG, or that XML does not allow.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Not allowed in XML.
            c if c.is_control() && !"\n\r\t".contains(c) => out.push('\u{fffd}'),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            // They would change the order of what stands behind them in the page.
            c if turns(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_direction_and_controls_do_not_reach_the_page() {
        assert_eq!(escape("a\u{202e}<b>\u{2066}\u{1b}"), "a\\u{202e}&lt;b&gt;\\u{2066}\u{fffd}");
        assert_eq!(escape("עברית\u{200f}\n"), "עברית\u{200f}\n");
    }
}
