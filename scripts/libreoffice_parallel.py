#!/usr/bin/env python3
"""Prints aligned sentences of the LibreOffice help (MPL-2.0) as TSV: libreoffice_parallel.py ROOT en-US es

ROOT holds two unpacked Debian packages libreoffice-help-{en-us,LL}. The same paragraph has the same `id` in every language."""
import html
import re
import sys
from pathlib import Path

ELEMENT = re.compile(r'<(p|h[1-6])\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</\1>', re.S)


def paragraphs(path):
    for _, key, inner in ELEMENT.findall(path.read_text(encoding="utf-8", errors="replace")):
        text = html.unescape(re.sub(r"<[^>]*>", "", inner))
        yield key, re.sub(r"\s+", " ", text).strip()


def main():
    root, source, target = Path(sys.argv[1]) / "usr/share/libreoffice/help", sys.argv[2], sys.argv[3]
    seen = set()
    for path in sorted((root / source).glob("text/**/*.html")):
        other = root / target / path.relative_to(root / source)
        if not other.exists():
            continue
        translated = dict(paragraphs(other))
        for key, text in paragraphs(path):
            match = translated.get(key, "")
            if match and match != text and len(text.split()) >= 5 and text not in seen:
                seen.add(text)
                print(f"{text}\t{match}")


if __name__ == "__main__":
    main()
