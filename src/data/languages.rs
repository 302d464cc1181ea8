//! The languages that the program knows by name.

/// A language under the names that the field gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Language {
    /// What this program writes: ISO 639-1 where there is one, else 639-3.
    pub code: &'static str,
    /// ISO 639-3.
    pub code3: &'static str,
    /// In English.
    pub name: &'static str,
    /// NLLB-200 and FLORES-200: 639-3 and script.
    pub nllb: &'static str,
    /// Written without spaces between words.
    pub unspaced: bool,
}

const fn of(code: &'static str, code3: &'static str, name: &'static str, nllb: &'static str) -> Language {
    Language { code, code3, name, nllb, unspaced: false }
}

const fn unspaced(language: Language) -> Language {
    Language { unspaced: true, ..language }
}

/// The languages known by name. The first 17 are those of the SDRRL paper.
pub const LANGUAGES: &[Language] = &[
    of("en", "eng", "English", "eng_Latn"),
    of("cs", "ces", "Czech", "ces_Latn"),
    of("da", "dan", "Danish", "dan_Latn"),
    of("uk", "ukr", "Ukrainian", "ukr_Cyrl"),
    of("bg", "bul", "Bulgarian", "bul_Cyrl"),
    of("fi", "fin", "Finnish", "fin_Latn"),
    of("hu", "hun", "Hungarian", "hun_Latn"),
    of("no", "nob", "Norwegian", "nob_Latn"),
    of("id", "ind", "Indonesian", "ind_Latn"),
    unspaced(of("ja", "jpn", "Japanese", "jpn_Jpan")),
    of("ko", "kor", "Korean", "kor_Hang"),
    of("pt", "por", "Portuguese", "por_Latn"),
    of("sl", "slv", "Slovenian", "slv_Latn"),
    of("vi", "vie", "Vietnamese", "vie_Latn"),
    of("pl", "pol", "Polish", "pol_Latn"),
    unspaced(of("th", "tha", "Thai", "tha_Thai")),
    unspaced(of("km", "khm", "Khmer", "khm_Khmr")),
    of("fr", "fra", "French", "fra_Latn"),
    of("es", "spa", "Spanish", "spa_Latn"),
    of("de", "deu", "German", "deu_Latn"),
    of("it", "ita", "Italian", "ita_Latn"),
    of("nl", "nld", "Dutch", "nld_Latn"),
    of("sv", "swe", "Swedish", "swe_Latn"),
    of("nn", "nno", "Norwegian Nynorsk", "nno_Latn"),
    of("is", "isl", "Icelandic", "isl_Latn"),
    of("ru", "rus", "Russian", "rus_Cyrl"),
    of("be", "bel", "Belarusian", "bel_Cyrl"),
    of("mk", "mkd", "Macedonian", "mkd_Cyrl"),
    of("sr", "srp", "Serbian", "srp_Cyrl"),
    of("hr", "hrv", "Croatian", "hrv_Latn"),
    of("bs", "bos", "Bosnian", "bos_Latn"),
    of("sk", "slk", "Slovak", "slk_Latn"),
    of("ro", "ron", "Romanian", "ron_Latn"),
    of("ca", "cat", "Catalan", "cat_Latn"),
    of("gl", "glg", "Galician", "glg_Latn"),
    of("eu", "eus", "Basque", "eus_Latn"),
    of("eo", "epo", "Esperanto", "epo_Latn"),
    of("la", "lat", "Latin", "lat_Latn"),
    of("lt", "lit", "Lithuanian", "lit_Latn"),
    of("lv", "lav", "Latvian", "lvs_Latn"),
    of("et", "est", "Estonian", "est_Latn"),
    of("el", "ell", "Greek", "ell_Grek"),
    of("tr", "tur", "Turkish", "tur_Latn"),
    of("az", "aze", "Azerbaijani", "azj_Latn"),
    of("uz", "uzb", "Uzbek", "uzn_Latn"),
    of("tk", "tuk", "Turkmen", "tuk_Latn"),
    of("kk", "kaz", "Kazakh", "kaz_Cyrl"),
    of("ky", "kir", "Kyrgyz", "kir_Cyrl"),
    of("mn", "mon", "Mongolian", "khk_Cyrl"),
    of("ar", "ara", "Arabic", "arb_Arab"),
    of("fa", "pes", "Persian", "pes_Arab"),
    of("ur", "urd", "Urdu", "urd_Arab"),
    of("he", "heb", "Hebrew", "heb_Hebr"),
    of("yi", "yid", "Yiddish", "ydd_Hebr"),
    of("hi", "hin", "Hindi", "hin_Deva"),
    of("mr", "mar", "Marathi", "mar_Deva"),
    of("ne", "nep", "Nepali", "npi_Deva"),
    of("bn", "ben", "Bengali", "ben_Beng"),
    of("pa", "pan", "Punjabi", "pan_Guru"),
    of("gu", "guj", "Gujarati", "guj_Gujr"),
    of("or", "ori", "Odia", "ory_Orya"),
    of("ta", "tam", "Tamil", "tam_Taml"),
    of("te", "tel", "Telugu", "tel_Telu"),
    of("kn", "kan", "Kannada", "kan_Knda"),
    of("ml", "mal", "Malayalam", "mal_Mlym"),
    of("si", "sin", "Sinhala", "sin_Sinh"),
    unspaced(of("zh", "zho", "Chinese", "zho_Hans")),
    unspaced(of("my", "mya", "Burmese", "mya_Mymr")),
    unspaced(of("lo", "lao", "Lao", "lao_Laoo")),
    of("ms", "msa", "Malay", "zsm_Latn"),
    of("jv", "jav", "Javanese", "jav_Latn"),
    of("tl", "tgl", "Tagalog", "tgl_Latn"),
    of("ka", "kat", "Georgian", "kat_Geor"),
    of("hy", "hye", "Armenian", "hye_Armn"),
    of("am", "amh", "Amharic", "amh_Ethi"),
    of("sw", "swa", "Swahili", "swh_Latn"),
    of("af", "afr", "Afrikaans", "afr_Latn"),
    of("zu", "zul", "Zulu", "zul_Latn"),
    of("sn", "sna", "Shona", "sna_Latn"),
    of("ak", "aka", "Akan", "aka_Latn"),
    of("cy", "cym", "Welsh", "cym_Latn"),
    of("ga", "gle", "Irish", "gle_Latn"),
];

/// Further names of languages in the table.
pub(super) const ALIASES: &[(&str, &str)] = &[
    ("nb", "no"),
    ("nor", "no"),
    ("norwegian bokmål", "no"),
    ("cze", "cs"),
    ("ger", "de"),
    ("fre", "fr"),
    ("slo", "sk"),
    ("slovene", "sl"),
    ("cmn", "zh"),
    ("chi", "zh"),
    ("zho_hant", "zh"),
    ("fas", "fa"),
    ("per", "fa"),
    ("lvs", "lv"),
    ("arb", "ar"),
    ("zsm", "ms"),
    ("swh", "sw"),
    ("ell_grek", "el"),
    ("castilian", "es"),
];
