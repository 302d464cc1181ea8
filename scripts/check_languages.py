#!/usr/bin/env python3
"""Compares the table of languages (src/data/languages/table.rs) with kept sources, and prints what differs.

    check_languages.py ISO_CODES/json CLDR_CORE CLDR_LOCALENAMES [NLLB_CODES]

ISO_CODES: the folder json of Debian's iso-codes (LGPL-2.1+); CLDR_CORE and CLDR_LOCALENAMES: the npm packages cldr-core and cldr-localenames-full (Unicode
licence); NLLB_CODES: the language codes of NLLB's tokenizer as transformers knows them, a code a line. Macrolanguages and members come from SIL's table by
way of the Python package language_data. Differences that are meant are listed in MEANT, each with its reason; the exit code is 1 if there are others.
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIELD = r'"([^"]*)"'
# Code of the table: what differs on purpose.
MEANT = {
    "arb_Latn": "FLORES-200 has it, NLLB's tokenizer has not", "min_Arab": "the same", "sat_Olck": "the same",
    "zho_Hant": "its two-letter code is that of zh",
    "bod_Tibt": "NLLB's name", "ilo_Latn": "NLLB's name", "kac_Latn": "NLLB's name", "kon_Latn": "NLLB's name", "lua_Latn": "NLLB's name",
    "mni_Beng": "NLLB's name", "lus_Latn": "NLLB has it in Latin, as its books are; CLDR lists Bengali only",
    "yorùbá": "the language's own spelling", "bokmal": "without the letter of Norwegian", "ayacucho chanka quechua": "a further name",
    "ku-AM": "ku is asked for (Kurmanji or Sorani)",
}
MEANT |= {f"ku-{region}": MEANT["ku-AM"] for region in "AZ GE IQ IR LB TM".split()}
# Scripts in everyday or recent use that CLDR's languageData leaves out: of NLLB's own rows in two scripts, and of languages whose script changed.
MEANT_SCRIPTS = "kk mn ar ace_Arab ace_Latn bak_Cyrl bjn_Arab bjn_Latn ckb_Arab crh_Latn fuv_Latn kab_Latn knc_Arab knc_Latn min_Latn tat_Cyrl".split()


def table():
    text = (ROOT / "src/data/languages/table.rs").read_text(encoding="utf-8")
    rows = re.findall(r"^    of\(" + ", ".join([FIELD] * 6) + r"\)", text, flags=re.M)
    aliases = re.findall(r"\(" + FIELD + ", " + FIELD + r"\)", text[text.index("const ALIASES"):text.index("const AMBIGUOUS")])
    ambiguous = re.findall(r"\(" + FIELD + r", &\[([^\]]*)\]\)", text[text.index("const AMBIGUOUS"):text.index("const SCRIPT_OF_REGION")])
    regions = re.findall(r"\(" + ", ".join([FIELD] * 3) + r"\)", text[text.index("const SCRIPT_OF_REGION"):])
    return rows, aliases, ambiguous, regions


def main():
    iso, core, names = map(Path, sys.argv[1:4])
    read = lambda path: json.loads(path.read_text(encoding="utf-8"))
    by3 = {e["alpha_3"]: e for e in read(iso / "iso_639-3.json")["639-3"]}
    by2 = {e["alpha_2"]: e["alpha_3"] for e in by3.values() if "alpha_2" in e}
    part2 = {e.get("bibliographic"): e["alpha_3"] for e in read(iso / "iso_639-2.json")["639-2"] if "bibliographic" in e}
    scripts = {e["alpha_4"] for e in read(iso / "iso_15924.json")["15924"]}
    english = read(names / "main/en/languages.json")["main"]["en"]["localeDisplayNames"]["languages"]
    likely = read(core / "supplemental/likelySubtags.json")["supplemental"]["likelySubtags"]
    data = read(core / "supplemental/languageData.json")["supplemental"]["languageData"]
    alias = read(core / "supplemental/aliases.json")["supplemental"]["metadata"]["alias"]["languageAlias"]
    from language_data import language_lists  # noqa: F401  (only to be sure of the version)
    import langcodes
    from langcodes.data_dicts import MACROLANGUAGES
    rows, aliases, ambiguous, regions = table()
    found = []
    say = lambda code, what: found.append((code, what))
    nllb = set(Path(sys.argv[4]).read_text().split()) if len(sys.argv) > 4 else set()
    codes = {r[0]: r for r in rows}
    for code, code1, code3, name, own, further in rows:
        member, script = own.split("_")
        if nllb and own not in nllb and code not in ("la", "eo"):
            say(code, f"{own} is not in NLLB's list")
        if member not in by3:
            say(code, f"{member} is not in ISO 639-3")
        if code3 not in by3:
            say(code, f"{code3} is not in ISO 639-3")
        macro = {k for k, v in MACROLANGUAGES.items() if v == member} | {MACROLANGUAGES.get(member)}
        if code3 != member and MACROLANGUAGES.get(member) != langcodes.standardize_tag(code3) and not (by2.get(MACROLANGUAGES.get(member, "")) == code3):
            say(code, f"{code3} is not the macrolanguage of {member} (that is {MACROLANGUAGES.get(member)})")
        if code1:
            three = by2.get(code1)
            if three is None:
                say(code, f"{code1} is not in ISO 639-1")
            elif three not in (code3, member) and MACROLANGUAGES.get(member) != code1:
                say(code, f"{code1} is {three}, {by3[three]['name']}")
        else:
            for three in {code3, member}:
                if "alpha_2" in by3.get(three, {}):
                    say(code, f"{three} has the two-letter code {by3[three]['alpha_2']}")
        own_names = {by3[x]["name"] for x in (code3, member) if x in by3} | {by3[x].get("inverted_name", "") for x in (code3, member) if x in by3}
        cldr = {english.get(x, "") for x in (code, code1, code3, member)}
        plain = re.sub(r" \(.* script\)| \(Traditional\)", "", name)
        if not any(plain.lower() == n.lower() or plain.lower() in re.split(r"[;,()] *", n.lower()) for n in own_names | cldr):
            say(code, f"name {name}: ISO {sorted(own_names)}, CLDR {sorted(cldr - {''})}")
        for s in [script] + further.split():
            if s not in scripts:
                say(code, f"{s} is not in ISO 15924")
        tag = code1 or member
        for key in dict.fromkeys([code1, member, code3]):
            entry = {s for suffix in ("",) for s in data.get(key + suffix, {}).get("_scripts", [])}
            if entry:
                mine = {script, *further.split()} | {r[4][4:] for r in rows if r[4][:3] == member}
                mine = {{"Hans": "Hans", "Hang": "Kore"}.get(s, s) for s in mine}
                if entry - mine:
                    say(code, f"CLDR has also {sorted(entry - mine)}")
                if code not in MEANT_SCRIPTS and mine - entry - {s for s in data.get(key + "-alt-secondary", {}).get("_scripts", [])}:
                    say(code, f"CLDR's languageData has not {sorted(mine - entry)}")
                break
    known = {x.lower() for r in rows for x in (r[0], r[1], r[2], r[3], r[4][:3])} | {a for a, _ in aliases} | {a for a, _ in ambiguous}
    for code, code1, code3, name, own, _ in rows:
        for three in {code3, own[:3], by2.get(code1, code3)} & set(by3):
            entry = by3[three]
            for other in {three, entry.get("name"), entry.get("common_name"), english.get(entry.get("alpha_2", three)), english.get(three)} - {None}:
                # "Greek, Modern (1453-)" and "Sotho, Southern" are never typed; "Panjabi; Punjabi" are two.
                for single in re.split(r"; ", other):
                    single = re.sub(r" \(.*", "", single).lower()
                    if "," not in single and single not in known:
                        say(code, f"`{single}` is not known")
    for old, three in part2.items():
        row = next((r for r in rows if three in (r[2], r[4][:3])), None)
        if row and old not in known:
            say(row[0], f"`{old}`, its bibliographic code, is not known")
    for name, code in aliases:
        if code not in codes:
            say(name, f"alias of {code}, which is not in the table")
            continue
        row = codes[code]
        if re.fullmatch(r"[a-z]{2,3}", name):
            target = alias.get(name, {}).get("_replacement", name)
            target3 = part2.get(name) or by2.get(target, target)
            family = {row[1], row[2], row[4][:3], MACROLANGUAGES.get(row[4][:3])}
            if target not in family and target3 not in family and MACROLANGUAGES.get(target3) not in family:
                say(name, f"alias of {code}, but it is {target3} {by3.get(target3, {}).get('name')}")
        else:
            want = {row[1], row[2], row[4][:3], MACROLANGUAGES.get(row[4][:3])}
            try:
                got = langcodes.find(name)
                if not {got.language, got.to_alpha3()} & want and MACROLANGUAGES.get(got.language) not in want:
                    say(name, f"alias of {code}, langcodes finds {got}")
            except LookupError:
                say(name, f"alias of {code}: no source knows the name")
    for code, region, script in regions:
        row = codes[code]
        tags = [f"{x}-{region}" for x in (row[1], row[4][:3]) if x] + [f"und-{region}"]
        got = [likely[t] for t in tags if t in likely]
        if not any(g.split("-")[1] == script for g in got[:1]):
            say(f"{code}-{region}", f"{script}, CLDR says {got}")
    listed = {(c, r) for c, r, _ in regions}
    for tag, full in likely.items():
        parts = tag.split("-")
        if len(parts) == 2 and len(parts[1]) == 2:
            row = next((r for r in rows if parts[0] in (r[0], r[1], r[4][:3]) and not ("_" in r[0] and r[1] == "" and r[4][:3] != parts[0])), None)
            script = full.split("-")[1]
            if row and script != {"Jpan": "Jpan", "Hang": "Kore"}.get(row[4][4:], row[4][4:]) and (row[0], parts[1]) not in listed:
                say(tag, f"CLDR: written in {script}, the table says {row[4][4:]}")
    two = {r[1] for r in rows}
    extra = [(c, w) for c, w in found if MEANT.get(c) is None]
    for code, what in extra:
        print(f"{code}: {what}")
    print(len(rows), "rows,", len(aliases), "aliases,", len(extra), "differences,", len(found) - len(extra), "meant")
    sys.exit(bool(extra))


main()
