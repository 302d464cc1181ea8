#!/usr/bin/env python3
"""The peers of benches/languages.rs: peer_languages.py CASE LANGUAGE DATA prints {"rate": ..., "peak_mib": ...}.

Sentences by pySBD, Chinese words by jieba after the cleaning of csebuetnlp's multilingual ROUGE. pip install pysbd multilingual-rouge jieba pyonmttok"""
import json
import resource
import sys
import time
from pathlib import Path


def lines(language, data):
    path = Path(data) / f"test.{language}"
    if path.exists():
        found = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    else:
        rows = Path("tests/golden/languages/udhr.tsv").read_text(encoding="utf-8").split("\n")
        found = [row.split("\t", 1)[1] for row in rows if row.startswith(language + "\t")]
    return (found * (400 // len(found) + 1))[:max(400, len(found))]


def main():
    case, language, data = sys.argv[1:4]
    texts = lines(language, data)
    if case == "sentences":
        import pysbd
        gap = "" if language in ("ja", "zh") else " "
        texts = [gap.join(texts[i:i + 5]) for i in range(0, len(texts), 5)]
        splitter = pysbd.Segmenter(language=language, clean=False)
        def run(some):
            return sum(len(splitter.segment(text)) for text in some)
    else:
        from multilingual_rouge.rouge_scorer import MultiTokenizer
        tokenizer = MultiTokenizer("chinese")
        def run(some):
            return sum(len(tokenizer(text.lower())) for text in some)
    run(texts[:4])
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        n = run(texts)
        best = max(best, n / (time.perf_counter() - start))
    print(json.dumps({"rate": best, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
