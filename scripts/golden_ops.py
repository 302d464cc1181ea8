"""Writes tests/golden/ops.safetensors: forward and backward of attention (grouped queries, packed documents, sliding window),
RMSNorm, RoPE, SwiGLU, LayerNorm, GELU, ReLU and tanh, by PyTorch autograd in f64 over the modules of transformers. Usage: python scripts/golden_ops.py"""

import torch
import transformers
from safetensors.torch import save_file
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

torch.manual_seed(20240219)
stored = {}


def leaf(name, *shape, scale=1.0):
    """A random input, exact in f32, that gradients are taken of."""
    x = torch.randn(*shape, dtype=torch.float32) * scale
    stored[name] = x
    return x.double().requires_grad_(True)


def store(name, x):
    stored[name] = x.detach().float().contiguous()


def attention(lengths, heads, kv_heads, head_size, windows):
    n = sum(lengths)
    q, k, v = leaf("attention.q", n, heads, head_size), leaf("attention.k", n, kv_heads, head_size), leaf("attention.v", n, kv_heads, head_size)
    dout = leaf("attention.dout", n, heads, head_size)
    stored["attention.lengths"] = torch.tensor(lengths, dtype=torch.int32)
    for window in windows:
        outs, start = [], 0
        for length in lengths:
            i = torch.arange(length)
            visible = (i[:, None] >= i[None]) & (i[:, None] - i[None] < (window or length))
            q_, k_, v_ = (x[start : start + length].transpose(0, 1) for x in (q, k, v))
            out = torch.nn.functional.scaled_dot_product_attention(q_[None], k_[None], v_[None], attn_mask=visible, enable_gqa=True)
            outs.append(out[0].transpose(0, 1))
            start += length
        out = torch.cat(outs)
        dq, dk, dv = torch.autograd.grad(out, (q, k, v), dout)
        for name, x in (("out", out), ("dq", dq), ("dk", dk), ("dv", dv)):
            store(f"attention.window{window}.{name}", x)


def rmsnorm(n, c):
    inp, weight, dout = leaf("rmsnorm.inp", n, c), leaf("rmsnorm.weight", c), leaf("rmsnorm.dout", n, c)
    module = LlamaRMSNorm(c, eps=1e-5)
    module.weight = torch.nn.Parameter(stored["rmsnorm.weight"])
    out = weight * inp * torch.rsqrt(inp.pow(2).mean(-1, keepdim=True) + 1e-5)
    # The module itself computes in f32: it vouches for the formula, autograd in f64 gives the numbers.
    assert torch.allclose(module(stored["rmsnorm.inp"]).double(), out, atol=1e-5)
    dinp, dweight = torch.autograd.grad(out, (inp, weight), dout)
    for name, x in (("out", out), ("dinp", dinp), ("dweight", dweight)):
        store(f"rmsnorm.{name}", x)


def rope(positions, heads, head_size):
    config = LlamaConfig(hidden_size=heads * head_size, num_attention_heads=heads, max_position_embeddings=64)
    table_cos, table_sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(64)[None])
    x, dout = leaf("rope.x", len(positions), heads, head_size), leaf("rope.dout", len(positions), heads, head_size)
    store("rope.cos", table_cos[0, :, : head_size // 2])
    store("rope.sin", table_sin[0, :, : head_size // 2])
    stored["rope.positions"] = torch.tensor(positions, dtype=torch.int32)
    cos, sin = table_cos[:, positions].double(), table_sin[:, positions].double()
    out, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)
    out = out[0].transpose(0, 1)
    store("rope.out", out)
    store("rope.dx", torch.autograd.grad(out, x, dout)[0])


def swiglu(n, f):
    gate, up, dout = leaf("swiglu.gate", n, f, scale=3.0), leaf("swiglu.up", n, f), leaf("swiglu.dout", n, f)
    out = torch.nn.functional.silu(gate) * up
    dgate, dup = torch.autograd.grad(out, (gate, up), dout)
    store("swiglu.out", out)
    store("swiglu.dgate", dgate)
    store("swiglu.dup", dup)


def layernorm(n, c):
    inp, weight, bias, dout = (leaf(f"layernorm.{x}", *shape) for x, shape in (("inp", (n, c)), ("weight", (c,)), ("bias", (c,)), ("dout", (n, c))))
    out = torch.nn.functional.layer_norm(inp, (c,), weight, bias, 1e-5)
    store("layernorm.out", out)
    for name, x in zip(("dinp", "dweight", "dbias"), torch.autograd.grad(out, (inp, weight, bias), dout)):
        store(f"layernorm.{name}", x)


def activations(n, c):
    inp, dout = leaf("activation.inp", n, c, scale=3.0), leaf("activation.dout", n, c)
    for name, f in (("gelu", torch.nn.functional.gelu), ("relu", torch.relu), ("tanh", torch.tanh)):
        out = f(inp)
        store(f"activation.{name}.out", out)
        store(f"activation.{name}.dinp", torch.autograd.grad(out, inp, dout)[0])


attention([7, 1, 26], 4, 2, 16, [None, 5])
rmsnorm(5, 27)
rope([0, 1, 2, 0, 1, 63, 17], 3, 16)
swiglu(4, 37)
layernorm(5, 27)
activations(4, 37)
versions = {"torch": torch.__version__, "transformers": transformers.__version__, "script": "scripts/golden_ops.py"}
save_file(stored, "tests/golden/ops.safetensors", metadata=versions)
print(f"{len(stored)} tensors", versions)
