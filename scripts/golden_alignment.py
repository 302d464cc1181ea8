#!/usr/bin/env python3
"""Writes tests/golden/alignment.json: parallel sentences through the quickstart model by transformers; cosine, linear CKA and retrieval by numpy,
principal components by numpy, t-SNE by scikit-learn.

pip install torch transformers numpy scikit-learn
"""
import json

import numpy
import sklearn
import torch
import transformers
from golden_hidden import ROOT, cka, cosine, retrieval, vectors
from scipy.spatial.distance import squareform
from sklearn.manifold import TSNE
from sklearn.manifold._t_sne import _joint_probabilities
from sklearn.metrics import pairwise_distances
from transformers import AutoModelForCausalLM, AutoTokenizer

WORLD = ROOT.parent.parent / "assets" / "quickstart"
PAIRS = 24
LAYER = 2


@torch.no_grad()
def main():
    lines = (WORLD / "world" / "parallel.en-es.tsv").read_text(encoding="utf-8").splitlines()[:PAIRS]
    source, target = zip(*(line.split("\t")[:2] for line in lines))
    model = AutoModelForCausalLM.from_pretrained(WORLD / "model", dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(WORLD / "model")
    ids = lambda texts: [tokenizer(t).input_ids for t in texts]
    a, b = vectors(model, ids(source), "mean"), vectors(model, ids(target), "mean")
    both = numpy.concatenate([a[LAYER], b[LAYER]])
    centred = both - both.mean(0)
    u, s, _ = numpy.linalg.svd(centred, full_matrices=False)
    plane = u[:, :2] * s[:2]
    plane *= numpy.where(plane[0] < 0, -1, 1)
    perplexity = min(30.0, (len(both) - 1) / 3)
    p = squareform(_joint_probabilities(pairwise_distances(both, squared=True), perplexity, 0))
    start = (plane / plane[:, 0].std() * 1e-4).astype(numpy.float32)
    tsne = TSNE(method="exact", init=start, perplexity=perplexity, random_state=0).fit(both)
    layers = [{"cosine": float(cosine(x, y).mean()), "cka": float(cka(x, y)), "retrieval-source-target": float(retrieval(x, y).mean()),
               "retrieval-target-source": float(retrieval(y, x).mean())} for x, y in zip(a, b)]
    golden = {
        "made-by": "scripts/golden_alignment.py",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": numpy.__version__, "scikit-learn": sklearn.__version__},
        "source": source, "target": target, "layer": LAYER, "layers": layers, "cosines": cosine(a[LAYER], b[LAYER]).tolist(),
        "vectors": [[round(float(x), 5) for x in v] for v in both],
        "plane": plane.tolist(), "explained": (s[:2] ** 2 / (s**2).sum()).tolist(),
        "joint-probabilities": [[round(float(x), 9) for x in row] for row in p], "kl-divergence": float(tsne.kl_divergence_),
    }
    (ROOT / "alignment.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
