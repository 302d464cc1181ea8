#!/usr/bin/env python3
"""Writes tests/golden/metrics/mkqa.json: numbers of MKQA's official script on predictions made of its own sample annotations.

    golden_mkqa.py ML_MKQA SAMPLE    ML_MKQA: a checkout of apple/ml-mkqa (mkqa_eval.py; Apache-2.0); SAMPLE: its test_mkqa.jsonl.gz

Needs numpy; matplotlib, which the script imports for plots, may be absent. The sample file is copied beside the golden file (MKQA is
CC BY-SA 3.0)."""
import json
import random
import shutil
import sys
import types
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "metrics"


def main():
    sys.path.insert(0, sys.argv[1])
    for name in ("matplotlib", "matplotlib.pyplot"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["matplotlib"].use = lambda *_: None
    sys.modules["matplotlib"].pyplot = sys.modules["matplotlib.pyplot"]
    import mkqa_eval
    import numpy

    sample = Path(sys.argv[2])
    shutil.copyfile(sample, OUT / "mkqa_sample.jsonl.gz")
    golds = mkqa_eval.read_annotations(str(sample))
    draw = random.Random(3)
    out = {"versions": {"numpy": numpy.__version__}, "cases": []}
    for language in mkqa_eval.MKQA_LANGUAGES:
        for _ in range(2):
            rows = []
            for example, gold in golds[language].items():
                answer = sorted(gold.answers)[draw.randrange(len(gold.answers))]
                text = draw.choice([answer, answer + " 1!", "x " + answer, answer[: len(answer) // 2 + 1], "la the en de " + answer, "", None])
                rows.append({"example_id": int(example), "prediction": text, "binary_answer": draw.choice([None, None, None, "", "Yes", "no"]),
                             "no_answer_prob": round(draw.uniform(-12, 5), 3)})
            path = OUT / "predictions.tmp"
            path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
            predictions = mkqa_eval.read_predictions(str(path))
            path.unlink()
            em, f1 = mkqa_eval.compute_mkqa_scores_for_language(predictions, golds[language], language)
            scores = mkqa_eval.evaluate(golds[language], predictions, language, verbose=True, print_metrics=False)
            out["cases"].append({"language": language, "rows": rows, "em": list(em.values()), "f1": list(f1.values()), "scores": scores})
    (OUT / "mkqa.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
