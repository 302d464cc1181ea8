//! Repetition in decoded texts.
use std::collections::HashSet;

use crate::data::languages::charset::{ends_sentence, is_mark, is_unspaced_letter, is_word};

/// Repetition that no writer means.
///
/// Words in a row: one word 5 times, two or three words 4 times, four to twelve words 3 times; runs without letters (`--- | ---`, `0 0 0`)
/// 12 times; whatever marks stand between them, one word of four letters 6 times, two to twelve words of six letters 4 times. Characters in a row (words that
/// never end): a piece of 2 to 40 characters that fills at least 16, 4 times, of letters or of three letters and marks; one letter 12 times. In
/// scripts without spaces the same of letters alone, whatever stands between them, and a piece of 20 to 120 letters 3 times. Irregular repetition:
/// less than half of the pairs of words are distinct in 16 to 150 words, or of the runs of 4 words in 40 words or more, or less than 45 % of the runs of
/// 4 letters in 40 letters or more without spaces (the lowest of the FLORES sentences in English, Spanish, Czech, Japanese, Thai: 0.70 and 0.59).
pub fn is_loop(text: &str) -> bool {
    words_repeat(text) || letters_repeat(text) || unspaced_repeat(text)
}

fn words_repeat(text: &str) -> bool {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    let letters = |w: &String| w.chars().any(char::is_alphabetic);
    for n in 1..=12 {
        let needed = [5, 4, 4].get(n - 1).copied().unwrap_or(3);
        let found = runs(&words, n, needed, |piece| if piece.iter().any(letters) { needed } else { 12 });
        if found {
            return true;
        }
    }
    if words.len() >= 40 {
        let total = words.len() - 3;
        let distinct: HashSet<&[String]> = words.windows(4).collect();
        if distinct.len() * 2 < total {
            return true;
        }
    }
    let bare_words: Vec<&str> =
        words.iter().flat_map(|w| w.split(|c| !is_word(c))).filter(|w| !w.is_empty()).collect();
    for n in 1..=12 {
        let (copies, letters) = if n == 1 { (6, 4) } else { (4, 6) };
        let long = |piece: &[&str]| {
            piece.iter().flat_map(|w| w.chars()).filter(|c| c.is_alphabetic()).count() >= letters
        };
        if runs(&bare_words, n, copies, |piece| if long(piece) { copies } else { usize::MAX }) {
            return true;
        }
    }
    let spoken: Vec<&str> = words.iter().map(|w| bare(w)).filter(|w| !w.is_empty()).collect();
    (16..=150).contains(&spoken.len()) && {
        let distinct: HashSet<&[&str]> = spoken.windows(2).collect();
        distinct.len() * 2 < spoken.len() - 1
    }
}

/// Without punctuation at its ends.
fn bare(word: &str) -> &str {
    word.trim_matches(|c: char| !c.is_alphanumeric() && !is_mark(c))
}

fn letters_repeat(text: &str) -> bool {
    let chars: Vec<char> = text.chars().flat_map(char::to_lowercase).collect();
    (1..=40).any(|n| {
        let needed = if n == 1 { 12 } else { 4.max(16usize.div_ceil(n)) };
        // Spaces would make this the test of words in a row; digits, rules (-----) and code are no language.
        runs(&chars, n, needed, |piece| {
            let letters = piece.iter().filter(|c| c.is_alphabetic()).count();
            let spoken = piece.iter().all(|c| c.is_alphabetic() || is_mark(*c) || parts_sentences(*c));
            if spoken && (letters >= 3 || piece.iter().all(|c| !parts_sentences(*c))) {
                needed
            } else {
                usize::MAX
            }
        })
    })
}

/// Marks between words and sentences, without those of code.
fn parts_sentences(c: char) -> bool {
    matches!(c, ',' | '.' | '!' | '?' | '፡' | '፣' | '،' | '、' | '·') || ends_sentence(c)
}

/// Letters of scripts without spaces, marks with them; all else is left out.
fn unspaced_repeat(text: &str) -> bool {
    let letters: Vec<char> = text.chars().filter(|c| *c >= '\u{e00}' && is_unspaced_letter(*c)).collect();
    if letters.len() < 16 {
        return false;
    }
    let in_a_row = (2..=120).take_while(|n| n * 3 <= letters.len()).any(|n| {
        let needed = if n >= 20 { 3 } else { 4.max(16usize.div_ceil(n)) };
        runs(&letters, n, needed, |_| needed)
    });
    in_a_row
        || letters.len() >= 40 && {
            let distinct: HashSet<&[char]> = letters.windows(4).collect();
            distinct.len() * 100 < (letters.len() - 3) * 45
        }
}

/// Whether some `n` items stand in a row at least as often as `needed(those items)`, which is `least` or more.
fn runs<T: PartialEq>(items: &[T], n: usize, least: usize, needed: impl Fn(&[T]) -> usize) -> bool {
    let mut same = 0;
    for i in n..items.len() {
        same = if items[i] == items[i - n] { same + 1 } else { 0 };
        let copies = same / n + 1;
        if same > 0 && copies >= least && copies >= needed(&items[i + 1 - n..=i]) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_seen_in_scripts_without_spaces_and_in_long_texts() {
        assert!(is_loop("申し訳ありません申し訳ありません申し訳ありません申し訳ありません"));
        assert!(is_loop("ขอโทษครับขอโทษครับขอโทษครับขอโทษครับ"));
        assert!(is_loop("aaaaaaaaaaaaaaaa"));
        assert!(!is_loop("ははははは。これは冗談です。"));
        assert!(!is_loop("very very very good"));
        assert!(!is_loop(
            "-----------------------------------------\n========================================="
        ));
        let lines = ["the cat sat on the mat", "a dog ran to the park", "my bird sang in the tree"];
        let refrain = [0, 1, 2, 0, 2, 1, 1, 0, 2, 0, 1, 2, 2].map(|i| lines[i]).join(". ");
        assert!(is_loop(&refrain));
        let facts: String = (0..12).map(|i| format!("Item number {i} weighs {} grams. ", i * 7)).collect();
        assert!(!is_loop(&facts));
    }

    #[test]
    fn loops_with_marks_between_and_irregular_ones_are_seen() {
        for text in [
            "对不起，但对不起，但对不起，但对不起，但对不起，但对不起，但对不起，但对不起",
            "我很抱歉。我很抱歉。我很抱歉。我很抱歉。我很抱歉。我很抱歉。我很抱歉。我很抱歉。",
            "申し訳ありません、申し訳ありません、申し訳ありません、申し訳ありません、申し訳ありません、申し訳ありません。",
            "ខ្ញុំសុំទោស។ខ្ញុំសុំទោស។ខ្ញុំសុំទោស។ខ្ញុំសុំទោស។ខ្ញុំសុំទោស។ខ្ញុំសុំទោស។ខ្ញុំសុំទោស។",
            "တောင်းပန်ပါတယ်။ တောင်းပန်ပါတယ်၊ တောင်းပန်ပါတယ်။ တောင်းပန်ပါတယ်။",
            "죄송합니다.죄송합니다.죄송합니다.죄송합니다.죄송합니다.",
            "ይቅርታ፡ይቅርታ፡ይቅርታ፡ይቅርታ፡ይቅርታ፡ይቅርታ",
            "Sorry,sorry,sorry,sorry,sorry,sorry,sorry",
            "lo siento/lo siento/lo siento/lo siento/lo siento",
            "آسف جدا، آسف جدا، آسف جدا، آسف جدا، آسف جدا",
            "ຂໍໂທດເດີ້ ຂໍໂທດເດີ້. ຂໍໂທດເດີ້ ຂໍໂທດເດີ້ 1 ຂໍໂທດເດີ້",
            "我们明天去北京看朋友并且吃饭然后回家睡觉吧。我们明天去北京看朋友并且吃饭然后回家睡觉吧。我们明天去北京看朋友并且吃饭然后回家睡觉吧。",
            "我很抱歉，真的很抱歉，我很抱歉，非常抱歉，我真的很抱歉，我很抱歉，真的很抱歉，我非常抱歉，我很抱歉，真的抱歉，我很抱歉，真的很抱歉，我很抱歉",
            "I am sorry. I am so sorry. I am very sorry, I am sorry, so sorry. I am very sorry. I am so sorry, I am very sorry, I am sorry.",
        ] {
            assert!(is_loop(text), "{text}");
        }
        for text in [
            "55555555555 ตลกมาก",
            "ช้าๆๆๆ",
            "ドキドキドキドキする。",
            "被告人たちの氏名は、ババ・カンジャール、ブータ・カンジャール、ランプロ・カンジャール、ガザ・カンジャール、ヴィシュヌ・カンジャールです。",
            "ha-ha-ha-ha-ha-ha-ha-ha-ha",
            "<div><div></div></div></div></div></div>",
            "|a|a|a|a|a|a|a|a| 1, 2, 3, 4, 5, 6, 7, 8",
            "¡Gol! ¡Gol! ¡Gol! ¡Gol!",
            "妈妈骑马，马慢，妈妈骂马。",
            "No, no, no, no, no!",
            "Red is warm. Blue is cold. Green is calm. Black is dark. White is light. Grey is dull.",
        ] {
            assert!(!is_loop(text), "{text}");
        }
    }
}
