#!/usr/bin/env python3
"""Writes tests/golden/cometkiwi/: a tiny random CometKiwi (unbabel-comet's own UnifiedMetric), its checkpoint, hidden states and scores.

pip install unbabel-comet==2.2.7 (it asks for numpy<2, transformers<5), safetensors
  model/       hparams.yaml, checkpoints/model.ckpt (Lightning's layout), config.json, tokenizer.json
  golden.json  pairs with their token ids and scores (softmax, sparsemax, one layer), similarities of mean-pooled sentences
  golden.safetensors  all hidden states of some sentences, each run alone
COMET names the encoder's folder in hparams; here it is written once the model stands there.
"""
import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
import yaml
from comet.models.multitask.unified_metric import UnifiedMetric
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizerFast

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "cometkiwi"
MODEL = OUT / "model"
torch.manual_seed(20221)
PAIRS = [
    ("The house is green.", "La casa es verde."),
    ("Three cats sleep under the table.", "Tres gatos duermen debajo de la mesa."),
    ("It rains.", "Llueve mucho en la ciudad y nadie sale de casa."),
    ("The door is open.", ""),
    ("", "Nada."),
    ("Ein Satz mit Umlauten: äöüß!", "Una frase con eñe y acentos: áéíóú ¿no?"),
    ("unknown signs: 日本語", "señales desconocidas: 日本語 中文"),
    ("a special </s> inside", "un signo <pad> especial <s> dentro"),
    # Longer than a side, than both sides together, and one side only.
    ("the green house under the table is open and nobody sleeps in it at night", "la casa verde debajo de la mesa esta abierta y nadie duerme en ella"),
    ("cats and cats and cats and cats and cats and cats and cats and cats and cats and cats and cats", "gatos"),
    ("cats", "gatos y gatos y gatos y gatos y gatos y gatos y gatos y gatos y gatos y gatos y gatos y gatos"),
]
SENTENCES = ["query: the house is green", "query: la casa es verde", "query: it rains", "query: " + "and so on " * 30]


def tokenizer():
    letters = sorted(set("".join(a + b for a, b in PAIRS) + "".join(SENTENCES)) - set("日本語中文 "))
    pieces = ["▁the", "▁la", "▁casa", "▁house", "▁gatos", "▁cats", "▁and", "▁y", "en", "er", "es", "in", "ta"]
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(p, -3.0 - 0.01 * i) for i, p in enumerate(pieces)] + [(c, -6.0 - 0.01 * i) for i, c in enumerate(letters)] + [("<mask>", 0.0)]
    t = Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=False))
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(__import__("tokenizers").Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    t.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    ids = [("<s>", 0), ("</s>", 2)]
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids)
    return XLMRobertaTokenizerFast(tokenizer_object=t), len(vocab)


def write_encoder(fast, vocab):
    config = XLMRobertaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=42,
        type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2, hidden_act="gelu", initializer_range=0.3)
    if MODEL.exists():
        shutil.rmtree(MODEL)
    MODEL.mkdir(parents=True)
    config.save_pretrained(MODEL)
    fast.save_pretrained(MODEL)
    (MODEL / "special_tokens_map.json").unlink()
    (MODEL / "tokenizer_config.json").unlink()


def metric(layer_transformation="softmax", sent_layer="mix"):
    return UnifiedMetric(
        encoder_model="XLM-RoBERTa", pretrained_model=str(MODEL), load_pretrained_weights=False, local_files_only=True, sent_layer=sent_layer,
        layer_transformation=layer_transformation, layer_norm=False, hidden_sizes=[40, 24], activations="Tanh", final_activation=None,
        input_segments=["mt", "src"], word_level_training=False, dropout=0.1).eval()


def randomize(model):
    for name, p in model.named_parameters():
        if "LayerNorm" in name or name.endswith("gamma"):
            p.data.add_(0.3 * torch.randn_like(p))
        elif name.endswith("bias") or "scalar" in name:
            p.data.copy_(torch.randn_like(p) * 0.5)
        else:
            p.data.copy_(torch.randn_like(p) * 0.3)


@torch.no_grad()
def run(model):
    """Token ids and score of every pair, each in a batch of its own and all in one: COMET's batches drift, in the last bits only."""
    alone = []
    for source, mt in PAIRS:
        (inputs,) = model.prepare_sample([{"src": source, "mt": mt}], stage="predict")
        alone.append((inputs["input_ids"][0].tolist(), model(**inputs).score.item()))
    (inputs,) = model.prepare_sample([{"src": s, "mt": m} for s, m in PAIRS], stage="predict")
    together = model(**inputs).score.tolist()
    assert all(abs(a[1] - b) < 1e-5 for a, b in zip(alone, together)), (alone, together)
    return alone


@torch.no_grad()
def similarities(encoder, fast):
    rows = []
    for text in SENTENCES:
        ids = fast(text, truncation=True, max_length=encoder.config.max_position_embeddings - 2, return_tensors="pt")
        pooled = encoder(**ids).last_hidden_state[0].mean(0)
        rows.append(pooled / pooled.norm())
    rows = torch.stack(rows)
    return (rows @ rows.T).tolist()


def main():
    fast, vocab = tokenizer()
    write_encoder(fast, vocab)
    fast = XLMRobertaTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"))
    model = metric()
    randomize(model)
    state = model.state_dict()
    golden = {"pairs": [], "sentences": SENTENCES}
    others = {"sparsemax": metric("sparsemax"), "layer_2": metric(sent_layer=2)}
    for other in others.values():
        other.load_state_dict(state, strict=False)
    results, extra = run(model), {name: run(other) for name, other in others.items()}
    for i, ((source, mt), (ids, score)) in enumerate(zip(PAIRS, results)):
        golden["pairs"].append({"source": source, "translation": mt, "ids": ids, "score": score, **{k: v[i][1] for k, v in extra.items()}})
    encoder = XLMRobertaModel(model.encoder.model.config, add_pooling_layer=False).eval()
    encoder.load_state_dict(model.encoder.model.state_dict())
    golden["similarities"] = similarities(encoder, fast)
    tensors = {}
    with torch.no_grad():
        for i in (0, 1, 8):
            hidden = encoder(torch.tensor([results[i][0]]), output_hidden_states=True).hidden_states
            tensors[f"hidden.{i}"] = torch.stack([h[0] for h in hidden])
    save_file(tensors, OUT / "golden.safetensors")
    hparams = {k: v for k, v in dict(model.hparams).items() if k != "local_files_only"}
    # As published since COMET#244, with the name that says which transformation the weights were in truth trained with.
    hparams |= {"class_identifier": "unified_metric", "pretrained_model": "microsoft/infoxlm-large", "layer_transformation": "sparsemax_patch"}
    (MODEL / "checkpoints").mkdir()
    (MODEL / "hparams.yaml").write_text(yaml.dump(hparams))
    lightning = {"epoch": 0, "global_step": 3, "pytorch-lightning_version": "1.8.2", "state_dict": state, "loops": {}, "callbacks": {},
                 "optimizer_states": [], "lr_schedulers": [], "hparams_name": "kwargs", "hyper_parameters": hparams}
    torch.save(lightning, MODEL / "checkpoints" / "model.ckpt")
    import importlib.metadata
    golden["versions"] = {"unbabel-comet": importlib.metadata.version("unbabel-comet"), "torch": torch.__version__,
                          "transformers": transformers.__version__, "python": sys.version.split()[0]}
    (OUT / "golden.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
    print(golden["versions"], [round(p["score"], 4) for p in golden["pairs"]], [len(p["ids"]) for p in golden["pairs"]])
    print([[round(x, 3) for x in row] for row in golden["similarities"]])


main()
