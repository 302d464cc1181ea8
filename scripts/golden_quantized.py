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


def main():
    rng = np.random.default_rng(1)
    out = {"versions": {"gguf": version("gguf"), "numpy": np.__version__}, "types": {}}
    for kind, (size, scales) in BLOCKS.items():
        blocks = rng.integers(0, 256, (3, size), dtype=np.uint8)
        if kind == T.BF16:
            blocks[:, 1] = 0x3f
        for at in scales:
            blocks[:, at:at + 2] = rng.uniform(-0.1, 0.1, 3).astype(np.float16).view(np.uint8).reshape(3, 2)
        values = dequantize(blocks, kind).astype(np.float32).reshape(-1)
        out["types"][str(int(kind))] = {"bytes": blocks.tobytes().hex(), "values": [float(v) for v in values]}
    x = rng.standard_normal((12, 32)).astype(np.float32)
    x[3] = 0                     # no scale
    x[4] = np.round(x[4])        # ties of magnitude
    x[5] *= 1e-6                 # scales that f16 holds as subnormals
    x[6] = np.arange(32) - 16    # values half way between two numbers
    x[7] = 2.5
    blocks = {str(int(k)): quantize(x, k).tobytes().hex() for k in (T.Q8_0, T.Q4_0, T.Q4_1)}
    out["quantized"] = {"values": [float(v) for v in x.reshape(-1)], "types": blocks}
    path = Path(__file__).resolve().parent.parent / "tests" / "golden" / "models" / "quantized.json"
    path.write_text(json.dumps(out) + "\n")


main()
