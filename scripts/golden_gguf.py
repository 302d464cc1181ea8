#!/usr/bin/env python3
"""Writes tests/golden/gguf/: small random Llamas whose matrices are blocks of every type that a GGUF file of today may hold.

blocks.gguf has a tied head, plain.gguf a head of its own and biases of attention, chat.gguf the tokenizer of tests/golden/tokenizer/bpe.gguf. Rows of q and k are permuted as llama.cpp's
convert_hf_to_gguf.py does; phi3/ has a Phi 3 whose fused matrices are blocks, and its dequantised weights in Hugging Face's layout; in plain.gguf the biases of q and k count upwards in Hugging Face's order. Types that the package
does not quantise to are random blocks with scales of a weight's size.

pip install gguf==0.19.0 numpy safetensors"""
import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T, GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

C, F, V, HEADS, KV_HEADS, HEAD = 32, 256, 96, 8, 1, 32
# Where the f16 scales of the types stand that the package does not quantise to, and how large the numbers that they scale are.
SCALES = {T.Q2_K: ([80, 82], 40), T.Q3_K: ([108], 80), T.Q4_K: ([0, 2], 900), T.Q5_K: ([0, 2], 1800), T.Q6_K: ([208], 2500),
          T.IQ4_NL: ([0], 60), T.IQ4_XS: ([0], 1500)}


def blocks(rng, kind, rows, cols):
    values, size = GGML_QUANT_SIZES[kind]
    if kind not in SCALES:
        return quantize((rng.standard_normal((rows, cols)) * 0.2).astype(np.float32), kind)
    places, large = SCALES[kind]
    out = rng.integers(0, 256, (rows * cols // values, size), dtype=np.uint8)
    for at in places:
        scale = (rng.uniform(0.1, 0.4, len(out)) / large).astype(np.float16)
        out[:, at:at + 2] = scale.view(np.uint8).reshape(-1, 2)
    return out.reshape(rows, -1)


def permute(x, heads):
    return x.reshape(heads, 2, len(x) // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"


def add_tokenizer(out):
    """The tokenizer of bpe.gguf; its number of tokens."""
    fields = {key: field.contents() for key, field in GGUFReader(GOLDEN / "tokenizer" / "bpe.gguf").fields.items()}
    out.add_tokenizer_model(fields["tokenizer.ggml.model"])
    out.add_tokenizer_pre(fields["tokenizer.ggml.pre"])
    out.add_token_list(fields["tokenizer.ggml.tokens"])
    out.add_token_types(fields["tokenizer.ggml.token_type"])
    out.add_token_merges(fields["tokenizer.ggml.merges"])
    out.add_bos_token_id(fields["tokenizer.ggml.bos_token_id"])
    out.add_eos_token_id(fields["tokenizer.ggml.eos_token_id"])
    out.add_add_bos_token(fields["tokenizer.ggml.add_bos_token"])
    out.add_chat_template(fields["tokenizer.chat_template"])
    return len(fields["tokenizer.ggml.tokens"])


def write(name, layers, embedding, head, biases, tokenizer=False):
    rng = np.random.default_rng(1)
    out = GGUFWriter(GOLDEN / "gguf" / name, "llama")
    vocabulary = add_tokenizer(out) if tokenizer else V
    out.add_vocab_size(vocabulary)
    out.add_context_length(256 if tokenizer else 64)
    out.add_embedding_length(C)
    out.add_feed_forward_length(F)
    out.add_block_count(len(layers))
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_key_length(HEAD)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)

    def gain(name):
        out.add_tensor(name, (1 + 0.1 * rng.standard_normal(C)).astype(np.float32))

    out.add_tensor("token_embd.weight", blocks(rng, embedding, vocabulary, C), raw_dtype=embedding)
    for i, (q, k, v, o, gate, up, down) in enumerate(layers):
        shapes = {"attn_q": (q, HEADS * HEAD, C), "attn_k": (k, KV_HEADS * HEAD, C), "attn_v": (v, KV_HEADS * HEAD, C),
                  "attn_output": (o, C, HEADS * HEAD), "ffn_gate": (gate, F, C), "ffn_up": (up, F, C), "ffn_down": (down, C, F)}
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}
        for stem, (kind, rows, cols) in shapes.items():
            w = blocks(rng, kind, rows, cols)
            w = permute(w, heads[stem]) if stem in heads else w
            out.add_tensor(f"blk.{i}.{stem}.weight", w, raw_dtype=kind)
            if biases and stem.startswith("attn"):
                b = np.arange(rows, dtype=np.float32) / 1024
                out.add_tensor(f"blk.{i}.{stem}.bias", permute(b, heads[stem]) if stem in heads else b)
        gain(f"blk.{i}.attn_norm.weight")
        gain(f"blk.{i}.ffn_norm.weight")
    gain("output_norm.weight")
    if head:
        out.add_tensor("output.weight", blocks(rng, head, vocabulary, C), raw_dtype=head)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


write("blocks.gguf", [
    (T.Q4_0, T.Q5_0, T.Q5_1, T.Q4_K, T.IQ4_NL, T.Q4_1, T.Q6_K),
    (T.IQ4_NL, T.Q8_0, T.F16, T.Q2_K, T.Q4_0, T.Q5_0, T.Q3_K),
    (T.Q4_1, T.Q4_0, T.BF16, T.IQ4_XS, T.Q4_0, T.IQ4_NL, T.Q5_K),
], T.Q8_0, None, False)
write("plain.gguf", [(T.F16, T.F32, T.F32, T.Q6_K, T.Q8_0, T.Q5_1, T.IQ4_XS)], T.Q4_1, T.IQ4_NL, True)
write("chat.gguf", [(T.Q4_0, T.Q8_0, T.Q5_1, T.Q4_K, T.Q8_0, T.Q4_1, T.Q6_K), (T.Q8_0, T.Q5_0, T.F16, T.Q6_K, T.IQ4_NL, T.Q8_0, T.Q4_K)],
      T.Q8_0, None, False, tokenizer=True)


def write_phi3(width=32, inner=64, vocabulary=64, heads=2, kv_heads=1):
    """The fused matrices are of two types, and no part of them begins at a multiple of the file's alignment."""
    rng, folder, head = np.random.default_rng(2), GOLDEN / "gguf" / "phi3", width // heads
    folder.mkdir(exist_ok=True)
    out = GGUFWriter(folder / "model.gguf", "phi3")
    sizes = dict(vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=1, num_attention_heads=heads,
                 num_key_value_heads=kv_heads, max_position_embeddings=64, rms_norm_eps=1e-5)
    out.add_vocab_size(vocabulary)
    out.add_context_length(64)
    out.add_embedding_length(width)
    out.add_feed_forward_length(inner)
    out.add_block_count(1)
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(head)
    out.add_rope_freq_base(10000.0)
    out.add_sliding_window(0)
    tensors = {}
    for theirs, ours, kind, rows, cols in [
            ("token_embd", "embed_tokens", T.Q8_0, vocabulary, width), ("output", "lm_head", T.Q4_1, vocabulary, width),
            ("blk.0.attn_qkv", "layers.0.self_attn.qkv_proj", T.Q4_0, (heads + 2 * kv_heads) * head, width),
            ("blk.0.attn_output", "layers.0.self_attn.o_proj", T.Q8_0, width, width),
            ("blk.0.ffn_up", "layers.0.mlp.gate_up_proj", T.Q5_1, 2 * inner, width), ("blk.0.ffn_down", "layers.0.mlp.down_proj", T.Q8_0, width, inner)]:
        w = blocks(rng, kind, rows, cols)
        out.add_tensor(f"{theirs}.weight", w, raw_dtype=kind)
        tensors[("" if ours == "lm_head" else "model.") + ours + ".weight"] = dequantize(w, kind)
    for theirs, ours in [("blk.0.attn_norm", "layers.0.input_layernorm"), ("blk.0.ffn_norm", "layers.0.post_attention_layernorm"), ("output_norm", "norm")]:
        tensors[f"model.{ours}.weight"] = (1 + 0.1 * rng.standard_normal(width)).astype(np.float32)
        out.add_tensor(f"{theirs}.weight", tensors[f"model.{ours}.weight"])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "tie_word_embeddings": False, **sizes}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


write_phi3()
