#!/usr/bin/env python3
"""Writes tests/golden/smollm2_greedy.json: 10 prompts and transformers' 64 greedy tokens on SmolLM2-135M-Instruct (Q4_1 GGUF, f32).

pip install torch==2.15.0 transformers==5.23.0 gguf==0.19.0; scripts/get_assets.sh brings the model."""
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
DIR, FILE = ROOT / "assets" / "downloads", "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = ["What is the capital of France?", "Give three tips for staying healthy.", "Write a short poem about the sea.",
             "How do I boil an egg?", "Explain photosynthesis to a child.", "What is 17 + 25?", "Name five animals that live in Africa.",
             "¿Cuál es la capital de España?", "Translate 'good morning' to Spanish.", "Why is the sky blue?"]


def main():
    torch.set_num_threads(2)
    tok = AutoTokenizer.from_pretrained(DIR, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE, dtype=torch.float32).eval()
    cases = []
    for q in QUESTIONS:
        text = tok.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
        ids = tok(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            out = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=2, pad_token_id=2)[0, len(ids):].tolist()
            logits = model(torch.tensor([ids])).logits[0, -1]
        cases.append({"question": q, "prompt": ids, "greedy": out, "top": [[int(i), float(logits[i])] for i in logits.topk(5).indices]})
        print(q, "->", tok.decode(out)[:80].replace("\n", " "))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    (ROOT / "tests" / "golden" / "smollm2_greedy.json").write_text(json.dumps({"versions": versions, "cases": cases}) + "\n")


main()
