#!/usr/bin/env python3
"""The other side of benches/translation.rs: makes a random NLLB-shaped model, and translates with CTranslate2.

  peer_translation.py make DIR SIZE          SIZE: 600M (facebook/nllb-200-distilled-600M's shape), tiny, or ending (sentences end after few
                                             or many tokens: what joining a running batch is measured with)
  peer_translation.py run DIR BEAMS THREADS  one timed run in f32; prints one JSON object
DIR gets config.json, model.safetensors, sentences.json (64 sentences of ids) and ct2/ (CTranslate2's form of the same weights).
pip install torch transformers ctranslate2
"""
import json
import resource
import sys
import time
from pathlib import Path

LANGUAGE, MAX_NEW = 20, 32


def make(folder, size):
    import torch
    from ctranslate2.converters.transformers import M2M100Loader
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    shape = dict(vocab_size=256206, d_model=1024, encoder_layers=12, decoder_layers=12, encoder_ffn_dim=4096, decoder_ffn_dim=4096)
    if size == "tiny":
        shape = dict(vocab_size=2000, d_model=64, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=128, decoder_ffn_dim=128)
    if size == "ending":
        shape = dict(vocab_size=16000, d_model=512, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=2048, decoder_ffn_dim=2048)
    std = 0.08 if size == "ending" else 0.02
    config = M2M100Config(**shape, encoder_attention_heads=16, decoder_attention_heads=16, max_position_embeddings=1024, init_std=std, scale_embedding=True)
    torch.manual_seed(1)
    model = M2M100ForConditionalGeneration(config).eval()
    with torch.no_grad():
        common = model.model.decoder.layer_norm.bias.normal_(0, 0.5)
        if size == "ending":
            # Sentences end after all lengths: the end token's row leans to what the states have in common.
            model.model.shared.weight.normal_(0, 0.05)
            model.model.shared.weight[2] += 3.5 * common / common.dot(common)
        else:
            # No hypothesis ends before the length: both sides then do the same work.
            model.model.shared.weight[2] = -40 * common / common.norm()
    model.save_pretrained(folder)

    class Vocabulary:
        bos_token, pad_token, eos_token, unk_token, unk_token_id = "<s>", "<pad>", "</s>", "<unk>", 3
        special_tokens_map = {}
        tokens = ["<s>", "<pad>", "</s>", "<unk>"] + [f"t{i}" for i in range(4, config.vocab_size)]

        def get_vocab(self):
            return {t: i for i, t in enumerate(self.tokens)}

        def convert_ids_to_tokens(self, i):
            return self.tokens[i]

    loader, vocabulary = M2M100Loader(), Vocabulary()
    spec = loader.get_model_spec(model)
    loader.set_config(spec.config, model, vocabulary)
    loader.set_vocabulary(spec, loader.get_vocabulary(model, vocabulary))
    spec.validate()
    spec.optimize()
    Path(folder, "ct2").mkdir(exist_ok=True)
    spec.save(str(Path(folder, "ct2")))
    g = torch.Generator().manual_seed(2)
    count, new = (256, 96) if size == "ending" else (64, MAX_NEW)
    lengths = torch.randint(8, 48, (count,), generator=g).tolist()
    sentences = [[10] + torch.randint(100, config.vocab_size - 400, (n,), generator=g).tolist() + [2] for n in lengths]
    Path(folder, "sentences.json").write_text(json.dumps({"sentences": sentences, "language": LANGUAGE, "new": new}))


def run(folder, beams, threads):
    import ctranslate2

    translator = ctranslate2.Translator(str(Path(folder, "ct2")), device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads)
    data = json.loads(Path(folder, "sentences.json").read_text())
    token = lambda i: {2: "</s>"}.get(i, f"t{i}")
    source = [[token(i) for i in s] for s in data["sentences"]]
    prefix = [[token(data["language"])]] * len(source)
    translate = lambda s, n: translator.translate_batch(s, target_prefix=prefix[: len(s)], beam_size=beams, max_decoding_length=n, max_batch_size=2048, batch_type="tokens")
    translate(source[:2], 4)
    start = time.perf_counter()
    out = translate(source, data["new"])
    seconds = time.perf_counter() - start
    tokens = sum(len(o.hypotheses[0]) for o in out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rate": len(source) / seconds, "tokens": tokens, "peak_mib": peak}))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], sys.argv[3])
    else:
        run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
