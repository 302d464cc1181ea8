#!/usr/bin/env python3
"""Writes tests/golden/metrics/sacrebleu.json: BLEU and chrF of awkward sentence pairs. Needs `pip install sacrebleu==2.6.0`.

The sentences were written for this project (Apache-2.0)."""
import json
from pathlib import Path

import sacrebleu
from sacrebleu.metrics import BLEU, CHRF

PAIRS = [
    ("The cat sat on the mat.", "The cat is on the mat."),
    ("Hello world!", "Hello, world!"),
    ("", "An empty hypothesis."),
    ("Something for nothing", ""),
    ("It costs $3.50, i.e. 3,50 € (approx.)", "It costs $3.50, that is 3.50 € (about)."),
    ("&quot;Fish &amp; chips&quot; &lt;here&gt;", "\"Fish & chips\" <here>"),
    ("e-mail: a@b.org / 10-12 o'clock", "E-mail: a@b.org / 10-12 o'clock"),
    ("Die Straße ist naß — sehr naß…", "Die Straße ist nass – sehr nass ..."),
    ("我是学生。", "我是一名学生。"),
    ("他说：“你好，world 2020年！”", "他说：“您好，World 2020年！”"),
    ("私は学生です。", "私は学生でした。"),
    ("나는 학생입니다.", "나는 학생이었습니다."),
    ("ฉันเป็นนักเรียน", "ผมเป็นนักเรียนครับ"),
    ("أنا طالب في الجامعة.", "أنا طالبة في الجامعة."),
    ("Příliš žluťoučký kůň úpěl ďábelské ódy.", "Příliš žlutý kůň úpěl ďábelské ódy!"),
    ("one two three four five six", "six five four three two one"),
    ("a", "a"),
    ("a b", "b a"),
    ("(hi)", "( hi )"),
    ("repeat repeat repeat repeat", "repeat repeat"),
    ("tabs\tand\u00a0no-break\u2003spaces", "tabs and no-break spaces"),
    ("trailing spaces   ", "trailing spaces"),
    ("-\nline breaks\ninside", "line breaks inside"),
    ("emoji 🙂 stay 🙂", "emoji 🙂 🙂 stay"),
    ("1.000,5 and 7,-", "1,000.5 and 7.-"),
    ("\u2200x \u2026 \u2460 ☃", "\u2200x \u2026 \u2461 ☃"),
]


def main():
    hyps, refs = [p[0] for p in PAIRS], [p[1] for p in PAIRS]
    out = {"versions": {"sacrebleu": sacrebleu.__version__}, "hypotheses": hyps, "references": refs, "bleu": {}, "chrf": {}}
    for tok in ("13a", "intl", "zh", "char", "none"):
        metric = BLEU(tokenize=tok)
        score = metric.corpus_score(hyps, [refs])
        each = [BLEU(tokenize=tok).corpus_score([h], [[r]]).score for h, r in PAIRS]
        out["bleu"][tok] = {"score": score.score, "precisions": score.precisions, "bp": score.bp, "each": each,
                            "tokens": [metric.tokenizer(h.rstrip()) for h in hyps], "signature": str(metric.get_signature())}
    for order in (0, 2):
        metric = CHRF(word_order=order)
        score = metric.corpus_score(hyps, [refs]).score
        each = [CHRF(word_order=order).corpus_score([h], [[r]]).score for h, r in PAIRS]
        out["chrf"][str(order)] = {"score": score, "each": each, "signature": str(metric.get_signature())}
    path = Path(__file__).resolve().parent.parent / "tests" / "golden" / "metrics" / "sacrebleu.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
