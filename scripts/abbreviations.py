#!/usr/bin/env python3
"""Makes src/data/sentences/abbreviations.txt: abbreviations by language that a sentence goes on behind.

    abbreviations.py SENTENCEX/src/languages/abbrev HUNSPELL_DIR OUT     (with the package pysbd installed)

Sources, both MIT: pySBD 0.3.4 (Nipun Sadvilkar and Mark Neumann) and the crate sentencex 0.1.33 (Wikimedia Foundation). What is a whole word of the
language by Hunspell's dictionaries is left out, since it may end a sentence; single Latin letters and acronyms too.
"""
import re
import sys
from pathlib import Path

from pysbd.languages import LANGUAGE_CODES

WORDS = {"it": "it_IT", "nl": "nl", "es": "es_ES", "pt": "pt_PT", "fr": "fr", "da": "da_DK", "ru": "ru_RU", "uk": "uk_UA", "bg": "bg_BG", "pl": "pl_PL",
         "sk": "sk_SK", "de": "de_DE", "kk": "kk_KZ"}
OWN = "ar bg da de es fr it kk nl pl ru sk".split()


def words(folder, name):
    path = Path(folder) / f"{name}.dic"
    if not path.exists():
        return set()
    raw = path.read_bytes()
    for encoding in ("utf-8", "koi8-r" if name.startswith("ru") else "iso-8859-2" if name[:2] in ("pl", "sk") else "cp1251" if name.startswith("bg") else "latin-1"):
        try:
            text = raw.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    return {line.split("/")[0].split("\t")[0].strip() for line in text.splitlines()}


def main():
    lists, folder, out = sys.argv[1:]
    lines = ["# " + line for line in __doc__.strip().split("\n") if line.strip() and "OUT" not in line]
    for code in sorted({p.stem for p in Path(lists).glob("*.txt")} | set(OWN)):
        if code == "en":
            continue
        found = set()
        path = Path(lists) / f"{code}.txt"
        if path.exists():
            found |= {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("//")}
        if code in OWN:
            found |= set(LANGUAGE_CODES[code].Abbreviation.ABBREVIATIONS)
        known = words(folder, WORDS.get(code, "none"))
        keep = set()
        for word in found:
            word = word.strip().strip(".")
            # An acronym is written without a stop, and often ends a sentence.
            if "." not in word and any(c.isupper() for c in word[1:]):
                continue
            word = word.lower()
            if not word or " " in word or len(word) == 1 and word.isascii() or re.fullmatch(r"[ivxlcdm0-9]+", word):
                continue
            if "." not in word and len(word) > 1 and (word in known or word.upper() in known):
                continue
            keep.add(word)
        lines.append(f"{code} " + " ".join(sorted(keep)))
        print(code, len(found), len(keep))
    Path(out).write_text("\n".join(lines) + "\n", encoding="utf-8")


main()
