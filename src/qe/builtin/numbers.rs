//! Numbers of two texts, compared by what they stand for.
use crate::data::languages::charset::digit;

/// The share of a pair's score that its numbers leave: 1 where all agree. A number that differs costs much, one that only one side writes in digits
/// little: it may stand in words on the other side.
pub(super) fn agreement(common: usize, source_only: usize, target_only: usize) -> f64 {
    let differing = source_only.min(target_only);
    let alone = source_only.abs_diff(target_only);
    (1 + common) as f64 / (1 + common + differing) as f64 * 0.95f64.powi(alone as i32)
}

/// Numbers in both, in the source alone, in the translation alone.
pub(super) fn compare(source: &str, translation: &str) -> (usize, usize, usize) {
    let mut rest = numbers(translation);
    let all = numbers(source);
    let mut common = 0;
    for a in &all {
        if let Some(i) = rest.iter().position(|b| is_same(*a, *b)) {
            rest.swap_remove(i);
            common += 1;
        }
    }
    (common, all.len() - common, rest.len())
}

/// The numbers in digits of any script: 1,000 and 1.000 and 1 000 are a thousand, 3.5 and 3,5 three and a half, 78万 is 780,000.
fn numbers(text: &str) -> Vec<f64> {
    if !text.chars().any(|c| digit(c).is_some()) {
        return vec![];
    }
    let chars: Vec<(Option<u32>, char)> = text.chars().map(|c| (digit(c), c)).collect();
    let digits_from = |i: usize| chars[i..].iter().take_while(|x| x.0.is_some()).count();
    let mut out = vec![];
    let mut i = 0;
    while i < chars.len() {
        let mut count = digits_from(i);
        if count == 0 {
            i += 1;
            continue;
        }
        let mut written = String::new();
        // 1 000 000, but not `in 2023 300 people`.
        let groups = count <= 3;
        loop {
            written.extend(chars[i..i + count].iter().filter_map(|x| char::from_digit(x.0?, 10)));
            i += count;
            let separator = chars.get(i).map(|x| x.1).filter(|c| is_separator(*c));
            let Some(separator) = separator else { break };
            count = digits_from(i + 1);
            let is_group = groups && count == 3 && !written.contains('.');
            let is_decimal =
                matches!(separator, '.' | ',' | '٫') && count > 0 && count != 3 && !written.contains('.');
            if !is_group && !is_decimal {
                break;
            }
            if is_decimal {
                written.push('.');
            }
            i += 1;
        }
        let scale = match chars.get(i).map(|x| x.1) {
            Some('千') => 1e3,
            Some('万' | '萬' | '만') => 1e4,
            Some('億' | '亿' | '억') => 1e8,
            Some('兆' | '조') => 1e12,
            _ => 1.0,
        };
        out.extend(written.parse::<f64>().ok().filter(|x| x.is_finite()).map(|x| x * scale));
    }
    out
}

fn is_separator(c: char) -> bool {
    matches!(c, '.' | ',' | ' ' | '\u{a0}' | '\u{202f}' | '\u{2009}' | '\'' | '’' | '٬' | '٫' | '，')
}

/// Equal, or of another scale that stands in words (5 million), or an hour of the other half of the day.
fn is_same(a: f64, b: f64) -> bool {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
    let hours = a <= 24.0 && b <= 24.0 && near((a - b).abs(), 12.0);
    let scaled = [1e2, 1e3, 1e4, 1e6, 1e8, 1e9].iter().any(|k| near(a * k, b) || near(b * k, a));
    near(a, b) || hours || scaled && a != 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_they_stand_for() {
        for (source, translation) in [
            ("783,562 km", "783 562 km"),
            ("783,562 km", "783.562 km"),
            ("3.5 litres", "3,5 litros"),
            ("In 2023 there were 12.", "در ۱۲ سال ۲۰۲۳"),
            ("780,000 people", "78万人"),
            ("5 million", "5000000"),
            ("at 4:30 p.m.", "a las 16:30"),
            ("300 million people", "3億人"),
            ("on 7/2/1999", "2. 7. 1999"),
            ("९ गाँव", "9 villages"),
        ] {
            let (_, a, b) = compare(source, translation);
            assert_eq!((a, b), (0, 0), "{source}: {:?} {:?}", numbers(source), numbers(translation));
        }
        assert_eq!(compare("3 tables", "4 mesas"), (0, 1, 1));
        assert_eq!(compare("two tables", "2 mesas"), (0, 0, 1));
        assert_eq!(numbers("1,000,000 and 2.50 or 1.2.3"), [1e6, 2.5, 1.2, 3.0]);
        assert!(agreement(0, 1, 1) < 0.6 && agreement(0, 0, 1) > 0.9 && agreement(2, 0, 0) == 1.0);
    }
}
