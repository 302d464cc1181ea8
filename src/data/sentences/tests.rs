use super::*;
use proptest::prelude::*;

#[test]
fn sentences_end_where_readers_end_them() {
    for (text, expected) in [
        ("Hello there. How are you?", vec!["Hello there.", "How are you?"]),
        ("Dr. Smith paid 3.50 dollars. He left.", vec!["Dr. Smith paid 3.50 dollars.", "He left."]),
        ("J. R. Tolkien wrote it. Yes!", vec!["J. R. Tolkien wrote it.", "Yes!"]),
        ("He said \"Stop.\" Then he ran.", vec!["He said \"Stop.\"", "Then he ran."]),
        ("これは本です。あれも本です。", vec!["これは本です。", "あれも本です。"]),
        ("¿Qué es? ¡Nada! Ya.", vec!["¿Qué es?", "¡Nada!", "Ya."]),
        ("version 2.0 is out", vec!["version 2.0 is out"]),
        ("1. First item\n2. Second item", vec!["First item", "Second item"]),
        ("Use this:\n```\nlet x = 1;\n```\nDone.", vec!["Use this:", "Done."]),
        ("See\nhttps://example.org/a.b\nnow", vec!["See", "now"]),
        ("3 + 4 = 7", vec![]),
        (
            "I was born in the U.S.A. My name is Benjamin D. Lee.",
            vec!["I was born in the U.S.A.", "My name is Benjamin D. Lee."],
        ),
        ("We arrived at 5 p.m. Then we ate.", vec!["We arrived at 5 p.m.", "Then we ate."]),
        (
            "Last week, the head of the F.B.I. James B. Gray resigned. Mr. Gray was away.",
            vec!["Last week, the head of the F.B.I. James B. Gray resigned.", "Mr. Gray was away."],
        ),
        (
            "Other good editions are in vol. 4. It is rare.",
            vec!["Other good editions are in vol. 4.", "It is rare."],
        ),
        ("See Fig. 3 and Eq. 4. It is clear.", vec!["See Fig. 3 and Eq. 4.", "It is clear."]),
        ("He works at Acme Inc. She does not.", vec!["He works at Acme Inc.", "She does not."]),
        ("The U.S. Army came. They left.", vec!["The U.S. Army came.", "They left."]),
        (
            "Gen. Lee and Rep. Smith met Sen. Jones. They talked.",
            vec!["Gen. Lee and Rep. Smith met Sen. Jones.", "They talked."],
        ),
    ] {
        assert_eq!(sentences(text, "en"), expected, "{text}");
    }
}

#[test]
fn quotations_code_lists_and_breaks_are_minded() {
    for (text, expected) in [
        ("The sky is... blue. It is.", vec!["The sky is... blue.", "It is."]),
        ("Wait... What? Yes!", vec!["Wait...", "What?", "Yes!"]),
        ("Really?! No way... OK.", vec!["Really?!", "No way...", "OK."]),
        ("He said: \"Stop. Now.\" Then left.", vec!["He said: \"Stop. Now.\"", "Then left."]),
        ("(This is one. This is two.) Three.", vec!["(This is one. This is two.)", "Three."]),
        ("Hi!!! How are you???", vec!["Hi!!!", "How are you???"]),
        ("Let $x. Y$ be a set. Then $$a. B$$ holds.", vec!["Let $x. Y$ be a set.", "Then $$a. B$$ holds."]),
        ("Use `a. B` here. Done.", vec!["Use `a. B` here.", "Done."]),
        ("\\begin{eq} a. B \\end{eq} Done.", vec!["\\begin{eq} a. B \\end{eq} Done."]),
        ("😀 Hi. 👨‍👩‍👧 Bye. 🎉", vec!["😀 Hi.", "👨‍👩‍👧 Bye."]),
        ("\u{feff}Hi. You.", vec!["Hi.", "You."]),
        ("A.\r\nB.\r\n", vec!["A.", "B."]),
        ("One\u{2028}Two\rThree\u{85}Four", vec!["One", "Two", "Three", "Four"]),
        ("It`s here. It is. Yes.", vec!["It`s here.", "It is.", "Yes."]),
        ("It is.  It was. [2] So it is.[a] Yes", vec!["It is.", "It was. [2]", "So it is.[a]", "Yes"]),
        (
            "He left (\"Go.\"). \"Why?\" she asked. \"No.\"",
            vec!["He left (\"Go.\").", "\"Why?\" she asked.", "\"No.\""],
        ),
        ("1. Take it. 2. Leave it. 3. Run!", vec!["Take it.", "Leave it.", "Run!"]),
        ("a) One thing b) Another c) A third", vec!["One thing", "Another", "A third"]),
        (
            "In 44 B.C. Caesar died. He was born in 100 B.C. Rome fell later.",
            vec!["In 44 B.C. Caesar died.", "He was born in 100 B.C.", "Rome fell later."],
        ),
        (" \n\n ", vec![]),
    ] {
        assert_eq!(sentences(text, "en"), expected, "{text}");
    }
}

#[test]
fn each_language_has_its_own_ends_and_abbreviations() {
    for (language, text, expected) in [
        ("ur", "یہ ایک کتاب ہے۔ وہ ایک قلم ہے۔ کیا آپ ٹھیک ہیں؟ جی ہاں۔", 4),
        ("ar", "ما اسمك؟ اسمي أحمد. أنا من مصر.", 3),
        ("ar", "هذه تجربة، للغة العربية.", 1),
        ("fa", "حال شما چطور است؟ من خوبم.", 2),
        ("hi", "यह किताब है। वह कलम है। क्या आप ठीक हैं? हाँ।", 4),
        ("hi", "पहला॥ दूसरा॥", 2),
        ("bn", "এটি একটি বই। ওটি একটি কলম। আপনি কেমন আছেন?", 3),
        ("my", "သူ ကျောင်းသို့ သွားသည်။ သူမ အိမ်မှာ ရှိသည်။", 2),
        ("my", "ယနေ့ မိုးရွာသည်။နေမကောင်းပါ။", 2),
        ("km", "នេះជាសៀវភៅ។ នោះជាប៊ិច។ តើអ្នកសុខសប្បាយទេ?", 3),
        ("am", "ይህ መጽሐፍ ነው። ያ እስክሪብቶ ነው፡፡ ደህና ነህ፧", 3),
        ("hy", "Սա գիրք է։ Դա գրիչ է: Ինչպե՞ս ես։", 3),
        ("el", "Τι κάνεις; Είμαι καλά. Εσύ;", 3),
        ("zh", "这是书。那是笔！你好吗？我很好。", 4),
        ("zh", "他说：“你好。”然后走了。", 1),
        ("zh", "第一文｡第二文｡", 2),
        ("zh", "这是书．那是笔．", 2),
        ("zh", "值是３．５元。", 1),
        ("ja", "「何？」と彼は言った。そして去った。", 2),
        ("ja", "すごい！！本当に？？はい。", 3),
        ("bod_Tibt", "འདི་དཔེ་ཆ་རེད། དེ་སྨྱུ་གུ་རེད།", 2),
        ("de", "Ich habe am 3. Juni Geburtstag. Jonas ist Fan vom 1. FC Köln, und du?", 2),
        ("de", "Das kostet ca. 5 Euro, z. B. im Laden. Danach gehen wir.", 2),
        ("de", "Herr Dr. Müller kommt aus St. Gallen. Er ist 40 Jahre alt.", 2),
        ("de", "Siehe Abs. 3 und Nr. 5. Danach weiter.", 2),
        ("es", "El Sr. López vive en EE.UU. desde 1990. La Sra. Ruiz no.", 2),
        ("fr", "M. Dupont est arrivé. Il habite av. Foch, n° 5.", 2),
        ("cs", "Narodil se 3. Května v Praze. Je to tak.", 2),
        ("ru", "Он живёт на ул. Ленина. Она учится.", 2),
        ("fr", "« Oui. » Il dit non. « Et toi ? » Bien.", 4),
        ("ur", "قیمت ۱۔۵ روپے ہے۔ ٹھیک ہے۔", 2),
        ("ar", "قال د. أحمد إن الاجتماع غدا. وغادر.", 2),
        ("id", "Bpk. Budi tinggal di Jl. Sudirman. Ia guru.", 2),
        ("sw", "Bw. Juma alifika. Kisha akaondoka.", 2),
        ("hu", "Pl. Pest szép. Dr. Kovács ott lakik.", 2),
        ("cs", "7. října se motor oddělil. Nic se nestalo.", 2),
        ("de", "3. Juni ist mein Geburtstag. Ich feiere.", 2),
        ("de", "»Wirklich?« Er ging. »Ja.« Sie auch.", 4),
        ("bg", "„Да.“ Тя каза. „Не.“ Край.", 4),
        ("es", "Fue en el año 300 a. C. Después llegó Roma. Vino el Sr. Gómez, etc. Trajo vino.", 4),
        ("ru", "Он родился в 1950 г. в г. Москва. Она нет.", 2),
        ("uk", "Це було о 10 год. 30 хв. ранку. Так.", 2),
        ("he", "ד\"ר כהן הגיע. הוא אמר \"שלום.\" היא יצאה.", 3),
        ("ml", "ഇത് ഡോ. കെ.പി. മോഹനൻ. അതെ.", 2),
        ("zh", "我们去看《摔跤吧！爸爸》好吗？好！", 2),
        ("or", "ଏହା ବହି ଅଟେ୤ତାହା କଲମ ଅଟେ୤", 2),
        ("nl", "Dhr. De Vries is er. Hij komt bijv. Morgen.", 2),
    ] {
        let found = sentences(text, language);
        assert_eq!(found.len(), expected, "{language}: {found:?}");
    }
    assert_eq!(sentences("Das gilt z. B. Hier nicht.", "de").len(), 1);
}

/// Time grows with the text.
#[test]
fn marks_that_never_close_cost_little() {
    for piece in ["\"([«", "x. ", "1. Aa ", "„“", "[1] "] {
        let text = piece.repeat(50_000);
        let begun = std::time::Instant::now();
        sentences(&text, "de");
        assert!(begun.elapsed().as_secs() < 20, "{piece}: {:?}", begun.elapsed());
    }
}

#[test]
fn joining_keeps_lists_code_and_line_breaks() {
    let text = "- One. Two.\n\n```py\nx = 1\n```\n  * Three\n";
    let upper: Vec<String> = sentences(text, "en").iter().map(|s| s.to_uppercase()).collect();
    assert_eq!(join(&split(text, "en"), &upper), "- ONE. TWO.\n\n```py\nx = 1\n```\n  * THREE\n");
}

#[test]
fn joining_spaces_sentences_as_their_script_does() {
    for (language, text, translated, expected) in [
        ("ja", "これは本です。あれも本です。", ["This is a book.", "That too."], "This is a book. That too."),
        ("ja", "日本。 韓国。", ["Japan.", "Korea."], "Japan. Korea."),
        (
            "en",
            "This is a book. That is a pen.",
            ["これは本です。", "あれはペンです。"],
            "これは本です。あれはペンです。",
        ),
        ("en", "This is a book.\nThat is a pen.", ["这是书。", "那是笔。"], "这是书。\n那是笔。"),
        ("hi", "यह है।वह है।", ["It is.", "That is."], "It is. That is."),
        ("en", "One. Two.", ["หนึ่ง", "สอง"], "หนึ่ง สอง"),
        ("zh", "好。好！", ["ดี", "ดี"], "ดี ดี"),
    ] {
        assert_eq!(join(&split(text, language), &translated.map(String::from)), expected, "{text}");
    }
}

proptest! {
    #[test]
    fn pieces_concatenate_to_the_text(text in "[a-zA-Z.!?`\\n\\t 。¿0-9)\"$“”-]{0,80}|\\PC{0,60}", which in 0..6usize) {
        let language = ["en", "de", "ja", "el", "hy", "xx"][which];
        let pieces = split(&text, language);
        let whole: String = pieces.iter().map(|p| match p { TextPiece::Sentence(s) | TextPiece::Keep(s) => *s }).collect();
        prop_assert_eq!(&whole, &text);
        let own: Vec<String> = sentences(&text, language).iter().map(|s| s.to_string()).collect();
        prop_assert_eq!(join(&pieces, &own), text);
    }
}
