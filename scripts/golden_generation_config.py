#!/usr/bin/env python3
"""Writes tests/golden/generation/: a tiny random Llama with a tokenizer, and what transformers' `generate` writes for one generation_config.json after the other.

pip install torch==2.15.0 transformers==5.24.0 tokenizers
  config.json, model.safetensors, tokenizer.json, tokenizer_config.json   the model; its template is the question's text alone
  cases.json   for each case: generation_config.json's fields, the prompt, the new ids without an end token, and why the reply ended
Weights are large, so that greedy choices have no ties."""
import json
import shutil
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "golden" / "generation"
PROMPTS = ["the cat is", "hello world", "a"]
EOS = 2


def model():
    torch.manual_seed(11)
    config = LlamaConfig(vocab_size=512, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                         max_position_embeddings=128, initializer_range=0.5, bos_token_id=1, eos_token_id=EOS, tie_word_embeddings=True)
    return LlamaForCausalLM(config).eval()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    m = model().to(torch.bfloat16).float()
    m.to(torch.bfloat16).save_pretrained(OUT)
    m = LlamaForCausalLM.from_pretrained(OUT, dtype=torch.float32).eval()
    (OUT / "generation_config.json").unlink(missing_ok=True)
    shutil.copy(ROOT / "tests" / "golden" / "tokenizer" / "bpe.json", OUT / "tokenizer.json")
    (OUT / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "clean_up_tokenization_spaces": False,
        "chat_template": "{{ messages[0]['content'] }}"}, indent=1) + "\n")
    tok = AutoTokenizer.from_pretrained(OUT)
    plain = {}
    ids = {p: tok(p, add_special_tokens=False).input_ids for p in PROMPTS}
    for p in PROMPTS:
        with torch.no_grad():
            plain[p] = m.generate(torch.tensor([ids[p]]), max_new_tokens=24, do_sample=False, eos_token_id=EOS, pad_token_id=0)[0, len(ids[p]):].tolist()
    first = plain[PROMPTS[0]]
    # Stop strings of whole letters: what is half of one is bytes in transformers.
    whole = [text[i:i + 3] for text in map(tok.decode, plain.values()) for i in range(len(text) - 2) if "\ufffd" not in text[i:i + 3]]
    cases = [{"max_new_tokens": 12}, {"max_length": 10}, {"max_new_tokens": 5, "max_length": 40}]
    cases += [{"max_new_tokens": 12, "suppress_tokens": first[:3]}, {"max_new_tokens": 12, "begin_suppress_tokens": [first[0], 2]},
              {"max_new_tokens": 12, "bad_words_ids": [[first[1]], first[3:5], first[4:7], [EOS]]},
              {"max_new_tokens": 12, "bad_words_ids": [ids[PROMPTS[0]][-1:] + first[:1]]},
              {"max_new_tokens": 16, "repetition_penalty": 1.4}, {"max_new_tokens": 24, "no_repeat_ngram_size": 2},
              {"max_new_tokens": 16, "eos_token_id": [EOS, first[4]]}, {"max_new_tokens": 16, "eos_token_id": [EOS, first[4]], "min_new_tokens": 9},
              {"max_new_tokens": 16, "eos_token_id": [EOS, first[4]], "min_length": 9}, {"max_new_tokens": 8, "forced_eos_token_id": EOS},
              {"max_new_tokens": 8, "forced_eos_token_id": [30, 20]}, {"max_length": 11, "forced_eos_token_id": EOS},
              {"max_new_tokens": 8, "forced_bos_token_id": 7}, {"max_new_tokens": 8, "forced_bos_token_id": 7, "begin_suppress_tokens": [first[0]]},
              {"max_new_tokens": 20, "stop_strings": [whole[0], "never"]}, {"max_new_tokens": 20, "stop_strings": whole[len(whole) // 2][1:]},
              {"max_new_tokens": 20, "stop_strings": ["\n"]},
              {"max_new_tokens": 20, "suppress_tokens": first[1:2], "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[5, 6], [first[0]]],
               "min_new_tokens": 4, "temperature": 0.7, "top_p": 0.9, "min_p": 0.1, "num_beams": 1}]
    out = []
    for fields in cases:
        full = {"bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0, "do_sample": False} | fields
        (OUT / "generation_config.json").write_text(json.dumps(full))
        for p in PROMPTS:
            if full.get("max_length", 99) <= len(ids[p]):
                continue
            config = GenerationConfig.from_pretrained(OUT)
            m.generation_config = config
            with torch.no_grad():
                new = m.generate(torch.tensor([ids[p]]), attention_mask=torch.ones(1, len(ids[p]), dtype=torch.long), tokenizer=tok)[0, len(ids[p]):].tolist()
            ends = full["eos_token_id"] if isinstance(full["eos_token_id"], list) else [EOS]
            stopped = new[-1] in ends
            out.append({"fields": full, "prompt": p, "prompt_ids": ids[p], "ids": new[:-1] if stopped else new, "ended": stopped})
    (OUT / "generation_config.json").unlink()
    different = {json.dumps(c["ids"]) for c in out}
    assert len(different) > len(out) // 2, len(different)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    rows = ",\n".join(json.dumps(c) for c in out)
    (OUT / "cases.json").write_text('{"versions": ' + json.dumps(versions) + ', "cases": [\n' + rows + "\n]}\n")
    print(len(out), "cases", sum(f.stat().st_size for f in OUT.iterdir()), "bytes")


main()
