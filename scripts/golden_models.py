#!/usr/bin/env python3
"""Writes tests/golden/models/: tiny random models of every family with the logits, gradients, losses and greedy ids of PyTorch.

pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors gguf
scripts/golden_models.py [NAME ...]   writes these alone
Each folder: config.json, model.safetensors (Hugging Face's format) and golden.safetensors:
  tokens, cu_seqlens, weights   a packed batch; weights[i] belongs to predicting the token after i
  logits                        (N, V), each document run alone
  full.loss, full.grad.NAME     loss = sum w nll / sum w, gradients of every parameter
  lora.VARIANT.{loss,param.NAME,grad.NAME,losses}   adapters with random A and B; losses of 10 AdamW steps (lr 0.01)
  greedy                        64 ids after the first document
Some have model.gguf too: the same weights under llama.cpp's names, laid out as its converter does.
"""
import json
import math
import sys
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (CONFIG_MAPPING, Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GemmaConfig, GemmaForCausalLM,
                          GraniteConfig, GraniteForCausalLM, HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM, LlamaConfig, LlamaForCausalLM,
                          MistralConfig, MistralForCausalLM, Olmo2Config, Olmo2ForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, SmolLM3Config, SmolLM3ForCausalLM)

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "models"
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, initializer_range=0.3, bos_token_id=1, eos_token_id=2, attn_implementation="eager")
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = SMALL | dict(max_position_embeddings=128)
TINY = LONG | dict(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
                   pad_token_id=0, tie_word_embeddings=False)
GEMMA = LONG | dict(bos_token_id=2, eos_token_id=1, pad_token_id=0)
MODELS = {
    "llama-tied": (LlamaForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=True), True),
    "mistral-window": (MistralForCausalLM, MistralConfig(**SMALL, sliding_window=5, head_dim=8, tie_word_embeddings=False), True),
    "llama-bias": (LlamaForCausalLM, LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=False), True),
    "llama-rope-llama3": (LlamaForCausalLM, LlamaConfig(**SMALL, rope_parameters={"rope_theta": 500.0, **LLAMA3}), False),
    "llama-rope-linear": (LlamaForCausalLM, LlamaConfig(**SMALL, rope_parameters={"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}), False),
    "llama-rope-yarn": (LlamaForCausalLM, LlamaConfig(**SMALL, rope_parameters={"rope_theta": 1e4, **YARN}), False),
    # The last document is longer than the length from which on frequencies depend on a document's own.
    "llama-rope-dynamic": (LlamaForCausalLM, LlamaConfig(**SMALL | dict(max_position_embeddings=10), rope_parameters={
        "rope_theta": 1e4, "rope_type": "dynamic", "factor": 4.0}), False),
    "llama-rope-longrope": (LlamaForCausalLM, LlamaConfig(**SMALL, rope_parameters={
        "rope_theta": 1e4, "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 10,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 4.0, 8.0]}), False),
    # Tied by its configuration, but its file has another head.
    "llama-tied-head": (LlamaForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=True), False),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**LONG, use_sliding_window=True, sliding_window=5, max_window_layers=1,
                                            tie_word_embeddings=False), True),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**LONG, head_dim=16, tie_word_embeddings=True), True),
    # The families' own head size; without the gradients of its wide matrices.
    "gemma": (GemmaForCausalLM, GemmaConfig(**GEMMA | dict(hidden_size=16, num_attention_heads=2, num_key_value_heads=1), head_dim=256), False),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**GEMMA, head_dim=16, query_pre_attn_scalar=24, sliding_window=5, attn_logit_softcapping=3.0,
                                               final_logit_softcapping=0.5), True),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA | dict(num_hidden_layers=3), head_dim=16, query_pre_attn_scalar=24, sliding_window=5,
                                                   sliding_window_pattern=3, rope_parameters={
                                                       "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                                       "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}), True),
    # A window that the last document leaves, and more tokens than the original length; the greedy ids cross it.
    "phi3": (Phi3ForCausalLM, Phi3Config(**TINY | dict(vocab_size=96), original_max_position_embeddings=10, sliding_window=12, rope_parameters={
        "rope_theta": 1e4, "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 4.0, 8.0]}), False),
    "granite": (GraniteForCausalLM, GraniteConfig(**TINY, embedding_multiplier=3.0, residual_multiplier=0.6, attention_multiplier=0.3,
                                                  logits_scaling=0.7), False),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config(**TINY), False),
    # The fourth layer knows no positions.
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config(**TINY | dict(num_hidden_layers=4, tie_word_embeddings=True)), False),
    "hunyuan": (HunYuanDenseV1ForCausalLM, HunYuanDenseV1Config(**TINY, head_dim=16, rope_parameters={
        "rope_theta": 1e4, "rope_type": "dynamic", "factor": 1.0, "alpha": 50.0}), False),
    # Heads of another size than C / NH.
    "mistral-nemo": (MistralForCausalLM, MistralConfig(**TINY, head_dim=16, sliding_window=None), False),
}
# Beside those of before: adapters (without rsLoRA and DoRA), greedy ids.
NEW = ("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "granite", "olmo2", "smollm3", "hunyuan", "mistral-nemo")
# llama.cpp's names, where they are others.
ARCHITECTURES = {"mistral-nemo": "llama", "hunyuan": "hunyuan-dense"}
PERMUTED = ("llama", "granite", "smollm3")
WITH_HEAD_SIZE = ("llama", "qwen3", "gemma", "gemma2", "gemma3", "hunyuan-dense")
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


def greedy(model, tokens):
    ids = documents(tokens)[0].tolist()
    margin = float("inf")
    for _ in range(64):
        with torch.no_grad():
            best = model(input_ids=torch.tensor([ids])).logits[0, -1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    assert len(set(ids[-64:])) > 4, ids
    assert margin > 1e-4, f"a tie: {margin}"
    return torch.tensor(ids[-64:]).int()


def permuted(w, heads):
    """The rows of each head interleaved: x0 y0 x1 y1 ... from all x, then all y."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "self_attn.query_layernorm": "attn_q_norm",
         "self_attn.key_layernorm": "attn_k_norm", "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up", "pre_feedforward_layernorm": "ffn_norm",
         "post_feedforward_layernorm": "post_ffw_norm"}


def llama3_factors(rope, size):
    """By what each frequency is divided, as convert_hf_to_gguf.py writes it (generate_extra_tensors)."""
    import numpy as np
    freqs = 1.0 / (rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    low, high = (rope["original_max_position_embeddings"] / rope[k] for k in ("low_freq_factor", "high_freq_factor"))
    out = []
    for f in freqs:
        wave = 2 * torch.pi / f
        if wave < high:
            out.append(1)
        elif wave > low:
            out.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            out.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array([float(x) for x in out], dtype=np.float32)


def write_gguf(path, model, architecture):
    """As llama.cpp's convert_hf_to_gguf.py does it: q and k of some are permuted, Gemma's gains stored as 1 + w."""
    import gguf
    c, gemma = model.config, architecture.startswith("gemma")
    w = gguf.GGUFWriter(path, architecture)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_vocab_size(c.vocab_size)
    w.add_bos_token_id(c.bos_token_id)
    w.add_eos_token_id(c.eos_token_id)
    if architecture in WITH_HEAD_SIZE:
        w.add_key_length(c.head_dim)
        w.add_value_length(c.head_dim)
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    alpha = rope.get("alpha")
    w.add_rope_freq_base(rope["rope_theta"] * (alpha ** (c.head_dim / (c.head_dim - 2)) if alpha else 1))
    if alpha:
        w.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        w.add_rope_scaling_factor(1)
    if architecture == "granite":
        w.add_attention_scale(c.attention_multiplier)
        w.add_embedding_scale(c.embedding_multiplier)
        w.add_residual_scale(c.residual_multiplier)
        w.add_logit_scale(c.logits_scaling)
    if architecture == "phi3":
        import numpy as np
        original = rope["original_max_position_embeddings"]
        w.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
        w.add_sliding_window(c.sliding_window)
        w.add_rope_scaling_orig_ctx_len(original)
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(c.max_position_embeddings / original) / math.log(original)))
        for kind in ("long", "short"):
            w.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], dtype=np.float32))
    if rope["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        w.add_tensor("rope_freqs.weight", llama3_factors(rope, c.head_dim))
    if architecture in ("gemma2", "gemma3"):
        w.add_sliding_window(c.sliding_window)
    if architecture == "gemma3":
        w.add_sliding_window_pattern(3)
    if architecture == "gemma2":
        w.add_attn_logit_softcapping(c.attn_logit_softcapping)
        w.add_final_logit_softcapping(c.final_logit_softcapping)
    for name, t in model.state_dict().items():
        data = t.float().numpy()
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        if gemma and name.endswith("norm.weight"):
            data = data + 1
        whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
        if name in whole:
            w.add_tensor(whole[name], data)
            continue
        _, _, layer, rest = name.split(".", 3)
        module, kind = rest.rsplit(".", 1)
        if architecture in PERMUTED and module.endswith(("q_proj", "k_proj")):
            data = permuted(data, c.num_attention_heads if module.endswith("q_proj") else c.num_key_value_heads)
        ours = NAMES.get(module) or ("post_attention_norm" if architecture in ("gemma2", "gemma3", "olmo2") else "ffn_norm")
        w.add_tensor(f"blk.{layer}.{ours}.{kind}", data.copy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def defaults():
    """What the configuration classes have where a config.json is silent."""
    kinds = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "granite", "olmo2", "smollm3", "hunyuan_v1_dense"]
    out = {kind: CONFIG_MAPPING[kind]().to_dict() for kind in kinds}
    (OUT / "defaults.json").write_text(json.dumps(out, indent=1) + "\n")


def main():
    defaults()
    for name, (kind, config, train) in MODELS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        folder = OUT / name
        torch.manual_seed(1)
        base = kind(config).eval()
        with torch.no_grad():
            for p in base.parameters():
                if p.ndim == 1:
                    p.add_(torch.rand_like(p) * 0.4 - 0.2)
            if name.startswith(("gemma", "granite")):
                # Else the scaled embedding outweighs the layers, and each token is followed by itself.
                base.model.embed_tokens.weight.mul_(0.15)
        base.save_pretrained(folder)
        if name == "llama-tied-head":
            tensors = load_file(folder / "model.safetensors")
            tensors["lm_head.weight"] = torch.randn(tensors["model.embed_tokens.weight"].shape, generator=torch.Generator().manual_seed(5)) * 0.3
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
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
        if train or name in NEW:
            variants = {"plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
            if name in NEW:
                variants = {k: v for k, v in variants.items() if k == "plain" or (k == "dora" and name == "phi3")}
            for variant, options in variants.items():
                golden |= {f"lora.{variant}.{k}": v for k, v in lora(model_of, tokens, weights, **options).items()}
        if name in NEW:
            golden["greedy"] = greedy(model_of(), tokens)
        if name in NEW or name in ("llama-bias", "llama-rope-llama3"):
            write_gguf(folder / "model.gguf", model_of(), ARCHITECTURES.get(name, name.split("-")[0]))
        golden = {k: (v.reshape(1) if v.ndim == 0 else v).contiguous() for k, v in golden.items()}
        save_file(golden, folder / "golden.safetensors", metadata=VERSIONS)
        for extra in ("generation_config.json",):
            (folder / extra).unlink(missing_ok=True)
        print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
