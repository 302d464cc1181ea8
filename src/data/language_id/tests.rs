use super::*;

#[test]
fn the_detector_knows_the_languages_of_the_paper_and_the_table_those_of_the_detector() {
    for l in &LANGUAGES[..17] {
        assert!(trigrams(l).is_some(), "{l:?}");
    }
    for lang in Lang::all() {
        assert!(find(lang.code()).is_some(), "{lang:?}");
    }
}

#[test]
fn the_wrong_language_is_seen_and_the_right_one_left_alone() {
    let english = "The mountain is covered with snow for most of the year.";
    let spanish = "La montaña está cubierta de nieve durante la mayor parte del año.";
    assert_eq!(contradicts(english, "es", &["en"]), Some("en"));
    assert_eq!(contradicts(spanish, "es", &["en"]), None);
    assert_eq!(contradicts(spanish, "en", &[]), Some("es"));
    assert_eq!(contradicts(english, "th", &[]), Some("en"));
    assert_eq!(contradicts("ติดตั้ง LibreOffice บนเครื่อง", "th", &["en"]), None);
    assert_eq!(
        contradicts("Open Office", "uk", &["en"]),
        Some(known(whatlang::detect("Open Office")).map_or("und", |d| d.0))
    );
    assert_eq!(contradicts("OK.", "es", &["en"]), None, "too short to tell");
    let code = "Usa esto:\n```python\nfor line in the_file: print(the, words, that, are, english)\n```";
    assert_eq!(contradicts(code, "es", &["en"]), None);
    assert_eq!(contradicts(english, "xx", &["en"]), None, "an unknown language is not judged");
}

#[test]
fn a_language_may_be_written_in_any_of_its_scripts() {
    let latin =
        "Komitet će objaviti završni izveštaj sledeće nedelje, a članovi mogu slati komentare do petka.";
    let cyrillic =
        "Комитет ће објавити завршни извештај следеће недеље, а чланови могу слати коментаре до петка.";
    let english = "The committee will publish the final report next week, and members can send comments.";
    for text in [latin, cyrillic] {
        assert_eq!(contradicts(text, "sr", &["en"]), None, "{text}");
    }
    assert_eq!(contradicts(english, "sr", &["en"]), Some("en"));
    assert_eq!(contradicts(english, "sr-Latn", &["en"]), Some("en"));
    assert!(contradicts(cyrillic, "sr-Latn", &["en"]).is_some(), "a script that was asked for");
    assert!(
        contradicts(latin, "sr-Cyrl", &["en"]).is_none(),
        "the table's own script is none that was asked for"
    );
    for (text, language) in [
        ("Бу китоб жуда қизиқарли ва мен уни ўқиб чиқдим.", "uz"),
        ("Бу китаб чох мараглыдыр вә мән ону охудум.", "az"),
        ("Bu kitap juda qiziqarli va men uni o‘qib chiqdim.", "uz"),
        ("Компьютер техникасы өте жақсы дамыды біздің елде.", "kk"),
    ] {
        assert_eq!(contradicts(text, language, &["en"]), None, "{language}: {text}");
    }
    assert!(contradicts("Ыйык китептерди окуп чыктым мен бүгүн.", "es", &["en"]).is_some());
}

#[test]
fn what_no_identifier_knows_is_said() {
    assert_eq!(
        (coverage("es"), coverage("ibo_Latn"), coverage("xx")),
        (Coverage::Full, Coverage::Script, Coverage::None)
    );
    assert_eq!(
        (coverage("sr-Latn"), coverage("zho_Hant"), coverage("pa-Arab")),
        (Coverage::Full, Coverage::Full, Coverage::Script)
    );
    assert!(warning("es").is_none());
    for language in ["Igbo", "yo", "ceb", "xx"] {
        assert!(warning(language).is_some_and(|w| w.contains("--language-id")), "{language}");
    }
    assert!(not_covered().len() > 100 && not_covered().contains(&"ibo_Latn"));
    assert!(
        contradicts("Esta frase está en español y no en igbo.", "am", &["en"]).is_some(),
        "another script"
    );
}

#[test]
fn labels_of_the_usual_models_are_languages() {
    for (label, code) in [
        ("__label__en", "en"),
        ("__label__zh", "zh"),
        ("__label__eng_Latn", "en"),
        ("__label__zho_Hant", "zho_Hant"),
        ("__label__ibo_Latn", "ibo_Latn"),
        ("__label__als_Latn", "als_Latn"),
        ("__label__sr", "sr"),
        ("__label__srp_Latn", "sr"),
        ("__label__ckb", "ckb_Arab"),
        ("__label__cmn_Hani", "zh"),
    ] {
        assert_eq!(language_of_label(label).map(|l| l.code), Some(code), "{label}");
    }
    assert!(language_of_label("__label__spam").is_none() && language_of_label("__label__als").is_none());
    // Codes that replaced those of FLORES-200 in FLORES+, OpenLID 2 and GlotLID.
    for (label, code) in [
        ("cmn_Hans", "zh"),
        ("cmn_Hant", "zho_Hant"),
        ("ekk_Latn", "et"),
        ("lvs_Latn", "lv"),
        ("gug_Latn", "grn_Latn"),
        ("fil_Latn", "tl"),
        ("yue_Hani", "yue_Hant"),
        ("swh_Latn", "sw"),
        ("arb_Arab", "ar"),
        ("pes_Arab", "fa"),
        ("nob_Latn", "no"),
        ("min", "min_Latn"),
        ("ace", "ace_Latn"),
    ] {
        assert_eq!(language_of_label(label).map(|l| l.code), Some(code), "{label}");
    }
    for nllb in crate::data::tokenizer::sentencepiece::NLLB_CODES.split_whitespace() {
        assert_eq!(language_of_label(&format!("__label__{nllb}")).map(|l| l.nllb), Some(nllb));
    }
}

/// The labels of lid.176.
const WIKIPEDIAS: &str = "en ru de fr it ja es ceb tr pt uk eo pl sv nl he zh hu ar ca fi cs fa sr el vi bg ko no mk ro id th hy da ta hi hr sh be ka te kk \
    war lt gl sk bn eu sl kn ml mr et az ms sq la bs nn ur lv my tt af oc nds ky ast tl is ia si gu km br ba uz bo pa vo als ne cy jbo \
    fy mn lb ce ug tg sco sa cv jv min io or as new ga mg an ckb sw bar lmo yi arz mhr azb sah pnb su bpy pms ilo wuu ku ps ie xmf yue \
    gom li mwl kw sd hsb scn gd pam bh mai vec mt dv wa mzn am qu eml cbk tk rm os vls yo lo lez so myv diq mrj dsb frr ht gn bxr kv \
    sc nah krc bcl nap gv av rue xal pfl dty hif co lrc vep tyv";
/// Of these the languages that are not in the table.
const OTHERS: &str = "nds ia br vo als jbo fy ce sco cv io new an bar mhr sah pnb bpy pms wuu ie xmf gom mwl kw hsb pam dv wa mzn eml cbk rm os vls lez myv diq mrj \
    dsb frr bxr kv nah krc bcl nap gv av rue xal pfl dty hif co lrc vep tyv";

#[test]
fn every_label_of_lid_176_is_a_language_or_said_to_be_none() {
    let labels: Vec<&str> = WIKIPEDIAS.split_whitespace().collect();
    assert_eq!(labels.len(), 176);
    let others: Vec<&str> = labels.iter().copied().filter(|l| language_of_label(l).is_none()).collect();
    assert_eq!(others, OTHERS.split_whitespace().collect::<Vec<_>>());
    for (label, code) in
        [("sh", "hr"), ("ku", "kmr_Latn"), ("bh", "bho_Deva"), ("arz", "arz_Arab"), ("no", "no")]
    {
        assert_eq!(language_of_label(label).map(|l| l.code), Some(code));
    }
}

#[test]
#[ignore = "needs a model and what fasttext predicts with it: SDRRL_TEST_LID=FILE SDRRL_TEST_LID_PREDICTIONS=FILE (scripts/golden_fasttext.py FILE TEXTS)"]
fn a_real_model_predicts_what_fasttext_predicts() {
    let file = |name: &str| std::env::var(name).expect("a file");
    let model = FastText::open(file("SDRRL_TEST_LID").as_ref()).unwrap();
    let expected = std::fs::read_to_string(file("SDRRL_TEST_LID_PREDICTIONS")).unwrap();
    let mut texts = 0;
    for line in expected.lines() {
        let [label, probability, text] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let (found, p) = model.predict(text).unwrap();
        assert_eq!(model.labels()[found], label, "{text}");
        assert!(
            (f64::from(p) - probability.parse::<f64>().unwrap()).abs() < 1e-5,
            "{text}: {p} for {probability}"
        );
        texts += 1;
    }
    println!("{texts} texts");
    assert!(texts > 100);
}
