#!/usr/bin/env python3
"""Writes tests/golden/adapters/: small adapters of every supported kind as PEFT writes them, and the logits of PEFT with them.

pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2 safetensors
scripts/golden_adapters.py                      writes the folders and golden.safetensors
scripts/golden_adapters.py --check DIR/*        PEFT's logits with what sdrrl wrote again of them, against golden.safetensors:
                                                SDRRL_TEST_ADAPTERS=DIR cargo test --release --test all -- adapters::an_adapter_is_written
Each folder CASE.BASE is an adapter of tests/golden/models/BASE; golden.safetensors has, by folder, the logits (N, V) of the ids in `tokens`.
"""
import json
import shutil
import sys
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
OUT = GOLDEN / "adapters"
TOKENS = torch.tensor([3, 17, 90, 4, 4, 55, 8])
QV = ["q_proj", "v_proj"]
# Name: base, fields of LoraConfig, fields that are changed in the file afterwards.
CASES = {
    "plain": ("llama-tied", dict(target_modules=QV), {}),
    "rank-pattern": ("llama-tied", dict(target_modules=["q_proj", "o_proj", "down_proj"], alpha_pattern={"q_proj": 64},
                                        rank_pattern={"q_proj": 2, r"layers\.1\.self_attn\.o_proj": 5, "^model.layers.0.mlp.*": 1}), {}),
    "alpha-pattern": ("qwen2", dict(target_modules=QV, alpha_pattern={r"layers\.1\..*q_proj": 128, "q_proj|k_proj": 3.5}), {}),
    # Not in the order of the alphabet: the first that matches counts.
    "pattern-order": ("llama-tied", dict(target_modules=QV, rank_pattern={"q_proj": 3, ".*": 2}),
                      {"alpha_pattern": {"q_proj": 20, "layers.0.*": 2, ".*": 5}, "rank_pattern": {"q_proj": 3, ".*": 2}}),
    "one-layer": ("gemma3", dict(target_modules=QV, layers_to_transform=1), {}),
    "layers": ("gemma3", dict(target_modules=["k_proj", "up_proj"], layers_to_transform=[0, 2], layers_pattern=["blocks", "layers"]), {}),
    "exclude-names": ("llama-tied", dict(target_modules=QV, exclude_modules=["1.self_attn.q_proj"]), {}),
    "exclude-pattern": ("qwen2", dict(target_modules="all-linear", exclude_modules=r".*(mlp|\.0\.self_attn\.[kv]_proj).*", r=1), {}),
    "all-linear": ("llama-tied", dict(target_modules="all-linear", r=1), {"target_modules": "all-linear"}),
    "look-ahead": ("gemma3", dict(target_modules=r"model\.layers\.(?!1\.)\d+\.self_attn\.(q|o)_proj"), {}),
    "alternatives": ("llama-tied", dict(target_modules=r".*\.1\..*gate_proj|.*k_proj"), {}),
    "whole-paths": ("llama-tied", dict(target_modules=["model.layers.1.self_attn.q_proj", "layers.0.mlp.up_proj"]), {}),
    "rslora": ("qwen2", dict(target_modules=QV, use_rslora=True, rank_pattern={"v_proj": 2}), {}),
    "dora": ("qwen2", dict(target_modules=["q_proj", "down_proj"], use_dora=True, rank_pattern={"q_proj": 2},
                           alpha_pattern={r".*\.0\..*": 5}), {}),
    "dora-rslora": ("llama-tied", dict(target_modules=QV, use_dora=True, use_rslora=True), {}),
    "transposed": ("llama-tied", dict(target_modules=["k_proj"], fan_in_fan_out=True), {"fan_in_fan_out": True}),
    "bias-without": ("llama-tied", dict(target_modules=["k_proj"], bias="all"), {}),
    "gaussian": ("llama-tied", dict(target_modules=["k_proj"], init_lora_weights="gaussian", lora_dropout=0.1), {}),
    "orthogonal": ("llama-tied", dict(target_modules=["k_proj"], init_lora_weights="orthogonal"), {}),
    "mica": ("llama-tied", dict(target_modules=["k_proj"], init_lora_weights="mica"), {}),
    "eva": ("llama-tied", dict(target_modules=QV, init_lora_weights="eva", rank_pattern={"model.layers.0.self_attn.q_proj": 6}), {}),
    "bin": ("llama-tied", dict(target_modules=QV), {}),
    "bin-named-dora": ("llama-tied", dict(target_modules=["q_proj"], use_dora=True), {}),
    "half": ("llama-tied", dict(target_modules=["q_proj"]), {}),
    "bfloat16": ("llama-tied", dict(target_modules=["q_proj"]), {}),
    # What stands in the place of the base's own tensors.
    "lora-bias": ("qwen2", dict(target_modules=["q_proj"], lora_bias=True, r=1), {}),
    "bias-all": ("qwen2", dict(target_modules=["q_proj"], bias="all", r=1), {}),
    "saved-norms": ("llama-tied", dict(target_modules=["q_proj"], modules_to_save=["norm", "input_layernorm"], r=1), {}),
    "saved-linear": ("llama-tied", dict(target_modules=["q_proj"], modules_to_save=["1.mlp.down_proj"], r=1), {}),
    "saved-head": ("llama-tied", dict(target_modules=["q_proj"], modules_to_save=["lm_head"], r=1), {}),
    "saved-embedding": ("llama-tied", dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"], r=1), {}),
    "saved-both": ("qwen2", dict(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], r=1), {}),
    "saved-tied": ("llama-tied", dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True, r=1), {}),
    "tokens": ("qwen2", dict(target_modules=["q_proj"], trainable_token_indices=[90, 3], r=1), {}),
    "tokens-tied": ("gemma3", dict(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [4, 17, 8]}, r=1), {}),
    "tokens-both": ("qwen2", dict(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [4], "lm_head": [1, 2]}, r=1), {}),
    "embedding": ("qwen2", dict(target_modules=["q_proj", "embed_tokens"], r=2, use_rslora=True), {}),
    "embedding-tied": ("llama-tied", dict(target_modules=["embed_tokens"], r=2), {}),
    "head-dora": ("qwen2", dict(target_modules=["lm_head", "q_proj"], use_dora=True, r=2), {}),
    "head-tied": ("llama-tied", dict(target_modules=r".*\.1\..*q_proj|lm_head", rank_pattern={"lm_head": 3}, r=1), {}),
    # One A for the linears of a matrix.
    "fused": ("phi3", dict(target_modules=["qkv_proj", "o_proj"], rank_pattern={r"1\.self_attn\.qkv_proj": 2}, layers_to_transform=[0, 1]), {}),
    "fused-all-dora": ("phi3", dict(target_modules="all-linear", use_dora=True, use_rslora=True, r=2), {"target_modules": "all-linear"}),
    "fused-saved": ("phi3", dict(target_modules=["qkv_proj"], modules_to_save=["1.mlp.gate_up_proj"], r=1), {}),
}


def base_of(name):
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "models" / name, dtype=torch.float32, attn_implementation="eager").eval()


def logits_of(folder, base):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base_of(base), folder).eval()
    missing = [str(w.message) for w in said if "missing adapter keys" in str(w.message).lower()]
    assert not missing, missing
    with torch.no_grad():
        return model(input_ids=TOKENS[None]).logits[0]


def write(name, base, options, changes, seed):
    folder = OUT / f"{name}.{base}"
    torch.manual_seed(seed)
    model = get_peft_model(base_of(base), LoraConfig(**dict(r=4, lora_alpha=8, task_type="CAUSAL_LM") | options))
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_A" in key or "lora_B" in key:
                p.copy_(torch.randn(p.shape) * 0.2)
            if "magnitude" in key:
                p.mul_(1 + 0.2 * torch.rand(p.shape))
            elif p.requires_grad and "lora_" not in key or "lora_embedding" in key:
                p.add_(torch.randn(p.shape) * 0.1)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    tensors = load_file(folder / "adapter_model.safetensors")
    if name.startswith("bin"):
        # As older trainers save it: PyTorch's zip, with the adapter's name in the keys.
        if "named" in name:
            tensors = {k: p.detach() for k, p in model.state_dict().items() if "lora_" in k}
        torch.save(tensors, folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    elif name in ("half", "bfloat16"):
        save_file({k: t.to(getattr(torch, name if name != "half" else "float16")) for k, t in tensors.items()},
                  folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": base} | changes
    if isinstance(config["target_modules"], list):
        # PEFT keeps a set.
        config["target_modules"].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return logits_of(folder, base)


def main():
    if sys.argv[1:2] == ["--check"]:
        golden, worst = load_file(OUT / "golden.safetensors"), 0.0
        for folder in map(Path, sys.argv[2:]):
            difference = (logits_of(folder, folder.name.split(".")[1]) - golden[folder.name]).abs().max().item()
            worst = max(worst, difference)
            print(f"{difference:.1e} {folder.name}")
        sys.exit(not worst < 1e-4)
    shutil.rmtree(OUT, ignore_errors=True)
    golden = {"tokens": TOKENS.int()}
    for seed, (name, case) in enumerate(CASES.items()):
        golden[f"{name}.{case[0]}"] = write(name, *case, seed)
        plain = base_of(case[0])(input_ids=TOKENS[None]).logits[0]
        difference = (golden[f"{name}.{case[0]}"] - plain).abs().max().item()
        print(f"{difference:.3f} {name}")
        assert difference > 0.05, name
    save_file({k: t.contiguous() for k, t in golden.items()}, OUT / "golden.safetensors")


main()
