//! Parts of a text that are no language: code, formulas, placeholders, tags. They are neither cut nor altered.
use std::{ops::Range, sync::LazyLock};

use regex::Regex;

/// In order of precedence where two begin at one place.
static SPANS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(concat!(
        // Fences of code; an unpaired one opens code up to the end.
        r"(?s:```.*?(?:```|\z)|~~~.*?(?:~~~|\z))",
        // Inline code.
        r"|``[^\n]+?``|`[^`\n]+`",
        // TeX: environments, displayed and inline formulas.
        r"|(?s:\\begin\{[^}\n]*\}.*?\\end\{[^}\n]*\})|(?s:\$\$.+?\$\$)|(?s:\\\(.+?\\\)|\\\[.+?\\\])",
        // A formula's first dollar has no space behind it, its last none before; pairs of prices are left out below.
        r"|\$[^$\s](?:[^$\n]*[^$\s])?\$",
        // Placeholders: {{x}}, ${x}, {x}, %(x)s; tags of XML and of chat templates.
        r"|\$?\{\{[^{}\n]*\}\}|\$?\{[^{}\n]*\}|%\([^()\s]*\)[-#0-9. +]*[a-zA-Z]|<[/!|]?[a-zA-Z][^<>\n]*>",
    ))
    .ok()
});

/// The protected spans of `text`, in order, not overlapping.
pub fn spans(text: &str) -> Vec<Range<usize>> {
    // Most texts have none.
    if !text.contains(['`', '~', '$', '\\', '{', '%', '<']) {
        return vec![];
    }
    let Some(regex) = SPANS.as_ref() else { return vec![] };
    let mut out = vec![];
    let mut at = 0;
    while let Some(found) = regex.find_at(text, at) {
        let formula = found.as_str().starts_with('$')
            && !found.as_str().starts_with("$$")
            && found.as_str().ends_with('$');
        // "$5 and US$10": the second dollar opens an amount.
        let amounts = formula && text[found.end()..].starts_with(|c: char| c.is_ascii_digit());
        if amounts {
            at = found.start() + 1;
        } else {
            out.push(found.range());
            at = found.end();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn code_formulas_placeholders_and_tags_are_found() {
        for (text, expected) in [
            ("Let $x. Y$ be. Then $$a. B$$ holds.", vec!["$x. Y$", "$$a. B$$"]),
            ("\\begin{eq} a. B \\end{eq} Done.", vec!["\\begin{eq} a. B \\end{eq}"]),
            ("Use `a. B` here. \\(x\\) \\[y\\]", vec!["`a. B`", "\\(x\\)", "\\[y\\]"]),
            ("~~~\nhouse\n~~~ x ```\na", vec!["~~~\nhouse\n~~~", "```\na"]),
            (
                "%s %(house)s %(n)5.2f {{house}} {x y} ${z} 50 % (of it)",
                vec!["%(house)s", "%(n)5.2f", "{{house}}", "{x y}", "${z}"],
            ),
            ("<b>bold</b> <|im_end|> a < b and c > d", vec!["<b>", "</b>", "<|im_end|>"]),
            ("It costs $5 and US$10. He has $20 now.", vec![]),
            ("plain", vec![]),
        ] {
            let found: Vec<&str> = spans(text).into_iter().map(|r| &text[r]).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn spans_are_in_order(text in "[`$\\\\{}<>%()~a-z. ]{0,60}|\\PC{0,60}") {
            let mut at = 0;
            for span in spans(&text) {
                prop_assert!(span.start >= at && span.end > span.start && text.get(span.clone()).is_some());
                at = span.end;
            }
        }
    }
}
