#!/usr/bin/env python3
"""Writes tests/golden/hidden.json: hidden states of transformers, pooled, and linear CKA by numpy, on the tiny models of tests/golden/models.

pip install torch transformers numpy
"""
import json
from pathlib import Path

import numpy
import torch
import transformers
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent / "tests" / "golden"
MODELS = ["llama-tied", "mistral-window"]


def vectors(model, sentences, pooling):
    """[layer][sentence] of transformers' output_hidden_states."""
    out = []
    for tokens in sentences:
        states = model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
        out.append([(s[0].mean(0) if pooling == "mean" else s[0, -1]).double().numpy() for s in states])
    return [numpy.stack([o[layer] for o in out]) for layer in range(len(out[0]))]


def cka(x, y):
    """Linear CKA in its feature-space form, Kornblith et al. 2019, equation (12)."""
    x, y = x - x.mean(0), y - y.mean(0)
    return numpy.linalg.norm(y.T @ x, "fro") ** 2 / (numpy.linalg.norm(x.T @ x, "fro") * numpy.linalg.norm(y.T @ y, "fro"))


def cosine(x, y):
    return ((x * y).sum(1) / numpy.linalg.norm(x, axis=1) / numpy.linalg.norm(y, axis=1))


def retrieval(x, y):
    x, y = (v / numpy.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    return (x @ y.T).argmax(1) == numpy.arange(len(x))


@torch.no_grad()
def main():
    rng = numpy.random.default_rng(5)
    source = [rng.integers(0, 96, size=n).tolist() for n in (3, 9, 1, 14, 7, 5, 11, 4)]
    # "Translations": the same tokens with some replaced.
    target = [[int(t) if rng.random() < 0.6 else int(rng.integers(0, 96)) for t in s] for s in source]
    cases = []
    for name in MODELS:
        model = AutoModelForCausalLM.from_pretrained(ROOT / "models" / name, dtype=torch.float32, attn_implementation="eager").eval()
        for pooling in ("mean", "last"):
            a, b = vectors(model, source, pooling), vectors(model, target, pooling)
            cases.append({
                "model": name, "pooling": pooling,
                "vectors": [[[round(float(x), 7) for x in v] for v in layer] for layer in a],
                "cka": [float(cka(x, y)) for x, y in zip(a, b)],
                "cosine": [cosine(x, y).tolist() for x, y in zip(a, b)],
                "forward": [retrieval(x, y).tolist() for x, y in zip(a, b)],
                "backward": [retrieval(y, x).tolist() for x, y in zip(a, b)],
            })
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": numpy.__version__}
    golden = {"made-by": "scripts/golden_hidden.py", "versions": versions, "source": source, "target": target, "cases": cases}
    (ROOT / "hidden.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
