//! What a full stop behind a word means, by language: abbreviations, numbers that are ordinals, words that begin sentences.
use crate::data::languages::without_script;

/// The rules of one language.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    /// Abbreviations that stand before what they belong to: no sentence ends behind them.
    titles: &'static str,
    /// The same before a number.
    numbered: &'static str,
    /// Abbreviations that may end a sentence: one ends where a word of `starters` follows.
    others: &'static str,
    /// Words that begin sentences, and hardly ever names.
    starters: &'static str,
    /// `3. Juni`: a number with a full stop is an ordinal.
    pub ordinals: bool,
    /// The semicolon is the question mark.
    pub semicolon_asks: bool,
    /// The colon is a full stop.
    pub colon_ends: bool,
}

const ENGLISH: Rules = Rules {
    titles: "mr mrs ms messrs mme dr drs prof st mt ft gen rep sen gov pres lt col capt cpt sgt maj adm hon rev fr sr jr vs e.g i.e cf viz approx dept est ave blvd rd",
    numbered: "no nos vol p pp fig figs eq eqs sec sect ch chap art par para ver ed n°",
    others: "etc inc ltd co corp llc bros al dec jan feb mar apr jun jul aug sept sep oct nov a.m p.m jr sr esq ph.d m.d b.a m.a",
    starters: "a about after all although an and another are as at because before but by can could did do does during each even every few finally for from \
               had has have he her here his how however i if in instead is it its just later let many maybe meanwhile more most my never next no nobody not now of \
               often on once one only or our perhaps please she should since so some sometimes soon still such suddenly thank that the their then there therefore \
               these they this those though thus to today tomorrow under unfortunately until was we well were what when where whether which while who why will with \
               would yes yesterday yet you your",
    ordinals: false,
    semicolon_asks: false,
    colon_ends: false,
};

const GERMAN: Rules = Rules {
    titles: "dr prof hr fr frl st z.b d.h bzw ca evtl ggf inkl exkl max min sog vgl dipl ing med phil geb gest u.a z.t s.o s.u o.ä i.d.r v.a d.i mag univ",
    numbered: "abs nr art bd s st kap abb tab fig ziff § aufl jg",
    others: "usw etc u.s.w u.v.m co str tel jan feb apr aug sept okt nov dez mio mrd a.d v.chr n.chr",
    starters: "aber alle als am an auch auf aus bei bitte da dabei dafür damit danach dann das dein dem den denn der deshalb die dies diese dieser dieses doch dort du \
               ein eine einer er erst es etwa für gestern heute hier ich ihr im in ja jede jeder jetzt kein können man mein mit morgen nach nein noch nun nur ob oder \
               ohne schon sein seine seit sie sind so und unser vielleicht vom von vor wann warum was weil welche wenn wer wie wir wo zu zum zur zwar",
    ordinals: true,
    ..NONE
};

const ROMANCE: Rules = Rules {
    titles: "sr sra srta srs sres d dña dr dra dres prof profa ud uds vd vds st sta sto mons lic ing arq gral cap cmdte p.ej ej ee.uu fr aa.vv \
             m mm mme mmes mlle mlles me mgr ste sig sigg sig.ra dott avv on arch geom rag spett ecc.mo exmo exma eng av avda c/ pza",
    numbered: "n no nº núm núms pág págs p pp art arts cap vol fig figs tel tomo ed n° num chap fasc",
    others: "etc ecc cía cia s.a s.l s.p.a s.r.l ltda co inc a.c d.c av.j.-c ap.j.-c jr",
    starters: "a al además ahora algunos antes así aunque como con cuando de después desde donde el ella ellos en entonces es esa ese eso esta este esto estos hay hoy la las \
               le lo los luego más mi muchos no nos nosotros para pero por porque que qué quién se según si sí sin sobre su sus también todo tras tu un una y ya yo \
               il elle ils elles nous vous je tu on ce cette ces les des une mais dans pour avec lui lei noi voi loro questo questa ma gli un uno per \
               o os as um uma ele eles ela elas nós não mas isso isto",
    ..NONE
};

const SLAVIC: Rules = Rules {
    titles: "mgr ing dr doc prof bc mudr judr rndr phdr tzv tj např resp př sv p pí sl inž hab lek św ul al pl m.in np tzw tzn gen płk por kpt \
             г гг ул им проф акад т.е т.к т.н т.д напр см др тов гр св руб коп тыс млн млрд вул просп бул пл р рр обл с",
    numbered: "č čl čís odst str s obr tab sv nr ust art poz rys § рис стр табл ст гл п пп кн",
    others: "atd apod aj ap etc itd itp i in m in tis mil mld kč hod min leden únor n.l př.n.l r др пр т.п н.э",
    starters: "a ale ani aby až co do i já je jak jako jeho její jen jestli již k kde kdo když která který my na nad ne než no o od on ona oni ono po pod pokud potom pro proč \
               proto protože před s se si ta tak také tam tato te ten tento teď to toto tu ty u v ve však vy z za ze že dnes wczoraj dziś ale ja jest nie on \
               ona oni to ten ta w z за и в во на но не он она они оно мы вы я ты это эта этот как что когда где если потом затем сегодня вчера",
    ordinals: true,
    ..NONE
};

const NORDIC: Rules = Rules {
    titles: "dr prof hr fr frk f.eks bl.a dvs ca jf mht pga osv t.ex d.v.s bl.a s.k fil kand st",
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
    starters: "",
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
    match without_script(name) {
        "en" => ENGLISH,
        "de" | "ltz_Latn" => GERMAN,
        "es" | "pt" | "fr" | "it" | "ca" | "gl" | "ro" | "oci_Latn" | "ast_Latn" => ROMANCE,
        "cs" | "sk" | "sl" | "hr" | "bs" | "sr" => SLAVIC,
        "pl" | "ru" | "uk" | "be" | "bg" | "mk" => Rules { ordinals: false, ..SLAVIC },
        "da" | "no" | "nn" | "fao_Latn" | "is" => NORDIC,
        "sv" => Rules { ordinals: false, ..NORDIC },
        "fi" | "et" | "lv" | "hu" | "tr" | "eu" | "az" => Rules { ordinals: true, ..OTHER },
        "nl" | "af" => Rules {
            titles: "dhr mevr mw dr drs prof ir ing mr st bijv d.w.z m.a.w o.a t.a.v i.p.v a.u.b jl ca t/m",
            numbered: "nr blz p art hfst fig afb",
            others: "enz e.d etc a.s b.v n.v",
            starters: "als de dit dat daar daarna dan deze een en er het hij hier hoe ik in is ja je maar met na nee nog nu of om ook op toen u van voor waar waarom wat we \
                       wie wij ze zij zo",
            ..NONE
        },
        "el" => Rules {
            titles: "κ κα κος κ.α δηλ π.χ βλ αρ σελ μ.μ π.μ", semicolon_asks: true, ..NONE
        },
        "hy" => Rules { titles: "դ տ պ", colon_ends: true, ..NONE },
        _ => OTHER,
    }
}

fn has(list: &str, word: &str) -> bool {
    list.split_whitespace().any(|w| w == word)
}

impl Rules {
    /// Whether no sentence ends at a full stop between `word` (without the stop) and `next`, the word behind the space,
    /// which may have a stop of its own.
    pub(super) fn goes_on(&self, word: &str, next: &str, next_has_stop: bool) -> bool {
        let lower = word.to_lowercase();
        let lower = lower.as_str();
        let starts = || has(self.starters, &next.to_lowercase());
        let digit_next = next.starts_with(|c: char| c.is_numeric());
        let mut letters = word.chars();
        let initial = letters.next().is_some_and(char::is_uppercase) && letters.next().is_none();
        if initial {
            return word != "I";
        }
        // `z. B.`, `d. h.`, `i. d. R.`
        if word.chars().count() == 1
            && word.chars().all(char::is_alphabetic)
            && next.chars().count() == 1
            && next_has_stop
        {
            return true;
        }
        if self.ordinals && lower.len() <= 3 && !lower.is_empty() && lower.bytes().all(|b| b.is_ascii_digit())
        {
            return !starts() && !digit_next;
        }
        if has(self.titles, lower) {
            return true;
        }
        if has(self.numbered, lower) {
            return digit_next || has(OTHER.numbered, lower) && !starts() && lower != "no";
        }
        let acronym = word.contains('.') && word.split('.').all(|part| part.chars().count() == 1);
        (acronym || has(self.others, lower)) && !starts()
    }
}
