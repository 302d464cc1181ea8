#!/usr/bin/env python3
"""The peer of benches/scoring.rs: python scripts/peer_scoring.py f32|bf16 xlm-r-large|tiny PAIRS. Prints one JSON line.

pip install torch transformers. An XLM-R encoder with random weights over the same lengths, in batches of 16 sorted by length and padded, as
unbabel-comet's predict makes them; all hidden states, first token of each."""
import json
import resource
import statistics
import sys
import time

import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[1]]
SHAPES = {"xlm-r-large": (1024, 4096, 24, 16, 250002), "tiny": (64, 256, 3, 4, 1000)}
BATCH = 16


def main():
    c, f, layers, heads, vocab = SHAPES[sys.argv[2]]
    pairs = int(sys.argv[3])
    config = XLMRobertaConfig(hidden_size=c, intermediate_size=f, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=vocab,
                              max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, attn_implementation="sdpa")
    torch.set_default_dtype(DTYPE)
    model = XLMRobertaModel(config, add_pooling_layer=False).eval()
    lengths = sorted((24 + i * 7919 % 97 for i in range(pairs)), reverse=True)

    def run():
        start = time.perf_counter()
        with torch.inference_mode():
            for at in range(0, pairs, BATCH):
                batch = lengths[at:at + BATCH]
                ids = torch.full((len(batch), batch[0]), 1)
                for row, n in zip(ids, batch):
                    row[:n] = 5 + torch.arange(n) * 7919 % (vocab - 5)
                mask = (ids != 1).long()
                states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
                torch.stack([h[:, 0] for h in states])
        return time.perf_counter() - start

    run()
    seconds = statistics.median(run() for _ in range(3))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"pairs": pairs / seconds, "tokens": sum(lengths) / seconds, "peak_mib": peak}))


main()
