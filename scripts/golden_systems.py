#!/usr/bin/env python3
"""Writes tests/golden/metrics/systems.json: sacrebleu's scores and significance tests of real translations of FLORES devtest.

    golden_systems.py FLORES      a folder with test.LL and test.SYSTEM.LL (systems google and bergamot-tiny; es cs ja th)

Also writes the excerpt that the tests read (first lines of each file). Needs `pip install 'sacrebleu[ja,ko]==2.6.0'` and NumPy 2. FLORES is
CC BY-SA 4.0 (Meta AI); the system outputs are from mozilla/firefox-translations-models (MPL-2.0)."""
import json
import random
import sys
from pathlib import Path

import numpy
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "metrics"
LINES = 40
TER_OPTIONS = ("normalized", "no_punct", "asian_support", "case_sensitive")


def metrics(language):
    found = {"bleu": BLEU(tokenize="ja-mecab" if language == "ja" else "13a"), "char": BLEU(tokenize="char"),
             "chrf": CHRF(), "chrf++": CHRF(word_order=2), "ter": TER()}
    if language in ("ja", "th"):
        found["ter"] = TER(normalized=True, asian_support=True)
    return found


def one(language, systems, reference):
    names = list(systems)
    out = {"systems": names, "metrics": {}}
    for name, metric in metrics(language).items():
        record = {"scores": [metric.corpus_score(systems[s], [reference]).score for s in names]}
        record["signature"] = str(metric.get_signature())
        if len(names) > 1:
            for test in ("bs", "ar"):
                signatures, results = PairedTest([(s, systems[s]) for s in names], {name: metric}, [reference], test_type=test)()
                key = next(k for k in results if k != "System")
                record[test] = [{k: None if v is None else float(v) for k, v in r.__dict__.items()} for r in results[key]]
                record[test + "_signature"] = str(signatures[key])
        score = metric.corpus_score(systems[names[0]], [reference], n_bootstrap=1000)
        record["confidence"] = [float(score._mean), float(score._ci)]
        out["metrics"][name] = record
    return out


def ter_cases():
    """Pairs that reach Tercom's limits: long runs, far shifts, very different lengths, more candidates than are tried."""
    draw = random.Random(7)
    cases = []
    for _ in range(60):
        words = "abcdefghijklmnopqrstuvwxyz"[: draw.choice([2, 4, 26])]
        reference = [draw.choice(words) for _ in range(draw.choice([0, 1, 5, 20, 80]))]
        hypothesis = list(reference)
        for _ in range(draw.choice([0, 1, 3, 10])):
            if len(hypothesis) > 2:
                a, b = sorted(draw.sample(range(len(hypothesis)), 2))
                cut, hypothesis = hypothesis[a:b][:12], hypothesis[:a] + hypothesis[min(b, a + 12):]
                at = draw.randrange(len(hypothesis) + 1)
                hypothesis = hypothesis[:at] + cut + hypothesis[at:]
            if draw.random() < 0.5:
                hypothesis.insert(draw.randrange(len(hypothesis) + 1), draw.choice(words))
        hypothesis = hypothesis[: draw.choice([None, None, None, 3, 0])]
        cases.append((" ".join(hypothesis), " ".join(reference)))
    cases.append(("a", " ".join("abcdefghij" * 13)))
    return [{"hypothesis": h, "reference": r, "edits": TER().corpus_score([h], [[r]]).num_edits} for h, r in cases]


def main():
    folder = Path(sys.argv[1])
    (OUT / "flores").mkdir(parents=True, exist_ok=True)
    out = {"versions": {"sacrebleu": sacrebleu.__version__, "numpy": numpy.__version__}, "excerpt": {}, "devtest": {}}
    for language in ("es", "cs", "ja", "th"):
        texts = {}
        for name in ("", "bergamot-tiny.", "google."):
            path = folder / f"test.{name}{language}"
            if path.exists():
                texts[name.rstrip(".")] = path.read_text(encoding="utf-8").split("\n")[:1012]
                (OUT / "flores" / path.name).write_text("\n".join(texts[name.rstrip(".")][:LINES]) + "\n", encoding="utf-8")
        reference = texts.pop("")
        out["devtest"][language] = one(language, texts, reference)
        out["excerpt"][language] = one(language, {n: t[:LINES] for n, t in texts.items()}, reference[:LINES])
    out["ter"] = ter_cases()
    pairs = json.loads((OUT / "sacrebleu.json").read_text(encoding="utf-8"))
    out["ter_options"] = []
    for bits in range(16):
        options = {name: bool(bits >> i & 1) for i, name in enumerate(TER_OPTIONS)}
        metric = TER(**options)
        lines = [metric._preprocess_segment(h) for h in pairs["hypotheses"]]
        score = metric.corpus_score(pairs["hypotheses"], [pairs["references"]])
        out["ter_options"].append({"options": options, "lines": lines, "score": score.score, "signature": str(metric.get_signature())})
    (OUT / "systems.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
