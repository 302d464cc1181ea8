#!/usr/bin/env python3
"""Writes src/ops/quantize/grids.bin (the codebooks of ggml's IQ formats) and tests/golden/gguf/packed.json: random blocks of the formats that are unpacked when
they are read, and the bits of what the gguf package dequantises them to.

pip install gguf==0.19.0 numpy"""
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T, quants
from gguf.constants import GGML_QUANT_SIZES

ROOT = Path(__file__).resolve().parent.parent
# Where the f16 scale stands; IQ1_M's is in the upper bits of its last four words, the 4-bit floats' scales are bytes.
TYPES = {T.IQ2_XXS: 0, T.IQ2_XS: 0, T.IQ3_XXS: 0, T.IQ1_S: 0, T.IQ3_S: 0, T.IQ2_S: 0, T.IQ1_M: None, T.TQ1_0: 52, T.TQ2_0: 64, T.MXFP4: None, T.NVFP4: None}


def main():
    grids = b"".join(bytes.fromhex(c.grid_hex.decode()) for c in (quants.IQ2_XXS, quants.IQ2_XS, quants.IQ2_S, quants.IQ3_XXS, quants.IQ3_S, quants.IQ1_S))
    (ROOT / "src/ops/quantize/grids.bin").write_bytes(grids)
    rng = np.random.default_rng(4)
    out = {}
    for kind, at in TYPES.items():
        blocks = rng.integers(0, 256, (3, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        scales = rng.uniform(-0.1, 0.1, 3).astype(np.float16)
        if at is not None:
            blocks[:, at:at + 2] = scales.view(np.uint8).reshape(3, 2)
        if kind == T.IQ1_M:
            words = blocks[:, 48:].copy().view(np.uint16)
            bits = scales.view(np.uint16)
            for i in range(4):
                words[:, i] = (words[:, i] & 0x0fff) | ((bits >> np.uint16(4 * i)) & 15) << 12
            blocks[:, 48:] = words.view(np.uint8)
        if kind == T.MXFP4:
            blocks[:, 0] = [0, 1, 120]
        if kind == T.NVFP4:
            blocks[0, :4] = [0, 0x7f, 3, 0xff]
        values = quants.dequantize(blocks, kind).astype(np.float32)
        out[str(int(kind))] = {"bytes": blocks.tobytes().hex(), "values": values.astype("<f4").tobytes().hex()}
    golden = {"versions": {"gguf": version("gguf"), "numpy": np.__version__}, "types": out}
    (ROOT / "tests/golden/gguf/packed.json").write_text(json.dumps(golden) + "\n")


main()
