//! What a full stop behind a word means, by language: abbreviations, numbers that are ordinals, words that begin sentences.
use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use crate::data::{languages::without_script, words::letters};

/// Abbreviations by language, a language a line (the file's head says where they are from).
static LISTS: LazyLock<HashMap<&str, HashSet<&str>>> = LazyLock::new(|| {
    let lines = include_str!("abbreviations.txt").lines().filter(|l| !l.starts_with('#'));
    lines.filter_map(|l| l.split_once(' ')).map(|(code, words)| (code, words.split(' ').collect())).collect()
});

/// A full stop and what stands around it.
pub(super) struct Place<'a> {
    /// The sentence so far.
    pub sentence: &'a str,
    /// The last word of it.
    pub word: &'a str,
    /// The word behind the space.
    pub next: &'a str,
    /// That has a full stop too.
    pub has_stop: bool,
    /// A dash stands before it.
    pub dash: bool,
}

/// The rules of one language.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    /// Abbreviations that stand before what they belong to: no sentence ends behind them.
    titles: &'static str,
    /// The same before a number.
    numbered: &'static str,
    /// Abbreviations that may end a sentence: one ends where a word of `starters` follows.
    others: &'static str,
    /// Times, eras and degrees: a sentence ends where a capital follows, unless it has only begun (`At 5 a.m. Mr. Smith went`).
    closing: &'static str,
    /// Words that a sentence begins with which goes on behind a time.
    fronting: &'static str,
    /// Further abbreviations: as `others`.
    listed: Option<&'static HashSet<&'static str>>,
    /// Words that begin sentences, and hardly ever names.
    starters: &'static str,
    /// So that a capital says little.
    nouns_have_capitals: bool,
    /// Sentences may begin with a small letter.
    pub small_begins: bool,
    /// `3. Juni`: a number with a full stop is an ordinal.
    pub ordinals: bool,
    /// The semicolon is the question mark.
    pub semicolon_asks: bool,
    /// The colon is a full stop.
    pub colon_ends: bool,
}

const ENGLISH: Rules = Rules {
    titles: "v mr mrs ms messrs mme dr drs prof st mt ft gen rep sen gov pres lt col capt cpt sgt maj adm hon rev fr sr jr vs e.g i.e cf viz approx dept est ave blvd rd",
    numbered: "no nos vol p pp fig figs eq eqs sec sect ch chap art par para ver ed n°",
    others: "etc inc ltd co corp llc bros al dec jan feb mar apr jun jul aug sept sep oct nov jr sr esq b.a m.a",
    starters: "a about after all although an and another are as at because before but by can could did do does during each even every few finally for from \
               had has have he her here his how however i if in instead is it its just later let many maybe meanwhile more most my never next no nobody not now of \
               often on once one only or our perhaps please she should since so some sometimes soon still such suddenly thank that the their then there therefore \
               these they this those though thus to today tomorrow under unfortunately until was we well were what when where whether which while who why will with \
               would yes yesterday yet you your",
    closing: "a.m p.m a.d b.c b.c.e c.e ph.d m.d m.b.a ll.m ll.b ll.d j.d",
    fronting: "at on in by around about before after since until from during near circa",
    ..NONE
};

const GERMAN: Rules = Rules {
    titles: "dr prof hr fr frl st z.b d.h bzw ca evtl ggf inkl exkl max min sog vgl dipl ing med phil geb gest u.a z.t s.o s.u o.ä i.d.r v.a d.i mag univ",
    numbered: "abs nr art bd s st kap abb tab fig ziff § aufl jg",
    others: "usw etc u.s.w u.v.m co str tel jan feb apr aug sept okt nov dez mio mrd a.d v.chr n.chr",
    starters: "aber alle als am an auch auf aus bei bitte da dabei dafür damit danach dann das dein dem den denn der deshalb die dies diese dieser dieses doch dort du \
               ein eine einer er erst es etwa für gestern heute hier ich ihr im in ja jede jeder jetzt kein können man mein mit morgen nach nein noch nun nur ob oder \
               ohne schon sein seine seit sie sind so und unser vielleicht vom von vor wann warum was weil welche wenn wer wie wir wo zu zum zur zwar",
    ordinals: true,
    nouns_have_capitals: true,
    ..NONE
};

const ROMANCE: Rules = Rules {
    titles: "sr sra srta srs sres d dña dr dra dres prof profa ud uds vd vds st sta sto mons lic ing arq gral cap cmdte p.ej ej ee.uu fr aa.vv \
             m mm mme mmes mlle mlles me mgr ste sig sigg sig.ra dott avv on arch geom rag spett ecc.mo exmo exma eng av avda c/ pza",
    numbered: "n no nº núm núms pág págs p pp art arts cap vol fig figs tel tomo ed n° num chap fasc",
    others: "etc ecc cía cia s.a s.l s.p.a s.r.l ltda co inc av.j.-c ap.j.-c jr",
    closing: "a.c d.c a.m p.m",
    fronting: "en a hacia desde hasta antes después alrededor para por em até depois nel nell dal verso vers dès en à au",
    starters: "a al además ahora algunos antes así aunque como con cuando de después desde donde el ella ellos en entonces es esa ese eso esta este esto estos hay hoy la las \
               le lo los luego más mi muchos no nos nosotros para pero por porque que qué quién se según si sí sin sobre su sus también todo tras tu un una y ya yo \
               il elle ils elles nous vous je tu on ce cette ces les des une mais dans pour avec lui lei noi voi loro questo questa ma gli un uno per \
               o os as um uma ele eles ela elas nós não mas isso isto",
    ..NONE
};

const SLAVIC: Rules = Rules {
    titles: "napr st vs mgr ing dr doc prof bc mudr judr rndr phdr tzv tj např resp př sv p pí sl inž hab lek św ul al pl m.in np tzw tzn gen płk por kpt \
             г гг ул им проф акад т.е т.к т.н т.д напр см др тов гр св руб коп тыс млн млрд вул просп бул пл р рр обл с",
    numbered: "č čl čís odst str s obr tab sv nr ust art poz rys § рис стр стор табл ст гл п пп кн кв год хв сек мин",
    others: "atd apod aj ap etc itd itp i in m in tis mil mld kč hod min leden únor n.l př.n.l r др пр т.п н.э",
    starters: "a ale ani aby až co do i já je jak jako jeho její jen jestli již k kde kdo když která který my na nad ne než no o od on ona oni ono po pod pokud potom pro proč \
               proto protože před s se si ta tak také tam tato te ten tento teď to toto tu ty u v ve však vy z za ze že dnes wczoraj dziś ale ja jest nie on \
               ona oni to ten ta w z за и в во на но не он она они оно мы вы я ты это эта этот как что когда где если потом затем сегодня вчера",
    ordinals: true,
    ..NONE
};

const NORDIC: Rules = Rules {
    titles: "dr prof hr fr frk skt f.eks bl.a dvs ca jf mht pga osv t.ex d.v.s bl.a s.k fil kand st",
    numbered: "nr s kap fig art pkt stk",
    others: "osv m.m m.v m.fl etc mv kl f.kr e.kr a/s jan feb apr aug sept okt nov dec des",
    starters: "alle altså at av da de den denne der derefter derfor det dette disse du efter eller en er et for fordi fra han har her hun hva hvad hver hvis hvor hvorfor i \
               ikke ja jeg kan men min når nej nei noen nogle nu nå og også om på så som til vi var ved vil jag han hon och men inte det är hur vad när varför",
    ordinals: true,
    ..NONE
};

const NONE: Rules = Rules {
    titles: "",
    numbered: "",
    others: "",
    closing: "",
    fronting: "",
    listed: None,
    starters: "",
    nouns_have_capitals: false,
    small_begins: false,
    ordinals: false,
    semicolon_asks: false,
    colon_ends: false,
};

/// Abbreviations of many languages, for those without a list of their own.
const OTHER: Rules = Rules {
    titles: "mr mrs ms dr prof st vs e.g i.e cf z.b d.h jr sr approx sra srta",
    numbered: "no nr p pp fig vol art kap",
    others: "etc inc ltd co usw",
    ..NONE
};

/// The rules of the language called `name`.
pub(super) fn rules(name: &str) -> Rules {
    let code = without_script(name);
    let own = match code {
        "en" => ENGLISH,
        "de" | "ltz_Latn" => GERMAN,
        "es" | "pt" | "fr" | "it" | "ca" | "gl" | "ro" | "oci_Latn" | "ast_Latn" => ROMANCE,
        "cs" | "sk" | "sl" | "hr" | "bs" | "sr" => SLAVIC,
        "pl" | "ru" | "uk" | "be" | "bg" | "mk" => Rules { ordinals: false, ..SLAVIC },
        "da" | "no" | "nn" | "fao_Latn" | "is" => NORDIC,
        "sv" => Rules { ordinals: false, ..NORDIC },
        "hu" => Rules { titles: "pl dr kb ún ill vö ld özv ifj prof", ordinals: true, ..OTHER },
        "fi" | "et" | "lv" | "tr" | "eu" | "az" => Rules { ordinals: true, ..OTHER },
        "nl" | "af" => Rules {
            titles: "dhr mevr mw dr drs prof ir ing mr st bijv d.w.z m.a.w o.a t.a.v i.p.v a.u.b jl ca t/m",
            numbered: "nr blz p art hfst fig afb",
            others: "enz e.d etc a.s b.v n.v",
            starters: "als de dit dat daar daarna dan deze een en er het hij hier hoe ik in is ja je maar met na nee nog nu of om ook op toen u van voor waar waarom wat we \
                       wie wij ze zij zo",
            ..NONE
        },
        "el" => Rules {
            titles: "κ κα κος κ.α δηλ π.χ βλ αρ σελ μ.μ π.μ",
            semicolon_asks: true,
            small_begins: true,
            ..NONE
        },
        "ar" | "fa" | "ur" | "pbt_Arab" => Rules { titles: "د أ ا.د أ.د", ..NONE },
        "id" | "ms" | "jv" | "sun_Latn" => {
            Rules { titles: "jl bpk ibu sdr drs dra dr prof ir hj kh tn ny", ..OTHER }
        }
        "sw" => Rules { titles: "bw bi dkt mhe dr prof", ..OTHER },
        "vi" => Rules { titles: "ts tp gs ths bs pgs ks", ..OTHER },
        "hy" => Rules { titles: "դ տ պ", colon_ends: true, ..NONE },
        _ => OTHER,
    };
    // The lists go by two-letter codes.
    let two = crate::data::languages::find(code).map_or("", |l| l.code1);
    Rules { listed: LISTS.get(two), ..own }
}

fn has(list: &str, word: &str) -> bool {
    list.split_whitespace().any(|w| w == word)
}

/// What ends an enumeration; what follows with a capital is a sentence.
const AND_SO_ON: &str = "etc ecc atd apod itd itp osv enz usw";

/// Units behind a number: a sentence ends where a capital follows.
const UNITS: &str = "ft in lb lbs oz mi km kg cm mm hr hrs min sec yd yds gal pt qt";

/// A sentence of at most so many words has only begun.
const FRONTED: usize = 7;

impl Rules {
    /// Whether no sentence ends at the full stop of `place`.
    pub(super) fn goes_on(&self, place: &Place) -> bool {
        let (word, next) = (place.word, place.next);
        let lower = word.to_lowercase();
        let lower = lower.as_str();
        let starts = || has(self.starters, &next.to_lowercase());
        let digit_next = next.starts_with(|c: char| c.is_numeric());
        let capital_next = next.starts_with(char::is_uppercase);
        let mut chars = word.chars();
        let single = chars.next().is_some_and(char::is_alphabetic) && chars.next().is_none();
        if has(self.closing, &joined(place)) {
            let zone = next.chars().count() > 1 && next.chars().all(char::is_uppercase);
            let begun = place.sentence.trim() == word || self.has_only_begun(place.sentence);
            return !starts() && (!capital_next && !digit_next || zone || begun);
        }
        if single && word.starts_with(char::is_uppercase) {
            return word != "I" || !starts();
        }
        // `z. B.`, `d. h.`, `i. d. R.`
        if single && (next.chars().count() == 1 && place.has_stop || follows_initial(place)) {
            return place.has_stop && next.chars().count() == 1 || !starts();
        }
        if self.is_ordinal(word) {
            return !starts() && (!digit_next || place.dash);
        }
        let counted = place.sentence.split_whitespace().rev().nth(1);
        if has(UNITS, lower) && counted.is_some_and(|w| w.ends_with(|c: char| c.is_ascii_digit())) {
            return !capital_next || self.has_only_begun(place.sentence);
        }
        if has(self.titles, lower) {
            return true;
        }
        if has(self.numbered, lower)
            && (digit_next || has(OTHER.numbered, lower) && !starts() && lower != "no")
        {
            return true;
        }
        if has(AND_SO_ON, lower) && capital_next && !self.nouns_have_capitals {
            return false;
        }
        let acronym = word.contains('.')
            && word.split('.').all(|part| letters(part) == 1 && part.starts_with(char::is_alphabetic));
        let known =
            acronym || has(self.others, lower) || self.listed.is_some_and(|list| list.contains(lower));
        known && !starts()
    }

    /// `3. Juni`, `XII. Pluk`.
    fn is_ordinal(&self, word: &str) -> bool {
        let digits = word.len() <= 3 && word.bytes().all(|b| b.is_ascii_digit());
        let roman = word.len() > 1 && word.bytes().all(|b| b"IVXLC".contains(&b));
        self.ordinals && !word.is_empty() && (digits || roman)
    }

    /// A few words from a preposition on, also behind a colon.
    fn has_only_begun(&self, sentence: &str) -> bool {
        let words: Vec<&str> = sentence.rsplit(": ").next().unwrap_or_default().split_whitespace().collect();
        words.len() <= FRONTED && words.first().is_some_and(|w| has(self.fronting, &w.to_lowercase()))
    }
}

/// Whether the word before is a letter with a full stop too: `т. б.`
fn follows_initial(place: &Place) -> bool {
    let before = place.sentence.split_whitespace().rev().nth(1).unwrap_or_default();
    before.strip_suffix('.').is_some_and(|letter| letter.chars().count() == 1)
}

/// The word in small letters, with the single letters before it: `a.c` for `a. C`.
fn joined(place: &Place) -> String {
    let mut out = place.word.to_lowercase();
    if out.chars().count() == 1 {
        let before = place.sentence.split_whitespace().rev().skip(1).map_while(|w| w.strip_suffix('.'));
        for letter in before.take_while(|w| w.chars().count() == 1) {
            out = format!("{}.{out}", letter.to_lowercase());
        }
    }
    out
}

/// Months that are written with a capital in languages whose ordinals have a full stop.
const MONTHS: &str =
    "januar jänner februar märz april mai juni juli august september oktober november dezember";

impl Rules {
    /// Whether `1.` at the beginning of a line counts an item: in some languages it may be a date (`7. října`, `3. Juni`).
    pub(super) fn counts_items(&self, marker: &str, rest: &str) -> bool {
        let number = marker.trim().trim_start_matches('(').strip_suffix('.');
        let ordinal = self.ordinals && number.is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
        let next = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        !ordinal || !(next.starts_with(char::is_lowercase) || has(MONTHS, &next.to_lowercase()))
    }
}
