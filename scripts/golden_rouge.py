#!/usr/bin/env python3
"""Writes tests/golden/metrics/rouge.json: ROUGE-L of csebuetnlp's multilingual ROUGE (PyPI multilingual-rouge), and its stems.

    golden_rouge.py FLORES STOP_WORDS     FLORES: the folder of golden_systems.py; run that first, it writes the excerpt
                                          STOP_WORDS: `src` of the crate stop-words, which has NLTK's lists (nltk/) and stopwords-iso's (iso/)

The stemmers are NLTK's, told to leave NLTK's stop words alone; the words that are stemmed are those of stopwords-iso (MIT), which are
common in each language. Needs `pip install multilingual-rouge pyonmttok pythainlp fugashi unidic-lite`. Japanese is segmented with unidic-lite. The sentences in
Vietnamese, Korean, Hindi and of odd characters were written for this project (Apache-2.0)."""
import json
import random
import shutil
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import fugashi
import nltk
import unidic_lite
from multilingual_rouge import rouge_scorer
from pythainlp.tokenize import word_tokenize
from pythainlp.util import dict_trie

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "metrics"
OWN = {
    "vi": ("vietnamese", [("Hôm nay trời đẹp, chúng tôi đi dạo ở công viên.", "Trời hôm nay rất đẹp nên chúng tôi đi dạo quanh công viên."),
                          ("Giá là 3.500 đồng/kg (khoảng 20%).", "Giá khoảng 3.500đồng một kg – tăng 20 %!")]),
    "ko": ("korean", [("오늘은 날씨가 좋아서 공원에서 산책했습니다.", "오늘 날씨가 좋아서 우리는 공원을 산책했습니다."),
                      ("가격은 3,500원(20% 상승)이다.", "가격이 3500원으로 20% 올랐다.")]),
    "hi": ("hindi", [("आज मौसम अच्छा है, इसलिए हम पार्क में घूमने गए।", "मौसम आज बहुत अच्छा था और हम पार्क में घूमे।"),
                     ("कीमत ₹3,500 है।", "कीमत ३५०० रुपये (₹3500) है")]),
    "cs": ("czech", [("Příliš žluťoučký kůň úpěl ďábelské ódy.", "Žluťoučký kůň příliš neúpěl."), ("", "prázdné"), ("...", "!!!"),
                     ("1a2b+c² ½ €5 ☎☎ x́y a_b a▁b 東京タワー e\u200dmail\u2028Ⅷ", "1 a 2 b + c ² ½€ 5☎ xý a b 東 京 email ⅷ"),
                     ("a ́b 5̈a +̈a", "a ́b 5̈ a +̈"), ("ΟΔΟΣ İstanbul ẞ", "οδος i̇stanbul ß")]),
}


THAI = """กา มา กิน ข้าว น้ำ บ้าน ไป ที่ ฉัน รัก ภาษา ไทย ภาษาไทย โรงเรียน เรียน โรง ตา กลม ตากลม ลม มาก กว่า การ งาน การงาน
ใน ของ และ เธอ ก็ ได้""".split()


def thai_cases():
    """Random texts of a few words, foreign text and unknown letters, by newmm with these words."""
    draw = random.Random(5)
    trie = dict_trie(THAI)
    odd = [" ", "  ", "abc", "12", "1,5", "ก", "เ", "็", "์ร", "ทรัพย์", "é", "日本", "\n", "๑๒", "มม", "ตากล"]
    texts = ["".join(draw.choice(THAI if draw.random() < 0.8 else odd) for _ in range(draw.choice([1, 3, 8, 30]))) for _ in range(120)]
    texts.append("ตากลม" * 40)
    return [{"text": t, "words": word_tokenize(t, engine="newmm", custom_dict=trie, join_broken_num=False)} for t in texts]


STEMMED = {"da": "danish", "nl": "dutch", "en": "english", "fi": "finnish", "fr": "french", "de": "german", "hu": "hungarian", "it": "italian",
           "no": "norwegian", "pt": "portuguese", "ro": "romanian", "ru": "russian", "es": "spanish", "sv": "swedish"}


def stemmed(lists):
    """ROUGE-L of the Spanish excerpt with stems; stems of 60 words of each language, of which those with ő are apart (see Rouge::new)."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(lists / "nltk", Path(folder) / "corpora" / "stopwords")
        nltk.data.path.insert(0, folder)
        draw = random.Random(7)
        words = json.loads((lists / "iso" / "stopwords-iso.json").read_text(encoding="utf-8"))
        out = {"words": {}, "misspelt-suffixes": []}
        for code, name in STEMMED.items():
            stemmer = rouge_scorer.MultiStemmer(name)
            common = sorted(w for w in set(words[code]) if w.isalpha() and w == w.lower())
            stems = [[w, stemmer(w)] for w in sorted(draw.sample(common, min(60, len(common))))]
            out["words"][code] = [p for p in stems if code != "hu" or "ő" not in p[0]]
            out["misspelt-suffixes"] += [p for p in stems if code == "hu" and "ő" in p[0]]
        rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True, lang="spanish")
        read = lambda file: (OUT / "flores" / file).read_text(encoding="utf-8").split("\n")[:40]
        out["es"] = [rouge.score(t, p)["rougeL"].fmeasure for t, p in zip(read("test.es"), read("test.google.es"))]
    return out


def main():
    folder = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    tagger = fugashi.GenericTagger(f"-O wakati -b 50000 -r {unidic_lite.DICDIR}/mecabrc -d {unidic_lite.DICDIR}")
    packages = ("multilingual-rouge", "nltk", "pyonmttok", "pythainlp", "fugashi", "unidic-lite")
    out = {"versions": {p: version(p) for p in packages}, "excerpt": {}, "devtest": {}, "own": {}, "thai": {"list": THAI, "cases": thai_cases()}}

    def scorer(name):
        if name == "japanese":
            return rouge_scorer.RougeScorer(["rougeL"], callable_tokenizer=lambda text: tagger.parse(text).split())
        return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False, lang=name)

    for code, name in (("es", "spanish"), ("cs", "czech"), ("ja", "japanese"), ("th", "thai")):
        read = lambda where, file: (where / file).read_text(encoding="utf-8").split("\n")
        rouge = scorer(name)
        for part, where, lines in (("excerpt", OUT / "flores", 40), ("devtest", folder, 1012)):
            pairs = list(zip(read(where, f"test.google.{code}")[:lines], read(where, f"test.{code}")[:lines]))
            scores = [rouge.score(target, prediction)["rougeL"].fmeasure for prediction, target in pairs]
            out[part][code] = {"mean": sum(scores) / len(scores)}
            if part == "excerpt":
                out[part][code]["each"] = scores
    for code, (name, pairs) in OWN.items():
        rouge = scorer(name)
        out["own"][code] = [{"prediction": p, "target": t, "words": rouge._tokenizer(p.lower()),
                             "f1": rouge.score(t, p)["rougeL"].fmeasure} for p, t in pairs]
    out["stemmed"] = stemmed(Path(sys.argv[2]))
    (OUT / "rouge.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
