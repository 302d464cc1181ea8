#!/usr/bin/env python3
"""Writes tests/golden/m2m100/: a tiny random M2M100 model with the states and translations of PyTorch and transformers.

pip install torch==2.15.0 transformers==5.24.0 safetensors
config.json, generation_config.json, model.safetensors; bin/: the same weights as two pickled shards with their index; golden.json:
  sources, forced      50 token sequences (language code first, end token last) and the code that each translation begins with
  states               encoder states (every fourth value) of the first sentences; decoder states of a teacher-forced target
  search               token ids and scores of greedy and beam search under several settings
"""
import json
import math
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import GenerationConfig, M2M100Config, M2M100ForConditionalGeneration

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "m2m100"
(OUT / "bin").mkdir(parents=True, exist_ok=True)
VOCAB, CODES = 131, range(120, 130)
torch.set_num_threads(1)
config = M2M100Config(
    vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=2, encoder_ffn_dim=48,
    decoder_ffn_dim=40, max_position_embeddings=64, activation_function="relu", scale_embedding=True, init_std=0.35, attn_implementation="eager",
    dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
)
torch.manual_seed(5)
model = M2M100ForConditionalGeneration(config).eval().float()
with torch.no_grad():
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.normal_(0, 0.2)
        elif "layer_norm.weight" in name:
            p.normal_(1, 0.2)
        elif name == "model.shared.weight":
            p.normal_(0, 0.2)
    # Ends after all lengths: the end token's row leans to what the states have in common.
    common = model.model.decoder.layer_norm.bias.normal_(0, 0.5)
    model.model.shared.weight[2] += 3.6 * common / common.dot(common)

state = {k: v.contiguous() for k, v in model.state_dict().items() if k not in ("lm_head.weight",) and "embed_tokens" not in k and "embed_positions" not in k}
save_file(state, OUT / "model.safetensors", metadata={"format": "pt"})
names = sorted(state)
shards = {f"pytorch_model-{i + 1:05}-of-00002.bin": names[i::2] for i in range(2)}
for file, keys in shards.items():
    torch.save({k: state[k] for k in keys}, OUT / "bin" / file)
index = {"metadata": {"total_size": sum(v.nbytes for v in state.values())}, "weight_map": {k: f for f, keys in shards.items() for k in keys}}
(OUT / "bin" / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")
written = {k: v for k, v in json.loads(config.to_json_string(use_diff=False)).items() if not k.startswith("_")}
written["model_type"] = "m2m_100"
for folder in (OUT, OUT / "bin"):
    (folder / "config.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
(OUT / "generation_config.json").write_text(json.dumps({"max_length": 200, "decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0}) + "\n")

g = torch.Generator().manual_seed(9)
lengths = [3, 40, 7] + [int(x) for x in torch.randint(3, 30, (47,), generator=g)]
sources, forced = [], []
for n in lengths:
    code, target = (int(x) for x in torch.randint(CODES.start, CODES.stop, (2,), generator=g))
    sources.append([code] + torch.randint(4, 120, (n - 2,), generator=g).tolist() + [2])
    forced.append(target)


def rounded(t):
    return [float(f"{x:.7g}") for x in t.flatten().tolist()]


states = []
with torch.no_grad():
    for s, f in list(zip(sources, forced))[:3]:
        target = [2, f] + s[1:-1][::-1][:20]
        encoder = model.model.encoder(input_ids=torch.tensor([s])).last_hidden_state
        decoder = model.model(input_ids=torch.tensor([s]), decoder_input_ids=torch.tensor([target])).last_hidden_state
        states.append({"target": target, "encoder": rounded(encoder[0, :, ::4]), "decoder": rounded(decoder[0, :, ::4])})

SETTINGS = {
    "greedy": dict(num_beams=1),
    "beam4": dict(num_beams=4),
    "beam4-first-complete": dict(num_beams=4, early_stopping=True),
    "beam4-never-long": dict(num_beams=4, early_stopping="never", length_penalty=1.7),
    "beam3-short": dict(num_beams=3, length_penalty=-0.5),
    "beam2-ngram3": dict(num_beams=2, no_repeat_ngram_size=3),
    "greedy-ngram2": dict(num_beams=1, no_repeat_ngram_size=2),
    # Many are cut at this length: the last token is then the forced one, at no cost, whatever rule forbids it.
    "greedy-forced-eos": dict(num_beams=1, forced_eos_token_id=2, max_length=9),
    "beam4-forced-eos": dict(num_beams=4, forced_eos_token_id=2, max_length=9),
    "beam3-forced-other": dict(num_beams=3, forced_eos_token_id=17, no_repeat_ngram_size=1, max_length=7),
}
search = {}
for name, settings in SETTINGS.items():
    out = []
    longest = settings.get("max_length", 32)
    generation = GenerationConfig(**{**settings, "max_length": longest}, do_sample=False, decoder_start_token_id=2, eos_token_id=2, pad_token_id=1, bos_token_id=0)
    for s, f in zip(sources, forced):
        generation.forced_bos_token_id = f
        r = model.generate(torch.tensor([s]), generation_config=generation, return_dict_in_generate=True, output_scores=True)
        ids = r.sequences[0].tolist()
        if settings["num_beams"] == 1:
            logp = sum(torch.log_softmax(x[0].float(), -1)[t].item() for i, (x, t) in enumerate(zip(r.scores, ids[1:])) if i > 0)
            # The scores of a step with forbidden n-grams are those after the rule; the sum is then not the log-probability.
            score = logp / (len(ids) - 1) if "no_repeat_ngram_size" not in settings else None
        else:
            score = r.sequences_scores[0].item()
        out.append({"ids": ids, "score": score})
    search[name] = {"settings": settings, "max_length": longest, "out": out}
    lengths = sorted(len(o["ids"]) for o in out)
    print(name, "lengths", lengths[0], lengths[25], lengths[-1], "complete", sum(o["ids"][-1] == 2 for o in out), "distinct", len({t for o in out for t in o["ids"]}))
golden = {"torch": torch.__version__, "transformers": transformers.__version__, "sources": sources, "forced": forced, "states": states, "search": search}
(OUT / "golden.json").write_text(json.dumps(golden) + "\n")
