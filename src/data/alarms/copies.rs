//! Answers that are a copy of what the model was asked: the system prompt, earlier turns, the question, its context.
use std::collections::HashSet;

use crate::data::{conversation::Prompt, words};

/// Words that an answer or a part of the prompt has at least to be compared as a whole.
const WHOLE: usize = 4;
/// Words of an n-gram.
const GRAM: usize = 4;
/// Words that an answer has at least for its n-grams to be counted: names, numbers and short facts repeat the question's words by right.
const COUNTED: usize = 8;

/// Share of an answer's word 4-grams that stand in the prompt from which on it is `mostly-copied`, where nothing is said. Of 427 answers that people
/// wrote to `assets/instructions` it marks 3, each an extract by request; 0.5 would mark 13, with corrections and whole sentences that answer a question.
pub const COPIED_SHARE: f64 = 0.8;

/// What of an answer is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copied {
    /// Nothing, or little.
    Little,
    /// At least the given share of its 4-grams.
    Mostly,
    /// It is one of the prompt's parts.
    Whole,
}

/// Words as the project cuts them, in scripts without spaces too, in small letters.
fn words_of(text: &str) -> Vec<String> {
    words::words(text).iter().map(|w| w.to_lowercase()).collect()
}

/// Compares an answer with every part of its prompt.
pub(super) fn copied(prompt: &Prompt, answer: &str, share: f64) -> Copied {
    let own = words_of(answer);
    if own.len() < WHOLE {
        return Copied::Little;
    }
    let question = prompt.question();
    let earlier = prompt.earlier.iter().map(|turn| turn.content.as_str());
    let texts = prompt.system.into_iter().chain(earlier).chain([prompt.instruction, prompt.input, &question]);
    let parts: Vec<Vec<String>> = texts.map(words_of).collect();
    if parts.contains(&own) {
        return Copied::Whole;
    }
    if own.len() < COUNTED {
        return Copied::Little;
    }
    let known: HashSet<&[String]> = parts.iter().flat_map(|part| part.windows(GRAM)).collect();
    let grams = own.len() + 1 - GRAM;
    let copied = own.windows(GRAM).filter(|gram| known.contains(gram)).count();
    if copied as f64 >= share * grams as f64 { Copied::Mostly } else { Copied::Little }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::conversation::{Role, Turn};

    fn of(prompt: Prompt, answer: &str) -> Copied {
        copied(&prompt, answer, COPIED_SHARE)
    }

    #[test]
    fn a_copy_of_any_part_of_the_prompt_is_seen() {
        let turns = [
            Turn::new(Role::User, "Tell me about the sea."),
            Turn::new(Role::Assistant, "It is wide and blue."),
        ];
        let input = "Dear Anna, thank you for the book that you sent me last week from Rome.";
        let prompt = Prompt {
            system: Some("You are a helpful assistant."),
            earlier: &turns,
            instruction: "Rewrite this letter in a formal way.",
            input,
        };
        for part in [
            input,
            "You are a helpful assistant",
            "It is wide, and blue!",
            "rewrite this letter in a formal way",
        ] {
            assert_eq!(of(prompt, part), Copied::Whole, "{part}");
        }
        assert_eq!(of(prompt, &prompt.question()), Copied::Whole);
        let most = "Here: Dear Anna, thank you for the book that you sent me last week from Rome.";
        assert_eq!(of(prompt, most), Copied::Mostly);
        assert_eq!(
            of(prompt, "Dear Ms. Rossi, I wish to thank you for the book sent from Rome."),
            Copied::Little
        );
        assert_eq!(of(prompt, "Wide and blue."), Copied::Little, "three words");
    }

    /// The share is of the answer's 4-grams, at the border too.
    #[test]
    fn the_share_is_of_the_answers_four_grams() {
        let prompt = Prompt::new(None, "one two three four five six seven eight", "");
        // 7 words in a row have 4 of 7 4-grams, 8 words in all.
        let answer = "one two three four five six seven ten eleven twelve";
        assert_eq!(copied(&prompt, answer, 4.0 / 7.0), Copied::Mostly);
        assert_eq!(copied(&prompt, answer, 4.0 / 7.0 + 1e-9), Copied::Little);
        // Seven words are too few to count.
        assert_eq!(copied(&prompt, "two three four five six seven eight", 0.1), Copied::Little);
    }

    #[test]
    fn short_facts_and_sentences_that_repeat_a_question_are_no_copies() {
        for (question, answer) in [
            ("What is the capital of France?", "The capital of France is Paris."),
            (
                "What is the boiling point of water at sea level?",
                "The boiling point of water at sea level is 100 degrees Celsius.",
            ),
            ("フランスの首都はどこですか。", "フランスの首都はパリです。"),
            (
                "Wer schrieb den Roman „Der Zauberberg“ im Jahr 1924?",
                "Den Roman „Der Zauberberg“ schrieb Thomas Mann im Jahr 1924.",
            ),
        ] {
            assert_eq!(of(Prompt::new(None, question, ""), answer), Copied::Little, "{answer}");
        }
    }

    #[test]
    fn copies_are_seen_in_scripts_without_spaces() {
        for (input, most) in [
            (
                "昨日私は友達と一緒に東京の大きな図書館へ行って、新しい本を三冊借りました。",
                "はい。昨日私は友達と一緒に東京の大きな図書館へ行って、新しい本を三冊借りました。",
            ),
            (
                "เมื่อวานฉันไปห้องสมุดใหญ่ในกรุงเทพกับเพื่อนและยืมหนังสือใหม่สามเล่ม",
                "ใช่ เมื่อวานฉันไปห้องสมุดใหญ่ในกรุงเทพกับเพื่อนและยืมหนังสือใหม่สามเล่ม",
            ),
            (
                "昨天我和朋友一起去了北京的大图书馆，借了三本新书。",
                "好的。昨天我和朋友一起去了北京的大图书馆，借了三本新书。",
            ),
        ] {
            assert_eq!(of(Prompt::new(None, "Rewrite.", input), input), Copied::Whole);
            assert_eq!(of(Prompt::new(None, "Rewrite.", input), most), Copied::Mostly, "{most}");
            assert_eq!(
                of(Prompt::new(None, "Rewrite.", most), "我们明天早上在学校门口见面，然后去公园散步。"),
                Copied::Little
            );
        }
    }
}
