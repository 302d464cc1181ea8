#!/usr/bin/env python3
"""Writes tests/golden/models/: tiny random Llama and Mistral models with the logits, gradients and losses of PyTorch.

pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors
Each folder: config.json, model.safetensors (Hugging Face's format) and golden.safetensors:
  tokens, cu_seqlens, weights   a packed batch; weights[i] belongs to predicting the token after i
  logits                        (N, V), each document run alone
  full.loss, full.grad.NAME     loss = sum w nll / sum w, gradients of every parameter
  lora.VARIANT.{loss,param.NAME,grad.NAME,losses}   adapters with random A and B; losses of 10 AdamW steps (lr 0.01)
"""
import sys
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "models"
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, initializer_range=0.3, bos_token_id=1, eos_token_id=2, attn_implementation="eager")
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
MODELS = {
    "llama-tied": (LlamaForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=True), True),
    "mistral-window": (MistralForCausalLM, MistralConfig(**SMALL, sliding_window=5, head_dim=8, tie_word_embeddings=False), True),
    "llama-bias": (LlamaForCausalLM, LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=False), True),
    "llama-rope-llama3": (LlamaForCausalLM, LlamaConfig(**SMALL, rope_parameters={"rope_theta": 500.0, **LLAMA3}), False),
    "llama-rope-linear": (LlamaForCausalLM, LlamaConfig(**SMALL, rope_parameters={"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}), False),
    "llama-rope-yarn": (LlamaForCausalLM, LlamaConfig(**SMALL, rope_parameters={"rope_theta": 1e4, **YARN}), False),
}
LENGTHS = [9, 1, 14]


def batch(vocab):
    g = torch.Generator().manual_seed(7)
    n = sum(LENGTHS)
    tokens = torch.randint(0, vocab, (n,), generator=g)
    weights = torch.rand(n, generator=g)
    weights[torch.rand(n, generator=g) < 0.3] = 0
    ends = torch.tensor(LENGTHS).cumsum(0) - 1
    weights[ends] = 0
    return tokens, weights


def documents(x):
    return torch.split(x, LENGTHS)


def logits_of(model, tokens):
    return torch.cat([model(input_ids=t[None]).logits[0] for t in documents(tokens)])


def loss_of(model, tokens, weights):
    logp = torch.log_softmax(logits_of(model, tokens).float(), -1)
    targets = torch.roll(tokens, -1)
    nll = -logp[torch.arange(len(tokens)), targets]
    return (nll * weights).sum() / weights.sum()


def lora(model_of, tokens, weights, **options):
    model = get_peft_model(model_of(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **options))
    g = torch.Generator().manual_seed(3)
    trained = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in trained.items():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=g) * 0.2)
            if "magnitude" in name:
                p.mul_(1 + 0.2 * torch.rand(p.shape, generator=g))
    start = {n: p.detach().clone() for n, p in trained.items()}
    loss = loss_of(model, tokens, weights)
    loss.backward()
    out = {"loss": loss.detach()}
    out |= {f"param.{n.removesuffix('.weight')}": p for n, p in start.items()}
    out |= {f"grad.{n.removesuffix('.weight')}": p.grad.clone() for n, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01, weight_decay=0.0)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = loss_of(model, tokens, weights)
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
    out["losses"] = torch.tensor(losses, dtype=torch.float64).float()
    return out


def main():
    for name, (kind, config, train) in MODELS.items():
        folder = OUT / name
        torch.manual_seed(1)
        base = kind(config).eval()
        with torch.no_grad():
            for p in base.parameters():
                if p.ndim == 1:
                    p.add_(torch.rand_like(p) * 0.4 - 0.2)
        base.save_pretrained(folder)
        model_of = lambda: kind.from_pretrained(folder, attn_implementation="eager").eval()
        tokens, weights = batch(config.vocab_size)
        golden = {"tokens": tokens.int(), "cu_seqlens": torch.tensor([0] + LENGTHS).cumsum(0).int(), "weights": weights,
                  "logits": logits_of(model_of(), tokens).detach().float()}
        if train:
            model = model_of()
            loss = loss_of(model, tokens, weights)
            loss.backward()
            golden["full.loss"] = loss.detach()
            golden |= {f"full.grad.{n}": p.grad for n, p in model.named_parameters()}
            variants = {"plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
            for variant, options in variants.items():
                golden |= {f"lora.{variant}.{k}": v for k, v in lora(model_of, tokens, weights, **options).items()}
        golden = {k: (v.reshape(1) if v.ndim == 0 else v).contiguous() for k, v in golden.items()}
        save_file(golden, folder / "golden.safetensors", metadata=VERSIONS)
        for extra in ("generation_config.json",):
            (folder / extra).unlink(missing_ok=True)
        print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
