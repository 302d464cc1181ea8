use super::*;
use crate::data::tokenizer::sentencepiece::NLLB_CODES;
use proptest::prelude::*;

#[test]
fn languages_are_found_by_any_of_their_names() {
    for name in ["no", "nb", "nob", "nor", "nob_Latn", "Norwegian", "nb_NO"] {
        assert_eq!(find(name).map(|l| l.code), Some("no"), "{name}");
    }
    assert_eq!(find("pt-BR").map(|l| l.name), Some("Portuguese"));
    assert_eq!(find("es-419").map(|l| l.name), Some("Spanish"));
    assert_eq!(find("zh_CN").map(|l| l.nllb), Some("zho_Hans"));
    assert!(find("xx").is_none() && find("").is_none() && find("de-x").is_none());
    assert_eq!((name("tlh"), name("srp_Latn")), ("tlh", "Serbian"));
    assert!(same_language("spa_Latn", "es") && !same_language("es", "pt"));
    assert_eq!(find("arb_Latn").map(|l| l.code), Some("arb_Latn"), "another script is another language");
}

#[test]
fn every_language_of_nllb_answers_to_its_codes_and_its_name() {
    for nllb in NLLB_CODES.split_whitespace() {
        let row =
            LANGUAGES.iter().find(|l| l.nllb == nllb).unwrap_or_else(|| panic!("{nllb} is not in the table"));
        assert_eq!(code(nllb).unwrap(), row.code);
        assert_eq!(code(row.name).unwrap(), row.code);
        assert_eq!(code(&nllb.to_lowercase()).unwrap(), row.code);
        assert_eq!(name(row.code), row.name);
        assert!(row.scripts().all(|s| charset::script_code(s).is_some()), "{nllb}");
        for short in [row.code1, row.code3] {
            let several = LANGUAGES.iter().filter(|l| l.code1 == short || l.code3 == short).count() > 1;
            match code(short) {
                Ok(code) => assert!(code == row.code || several, "{short} is {code}, not {}", row.code),
                Err(e) => assert!(short.is_empty() || e.to_string().contains(row.code), "{short}: {e}"),
            }
        }
    }
    for (other, own) in [
        ("ig", "ibo_Latn"),
        ("Yoruba", "yor_Latn"),
        ("ceb", "ceb_Latn"),
        ("sq", "als_Latn"),
        ("qu", "quy_Latn"),
        ("quy", "quy_Latn"),
        ("ps", "pbt_Arab"),
        ("zh", "zh"),
        ("Greek", "el"),
        ("fas_Arab", "fa"),
        ("tyv_Cyrl", "tyv_Cyrl"),
        ("Farsi", "fa"),
        ("Filipino", "tl"),
        ("fil_Latn", "tl"),
        ("cmn_Hant", "zho_Hant"),
        ("ekk_Latn", "et"),
        ("iw", "he"),
    ] {
        assert_eq!(code(other).unwrap(), own, "{other}");
    }
    assert!(
        is_unspaced("zho_Hant")
            && is_unspaced("bod_Tibt")
            && is_unspaced("zh-TW")
            && !is_unspaced("quy_Latn")
    );
}

#[test]
fn a_script_is_kept() {
    for (name, own) in [
        ("zh-TW", "zho_Hant"),
        ("zh-Hant", "zho_Hant"),
        ("zh_Hant_HK", "zho_Hant"),
        ("zh-HK", "zho_Hant"),
        ("zh-Hans-TW", "zh"),
        ("zho_Hant", "zho_Hant"),
        ("pa-Arab", "pan_Arab"),
        ("pa-PK", "pan_Arab"),
        ("pa-IN", "pa"),
        ("sr-Latn", "srp_Latn"),
        ("sr-Latn-RS", "srp_Latn"),
        ("sr-Cyrl", "sr"),
        ("uz-Cyrl", "uzn_Cyrl"),
        ("az-Cyrl", "azj_Cyrl"),
        ("ms-Arab", "zsm_Arab"),
        ("ks-Deva", "kas_Deva"),
        ("ace-Arab", "ace_Arab"),
        ("taq_tfng", "taq_Tfng"),
    ] {
        assert_eq!(code(name).unwrap(), own, "{name}");
        assert_eq!(code(own).unwrap(), own, "{own}");
    }
    assert_eq!(written("sr-Latn").unwrap().scripts(), ["Latn"]);
    assert_eq!(written("sr").unwrap().scripts(), ["Cyrl", "Latn"]);
    assert_eq!(
        (without_script("zho_Hant"), without_script("sr-Latn"), without_script("xx")),
        ("zh", "sr", "xx")
    );
}

#[test]
fn what_is_not_known_or_not_clear_is_an_error_that_helps() {
    for (wrong, near) in [
        ("quy_Latm", "quy_Latn"),
        ("Quechua", "Ayacucho Quechua"),
        ("Checz", "Czech"),
        ("Spansh", "Spanish"),
        ("ace", "ace_Latn"),
        ("ku", "ckb_Arab"),
        ("Kurdish", "ckb_Arab"),
        ("sh", "hr or sr"),
    ] {
        let error = code(wrong).unwrap_err().to_string();
        assert!(error.contains(near) && error.contains(wrong), "{error}");
        assert!(require(wrong).is_err());
    }
    for stranger in [
        "Klingon", "Frisian", "Romani", "Mari", "Chechen", "Komi", "xx", "tlh", "Elvish", "Udmurt", "Cornish",
    ] {
        let error = code(stranger).unwrap_err().to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }
}

#[test]
fn codes_are_unique() {
    for (i, a) in LANGUAGES.iter().enumerate() {
        for b in &LANGUAGES[i + 1..] {
            assert!(a.code != b.code && a.nllb != b.nllb && a.name != b.name, "{a:?} {b:?}");
        }
        assert!(is_nllb_code(a.nllb));
    }
    for (alias, code) in ALIASES {
        assert!(LANGUAGES.iter().any(|l| l.code == *code), "{alias}: {code}");
        assert!(AMBIGUOUS.iter().all(|(name, _)| name != alias), "{alias}");
    }
}

proptest! {
    #[test]
    fn any_name_is_a_language_or_an_error(name in "\\PC{0,12}|[a-z]{2,3}[_-][A-Za-z]{2,4}") {
        if let Ok(own) = code(&name) {
            prop_assert_eq!(code(&own).unwrap(), own);
        }
        let _ = (find(&name), is_unspaced(&name), super::name(&name), is_nllb_code(&name));
    }
}
