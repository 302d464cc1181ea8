#!/usr/bin/env python3
"""Writes sentences of two campaigns of Battle for Wesnoth (GPL-2+) that are there in every language given, one file a language: wesnoth_parallel.py ROOT OUT en es fr pt_BR

ROOT holds the unpacked Debian packages wesnoth-1.16-{did,httt}. Texts without markup, of 6 to 60 English words, in an order drawn with a fixed seed: OUT/dev.LL has the first 100,
OUT/test.LL the next 300."""
import gettext
import random
import re
import sys
from pathlib import Path

MARKUP = re.compile(r"[<>$\n{}|~^]")


def catalogue(root, language):
    texts = {}
    for campaign in ("did", "httt"):
        with open(root / language / f"LC_MESSAGES/wesnoth-{campaign}.mo", "rb") as file:
            for english, translated in gettext.GNUTranslations(file)._catalog.items():
                if isinstance(english, str) and english and translated and translated != english and not MARKUP.search(english + translated):
                    texts[english.strip()] = translated.strip()
    return texts


def main():
    root, out, languages = Path(sys.argv[1]) / "usr/share/games/wesnoth/1.16/locale", Path(sys.argv[2]), sys.argv[4:]
    texts = {language: catalogue(root, language) for language in languages}
    english = sorted(set.intersection(*(set(known) for known in texts.values())))
    english = [text for text in english if 6 <= len(text.split()) <= 60]
    random.Random(1).shuffle(english)
    out.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("dev", english[:100]), ("test", english[100:400])):
        for language in sys.argv[3:]:
            lines = chosen if language == sys.argv[3] else [texts[language][text] for text in chosen]
            (out / f"{name}.{language.partition('_')[0]}").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
