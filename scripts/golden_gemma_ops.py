"""Writes tests/golden/gemma_ops.safetensors: forward and backward of what Gemma adds to Llama's operations, by the modules of transformers and PyTorch
autograd in f64: capped attention (Gemma 2's eager function, grouped queries, packed documents, sliding window), RMSNorm with 1 + weight, GeGLU by tanh and by erf,
the scaled embedding, and the capped loss. Usage: python scripts/golden_gemma_ops.py"""

from types import SimpleNamespace

import torch
import transformers
from safetensors.torch import save_file
from transformers.activations import ACT2FN
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm, Gemma2TextScaledWordEmbedding, eager_attention_forward

torch.manual_seed(20240613)
stored = {}


def leaf(name, *shape, scale=1.0):
    """A random input, exact in f32, that gradients are taken of."""
    x = torch.randn(*shape, dtype=torch.float32) * scale
    stored[name] = x
    return x.double().requires_grad_(True)


def store(name, x):
    stored[name] = x.detach().float().contiguous()


def gradients(prefix, out, dout, **inputs):
    store(f"{prefix}.out", out)
    for name, x in zip(inputs, torch.autograd.grad(out, list(inputs.values()), dout, allow_unused=False)):
        store(f"{prefix}.d{name}", x)


def attention(lengths, heads, kv_heads, head_size, windows, cap, scale):
    n = sum(lengths)
    q, k, v = leaf("attention.q", n, heads, head_size), leaf("attention.k", n, kv_heads, head_size), leaf("attention.v", n, kv_heads, head_size)
    dout = leaf("attention.dout", n, heads, head_size)
    stored["attention.lengths"] = torch.tensor(lengths, dtype=torch.int32)
    module = SimpleNamespace(num_key_value_groups=heads // kv_heads, training=False, head_dim=head_size)
    # The function takes the softmax in f32 whatever it is given; here it is taken in f64.
    softmax = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim, dtype=None: softmax(x, dim=dim)
    for window in windows:
        outs, start = [], 0
        for length in lengths:
            i = torch.arange(length)
            visible = (i[:, None] >= i[None]) & (i[:, None] - i[None] < (window or length))
            mask = torch.where(visible, 0.0, float("-inf")).double()[None, None]
            q_, k_, v_ = (x[start : start + length].transpose(0, 1)[None] for x in (q, k, v))
            out, _ = eager_attention_forward(module, q_, k_, v_, mask, dropout=0.0, scaling=scale, softcap=cap)
            outs.append(out[0])
            start += length
        gradients(f"attention.window{window}", torch.cat(outs), dout, q=q, k=k, v=v)
    torch.nn.functional.softmax = softmax


def rmsnorm(n, c):
    inp, weight, dout = leaf("rmsnorm.inp", n, c), leaf("rmsnorm.weight", c), leaf("rmsnorm.dout", n, c)
    module = Gemma2RMSNorm(c, eps=1e-6)
    module.weight = torch.nn.Parameter(stored["rmsnorm.weight"])
    out = (1.0 + weight) * inp * torch.rsqrt(inp.pow(2).mean(-1, keepdim=True) + 1e-6)
    # The module itself computes in f32: it vouches for the formula, autograd in f64 gives the numbers.
    assert torch.allclose(module(stored["rmsnorm.inp"]).double(), out, atol=1e-5)
    gradients("rmsnorm", out, dout, inp=inp, weight=weight)


def geglu(n, f):
    gate, up, dout = leaf("geglu.gate", n, f, scale=3.0), leaf("geglu.up", n, f), leaf("geglu.dout", n, f)
    for name in ("gelu_pytorch_tanh", "gelu"):
        gradients(f"geglu.{name}", ACT2FN[name](gate) * up, dout, gate=gate, up=up)


def embedding(v, c, ids):
    """In bf16, where the scale is rounded, and so is the product."""
    weight = leaf("embedding.weight", v, c)
    module = Gemma2TextScaledWordEmbedding(v, c, 0, embed_scale=c**0.5).to(torch.bfloat16)
    module.embed_scale = torch.tensor(c**0.5)  # transformers makes it in f32
    module.weight = torch.nn.Parameter(weight.detach().bfloat16())
    stored["embedding.ids"] = torch.tensor(ids, dtype=torch.int32)
    store("embedding.out", module(torch.tensor(ids)))


def loss(n, c, v, cap):
    """The sum of the negative log-likelihoods of capped logits, as Gemma2ForCausalLM caps them."""
    hidden, weight = leaf("loss.hidden", n, c), leaf("loss.weight", v, c)
    targets = torch.arange(n) * 7 % v
    stored["loss.targets"] = targets.int()
    logits = hidden @ weight.T / cap
    logits = torch.tanh(logits) * cap
    store("loss.logits", logits)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    gradients("loss", losses, torch.ones(n).double(), hidden=hidden, weight=weight)


attention([7, 1, 26], 4, 2, 16, [None, 5], cap=2.0, scale=0.25)
rmsnorm(5, 27)
geglu(4, 37)
embedding(11, 48, [3, 0, 10, 3])
loss(9, 12, 31, cap=3.0)
versions = {"torch": torch.__version__, "transformers": transformers.__version__, "script": "scripts/golden_gemma_ops.py"}
save_file(stored, "tests/golden/gemma_ops.safetensors", metadata=versions)
print(f"{len(stored)} tensors", versions)
