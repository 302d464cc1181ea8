#!/usr/bin/env python3
"""Writes tests/golden/models/quantized.json: random blocks of ggml's formats and what the gguf package dequantises them to;
values and what it quantises them to.

pip install gguf==0.19.0 numpy"""
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

# Bytes of a block, and where its f16 scales stand.
BLOCKS = {T.F16: (2, [0]), T.BF16: (2, []), T.Q4_0: (18, [0]), T.Q4_1: (20, [0, 2]), T.Q8_0: (34, [0]),
          T.Q4_K: (144, [0, 2]), T.Q6_K: (210, [208])}
# The same, drawn after everything else.
LATER = {T.Q5_0: (22, [0]), T.Q5_1: (24, [0, 2]), T.Q2_K: (84, [80, 82]),
         T.Q3_K: (110, [108]), T.Q5_K: (176, [0, 2]), T.IQ4_NL: (18, [0]), T.IQ4_XS: (136, [0])}


def draw(rng, kind, size, scales, n):
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    if kind == T.BF16:
        blocks[:, 1] = 0x3f
    for at in scales:
        blocks[:, at:at + 2] = rng.uniform(-0.1, 0.1, n).astype(np.float16).view(np.uint8).reshape(n, 2)
    values = dequantize(blocks, kind).astype(np.float32).reshape(-1)
    return {"bytes": blocks.tobytes().hex(), "values": [float(v) for v in values]}


def main():
    rng = np.random.default_rng(1)
    out = {"versions": {"gguf": version("gguf"), "numpy": np.__version__}, "types": {}}
    for kind, (size, scales) in BLOCKS.items():
        out["types"][str(int(kind))] = draw(rng, kind, size, scales, 3)
    x = rng.standard_normal((12, 32)).astype(np.float32)
    x[3] = 0                     # no scale
    x[4] = np.round(x[4])        # ties of magnitude
    x[5] *= 1e-6                 # scales that f16 holds as subnormals
    x[6] = np.arange(32) - 16    # values half way between two numbers
    x[7] = 2.5
    blocks = {str(int(k)): quantize(x, k).tobytes().hex() for k in (T.Q8_0, T.Q4_0, T.Q4_1)}
    out["quantized"] = {"values": [float(v) for v in x.reshape(-1)], "types": blocks}
    for kind, (size, scales) in LATER.items():
        out["types"][str(int(kind))] = draw(rng, kind, size, scales, 2)
    path = Path(__file__).resolve().parent.parent / "tests" / "golden" / "models" / "quantized.json"
    path.write_text(json.dumps(out) + "\n")


main()
