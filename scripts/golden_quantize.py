#!/usr/bin/env python3
"""Writes tests/golden/gguf/made.json: rows of values and the blocks that ggml makes of them (`ggml_quantize_chunk`, no importance matrix), and which tensors of small models get another
type than the file's own from llama.cpp's `llama_model_quantize`. Its quantisation looks at names and settings alone, so that tensors of two rows stand for those of a model.

pip install llama-cpp-python==0.3.36 gguf==0.19.0 numpy"""
import ctypes
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType as T, GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

FILE_TYPES = {"F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q4_K_M": 15, "Q4_K_S": 14}
DEFAULT = {"Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K"}
MODELS = [  # architecture, layers, heads, kv heads, columns, head of its own
    ("llama", 1, 4, 2, 256, True), ("llama", 10, 4, 4, 256, False), ("qwen2", 30, 4, 2, 512, True), ("gemma3", 8, 4, 1, 96, False), ("llama", 3, 4, 4, 80, True),
    ("llama", 80, 8, 1, 256, True), ("llama", 80, 8, 8, 256, True), ("qwen2", 80, 8, 8, 256, False), ("qwen3", 80, 8, 1, 256, True)]


def rows():
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((20, 256)) * 0.05).astype(np.float32)
    x[1] = 0                                      # nothing
    x[2] = 0.5                                    # one value
    x[3] = np.abs(x[3])                           # no minimum
    x[4] = -np.abs(x[4])
    x[5, :32] *= 3000                             # the scales of the others round to nothing
    x[6] *= 1e-6                                  # scales that f16 holds as subnormals
    x[7] *= 1e-16
    x[8] = np.round(x[8] * 40) / 8                # ties
    x[9] = np.arange(256) % 32 - 16
    x[10, ::16] = 7                               # outliers
    x[11, 32:64] = 0
    x[12] = rng.standard_t(2, 256)
    x[13] *= 1e5
    x[14, 5] = 60000
    x[15] = np.where(rng.random(256) < 0.9, 0, x[15])
    x[16] = 1e-20
    return x.astype(np.float32)


def blocks(x, kind):
    base = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    values, size = GGML_QUANT_SIZES[kind]
    out = np.zeros(x.size // values * size, dtype=np.uint8)
    assert base.ggml_quantize_chunk(int(kind), x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[1], None) == out.size
    return out.tobytes().hex()


def mixes(work, architecture, layers, heads, kv_heads, cols, head):
    path, to = str(work / "m.gguf"), str(work / "q.gguf")
    out = GGUFWriter(path, architecture)
    out.add_context_length(64)
    out.add_embedding_length(cols)
    out.add_feed_forward_length(cols)
    out.add_block_count(layers)
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_key_length(32)
    out.add_value_length(32)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_sliding_window(16)
    names = ["token_embd.weight"] + ["output.weight"] * head
    parts = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    names += [f"blk.{i}.{part}.weight" for i in range(layers) for part in parts]
    for name in names:
        out.add_tensor(name, np.ones((2, cols), dtype=np.float32))
    out.add_tensor("output_norm.weight", np.ones(cols, dtype=np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    found = {}
    for name, number in FILE_TYPES.items():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread = number, 1
        assert llama_cpp.llama_model_quantize(path.encode(), to.encode(), ctypes.byref(params)) == 0
        kinds = {t.name: t.tensor_type.name for t in GGUFReader(to).tensors}
        assert kinds.pop("output_norm.weight") == "F32"
        found[name] = {t: kind for t, kind in sorted(kinds.items()) if kind != DEFAULT.get(name, name)}
    return {"architecture": architecture, "layers": layers, "heads": heads, "kv-heads": kv_heads, "cols": cols, "head": head, "others": found}


def main():
    x = rows()
    kinds = [T.Q8_0, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K]
    out = {"versions": {name: version(name) for name in ("llama-cpp-python", "gguf", "numpy")}, "cols": 256, "values": x.tobytes().hex(),
           "types": {str(int(kind)): blocks(x, kind) for kind in kinds}}
    with tempfile.TemporaryDirectory() as work:
        out["mixes"] = [mixes(Path(work), *model) for model in MODELS]
    path = Path(__file__).resolve().parent.parent / "tests" / "golden" / "gguf" / "made.json"
    path.write_text(json.dumps(out) + "\n")


main()
