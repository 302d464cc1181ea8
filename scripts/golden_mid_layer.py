#!/usr/bin/env python3
"""Writes tests/golden/mid_layer.safetensors: the loss of mid-layer alignment (Liu and Niehues 2025, arXiv 2502.14830) on tiny models of tests/golden/models.

pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2 safetensors
The loss is written as the authors' code has it (dannigt/mid-align, modeling_llama.py): hidden states behind a layer, meaned over the tokens of each sentence, cosine_similarity of all
pairs, divided by the temperature, LogSoftmax over the translations, the diagonal, its mean; gradients go through both sides.
  {source,target}.{tokens,cu_seqlens}   sentences and their translations
  CASE.how                              layer, temperature
  CASE.param.NAME                       the adapter
  CASE.{loss,retrieval,means,grad.NAME} the loss, the share of sentences whose translation is the nearest, the means (sentences, then translations), gradients of the adapter
"""
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

GOLDEN, VOCAB = Path(__file__).resolve().parent.parent / "tests" / "golden", 96
LENGTHS = [(3, 5), (7, 4), (1, 2), (6, 6), (9, 8)]
# Model, layer, temperature, DoRA.
CASES = {
    "middle": ("llama-tied", 1, 0.1, False),
    "top": ("llama-tied", 2, 1.0, False),
    "dora": ("llama-tied", 1, 0.1, True),
    "biases": ("qwen2", 1, 0.05, False),
}


def sentences():
    g = torch.Generator().manual_seed(31)
    draw = lambda n: torch.randint(3, VOCAB, (n,), generator=g).tolist()
    return [(draw(a), draw(b)) for a, b in LENGTHS]


def pooled(m, layer, texts):
    """Padded on the right, as the authors do."""
    longest = max(map(len, texts))
    ids = torch.tensor([t + [0] * (longest - len(t)) for t in texts])
    mask = torch.tensor([[1.0] * len(t) + [0.0] * (longest - len(t)) for t in texts], dtype=torch.float64)
    states = m(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[layer]
    return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1).unsqueeze(-1)


def trained(m):
    return {n.replace(".default", "").removesuffix(".weight"): p for n, p in m.named_parameters() if p.requires_grad}


def moved(m):
    """The adapter away from where it begins, in numbers that f32 has."""
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, p in trained(m).items():
            if "magnitude" in name:
                p.mul_(1.1)
            else:
                p.copy_(torch.randn(p.shape, generator=g) * (0.15 if "lora_B" in name else 0.2))
            p.copy_(p.float())
    return m


def run(pairs, name, layer, temperature, dora):
    base = AutoModelForCausalLM.from_pretrained(GOLDEN / "models" / name, dtype=torch.float64, attn_implementation="eager")
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=dora)
    m = moved(get_peft_model(base, config).double())
    a, b = (pooled(m, layer, [p[i] for p in pairs]) for i in range(2))
    n, h = a.shape
    logits = F.cosine_similarity(a.expand((n, n, h)), b.expand((n, n, h)).transpose(0, 1), dim=-1) / temperature
    loss = -torch.nn.LogSoftmax(0)(logits).diag().mean()
    loss.backward()
    retrieval = (logits.argmax(0) == torch.arange(n)).double().mean()
    print(name, layer, temperature, dora, float(loss.detach()), float(retrieval), file=sys.stderr)
    out = {"how": torch.tensor([layer, temperature]), "loss": loss.detach(), "retrieval": retrieval, "means": torch.cat([a, b]).detach()}
    for n, p in trained(m).items():
        out[f"param.{n}"] = p.detach()
        # Above the layer nothing is learnt.
        out[f"grad.{n}"] = torch.zeros_like(p) if p.grad is None else p.grad
    return out


def main():
    pairs = sentences()
    golden = {}
    for i, name in enumerate(["source", "target"]):
        golden[f"{name}.tokens"] = torch.tensor([t for p in pairs for t in p[i]]).int()
        golden[f"{name}.cu_seqlens"] = torch.tensor([0] + [len(p[i]) for p in pairs]).cumsum(0).int()
    for name, how in CASES.items():
        golden |= {f"{name}.{k}": v.float() for k, v in run(pairs, *how).items()}
    golden = {k: (v.reshape(1) if v.ndim == 0 else v).contiguous() for k, v in golden.items()}
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    save_file(golden, GOLDEN / "mid_layer.safetensors", metadata=versions)


if __name__ == "__main__":
    main()
