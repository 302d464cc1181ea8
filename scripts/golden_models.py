#!/usr/bin/env python3
"""Writes tests/golden/models/: tiny random models of every family with the logits, gradients, losses and greedy ids of PyTorch.

pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors gguf
scripts/golden_models.py [NAME ...]   writes these alone
Each folder: config.json, model.safetensors (Hugging Face's format) and golden.safetensors:
  tokens, cu_seqlens, weights   a packed batch; weights[i] belongs to predicting the token after i
  logits                        (N, V), each document run alone
  full.loss, full.grad.NAME     loss = sum w nll / sum w, gradients of every parameter
  lora.VARIANT.{loss,param.NAME,grad.NAME,losses}   adapters (`experts`: on the linears of experts too, as modules of their own, which checkpoints know them as) with random A and B; losses of 10 AdamW steps (lr 0.01)
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
from peft.utils import transformers_weight_conversion
from safetensors.torch import load_file, save_file
from transformers import (CONFIG_MAPPING, Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GemmaConfig, GemmaForCausalLM,
                          GraniteConfig, GraniteForCausalLM, HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM, LlamaConfig, LlamaForCausalLM,
                          MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM, Olmo2Config, Olmo2ForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM, SmolLM3Config, SmolLM3ForCausalLM)

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
    # Experts of 12 in every layer; two of six a token, whose shares sum to 1.
    "qwen3-moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**TINY, head_dim=16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=12,
                                                      norm_topk_prob=True), True),
    # Every second layer but one that is listed; shares of all experts, of which a token has three.
    "qwen3-moe-mixed": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**TINY | dict(num_hidden_layers=6), head_dim=8, num_experts=5, num_experts_per_tok=3,
                                                            moe_intermediate_size=20, norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[3]), True),
    "mixtral": (MixtralForCausalLM, MixtralConfig(**TINY, num_local_experts=4, num_experts_per_tok=2, sliding_window=None), True),
    # Heads of another size than C / NH.
    "mistral-nemo": (MistralForCausalLM, MistralConfig(**TINY, head_dim=16, sliding_window=None), False),
}
# Beside those of before: adapters (without rsLoRA and DoRA), greedy ids.
MOE = ("qwen3-moe", "qwen3-moe-mixed", "mixtral")
NEW = MOE + ("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "granite", "olmo2", "smollm3", "hunyuan", "mistral-nemo")
# llama.cpp's names, where they are others.
ARCHITECTURES = {"mistral-nemo": "llama", "hunyuan": "hunyuan-dense", "qwen3-moe": "qwen3moe", "mixtral": "llama"}
# llama.cpp has no counterpart of them.
WITHOUT_GGUF = ("qwen3-moe-mixed",)
PERMUTED = ("llama", "granite", "smollm3")
WITH_HEAD_SIZE = ("llama", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "hunyuan-dense")
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


class Expert(torch.nn.Module):
    """An expert as checkpoints have it: three linears."""

    def __init__(self, names, gate, up, down, act):
        super().__init__()
        self.names, self.act = names, act
        for name, weight in zip(names, (gate, up, down)):
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = torch.nn.Parameter(weight.detach().clone())
            setattr(self, name, linear)

    def forward(self, x):
        gate, up, down = (getattr(self, name) for name in self.names)
        return down(self.act(gate(x)) * up(x))


class Experts(torch.nn.ModuleList):
    def forward(self, x, chosen, shares):
        out = torch.zeros_like(x)
        for e, expert in enumerate(self):
            row, place = torch.where(chosen == e)
            out = out.index_add(0, row, expert(x[row]) * shares[row, place, None])
        return out


def expert_names(model):
    return ("w1", "w3", "w2") if model.config.model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj")


def per_expert(model):
    """The model with its experts as modules, which transformers 5 keeps as one parameter."""
    for layer in model.model.layers:
        fused = getattr(layer.mlp, "experts", None)
        if fused is not None:
            parts = [(*fused.gate_up_proj[e].chunk(2), fused.down_proj[e]) for e in range(len(fused.down_proj))]
            layer.mlp.experts = Experts([Expert(expert_names(model), *p, fused.act_fn) for p in parts])
    return model


def stored(model, named):
    """Parameters or gradients of a model of today's transformers by the names and shapes of its checkpoint."""
    out = {}
    for name, t in named.items():
        if ".experts." not in name or t.ndim != 3:
            out[name] = t
            continue
        gate, up, down = expert_names(model)
        stem = name.rsplit(".", 1)[0]
        for e in range(t.shape[0]):
            if name.endswith("gate_up_proj"):
                out[f"{stem}.{e}.{gate}.weight"], out[f"{stem}.{e}.{up}.weight"] = t[e].chunk(2)
            else:
                out[f"{stem}.{e}.{down}.weight"] = t[e]
    mixtral = model.config.model_type == "mixtral"
    return {(n.replace(".mlp.", ".block_sparse_moe.") if mixtral else n): t.contiguous() for n, t in out.items()}


# PEFT would turn the names of experts' linears, and `all-linear`, into transformers 5's stacked parameters and the router; here a module is a module.
transformers_weight_conversion._MODEL_TO_CONVERSION_PATTERN.clear()


def lora(model_of, tokens, weights, experts=False, **options):
    base, targets = model_of(), "all-linear"
    if experts:
        before = logits_of(base, tokens)
        base = per_expert(base)
        assert torch.allclose(before, logits_of(base, tokens), atol=1e-5)
        targets = ["q_proj", "v_proj", *expert_names(base)]
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **options))
    g = torch.Generator().manual_seed(3)
    mixtral = base.config.model_type == "mixtral"
    ours = lambda n: n.replace(".default", "").replace(".mlp.", ".block_sparse_moe." if mixtral else ".mlp.")
    trained = {ours(n): p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in trained.items():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=g) * 0.2)
            if "magnitude" in name:
                p.mul_(1 + 0.2 * torch.rand(p.shape, generator=g))
    assert any(".experts." in n for n in trained) == experts and not any(".gate.lora" in n for n in trained), list(trained)
    start = {n: p.detach().clone() for n, p in trained.items()}
    loss = loss_of(model, tokens, weights)
    loss.backward()
    # An expert that nobody chose.
    for p in trained.values():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
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
         "self_attn.key_layernorm": "attn_k_norm", "mlp.gate": "ffn_gate_inp", "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up", "pre_feedforward_layernorm": "ffn_norm",
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
        size = c.head_dim or c.hidden_size // c.num_attention_heads
        w.add_key_length(size)
        w.add_value_length(size)
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
    experts = getattr(c, "num_local_experts", None) or getattr(c, "num_experts", None)
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(c.num_experts_per_tok)
        if architecture == "qwen3moe":
            w.add_expert_feed_forward_length(c.moe_intermediate_size)
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
        if rest == "mlp.experts.gate_up_proj":
            for part, half in zip(("gate", "up"), (data[:, :data.shape[1] // 2], data[:, data.shape[1] // 2:])):
                w.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", half.copy())
            continue
        if rest == "mlp.experts.down_proj":
            w.add_tensor(f"blk.{layer}.ffn_down_exps.weight", data)
            continue
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
    kinds = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "granite", "olmo2", "smollm3", "hunyuan_v1_dense", "qwen3_moe",
             "mixtral"]
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
            golden |= {f"full.grad.{n}": t for n, t in stored(model, {n: p.grad for n, p in model.named_parameters()}).items()}
        if train or name in NEW:
            variants = {"plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
            if name in NEW:
                variants = {k: v for k, v in variants.items() if k == "plain" or (k == "dora" and name == "phi3")}
            if name in MOE:
                variants["experts"] = {"experts": True}
            if name == "mixtral":
                variants["experts-dora"] = {"experts": True, "use_dora": True}
            for variant, options in variants.items():
                golden |= {f"lora.{variant}.{k}": v for k, v in lora(model_of, tokens, weights, **options).items()}
        if name in NEW:
            golden["greedy"] = greedy(model_of(), tokens)
        if (name in NEW and name not in WITHOUT_GGUF) or name in ("llama-bias", "llama-rope-llama3"):
            write_gguf(folder / "model.gguf", model_of(), ARCHITECTURES.get(name, name.split("-")[0]))
        golden = {k: (v.reshape(1) if v.ndim == 0 else v).contiguous() for k, v in golden.items()}
        save_file(golden, folder / "golden.safetensors", metadata=VERSIONS)
        for extra in ("generation_config.json",):
            (folder / extra).unlink(missing_ok=True)
        print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
