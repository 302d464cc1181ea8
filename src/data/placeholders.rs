//! Texts with {names} in them: prompts that people write.

/// `text` with values in the places of the names that `value` knows. Other braces stay, and so does whatever stands in a value: it is text.
pub fn filled(text: &str, value: &dyn Fn(&str) -> Option<String>) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('{') {
        let (before, behind) = rest.split_at(at);
        out += before;
        let found = behind.find('}').and_then(|end| Some((value(&behind[1..end])?, end)));
        rest = match found {
            Some((value, end)) => {
                out += &value;
                &behind[end + 1..]
            }
            None => {
                out.push('{');
                &behind[1..]
            }
        };
    }
    out + rest
}

/// What stands in braces in `text` and looks like a name: letters, digits, `-` and `_`.
pub fn names(text: &str) -> impl Iterator<Item = &str> {
    let behind = text.match_indices('{').map(|(at, _)| &text[at + 1..]);
    let name = behind.filter_map(|rest| Some(&rest[..rest.find('}')?]));
    let is_name =
        |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "-_".contains(c));
    name.filter(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_and_values_are_text() {
        let value = |name: &str| match name {
            "text" => Some("a {translation} b".to_string()),
            "translation" => Some("c {text} $1".to_string()),
            _ => None,
        };
        let filled = |text: &str| filled(text, &value);
        assert_eq!(filled("{text} = {translation}"), "a {translation} b = c {text} $1");
        assert_eq!(filled("{other} {{text} {"), "{other} {a {translation} b {");
        assert_eq!(filled(""), "");
    }

    #[test]
    fn what_looks_like_a_name_is_one() {
        let found: Vec<&str> = names("{a} {b-c} {{d_1}} {} { e } {\"f\": 1} {g").collect();
        assert_eq!(found, ["a", "b-c", "d_1"]);
    }
}
