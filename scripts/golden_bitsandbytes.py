#!/usr/bin/env python3
"""Makes tests/golden/bitsandbytes: a tiny Llama quantised by transformers and bitsandbytes (NF4 with double quantisation, NF4 and FP4 without, LLM.int8()),
as they save it, and the logits of the same model in f32 over the matrices that bitsandbytes dequantises.

pip install torch transformers bitsandbytes safetensors; made with bitsandbytes 0.50.2, transformers 5.24.0."""
import json
import shutil
import sys
import tempfile
from pathlib import Path

import bitsandbytes as bnb
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).parent.parent / "tests/golden/bitsandbytes"
IDS = [1, 17, 3, 80, 41, 41, 5, 66, 9, 23]
KINDS = {
    "nf4-double": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "nf4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "fp4": dict(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": dict(load_in_8bit=True),
}


def dense(module):
    """The matrix of a quantised linear, f32."""
    w = module.weight
    if isinstance(w, bnb.nn.Params4bit):
        state = w.quant_state
        state.dtype = torch.float32
        return bnb.functional.dequantize_4bit(w.data, state).float()
    return w.CB.float() * w.SCB.view(-1, 1) * (1 / 127)


def main():
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=192, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=True, eos_token_id=2,
    )
    plain = LlamaForCausalLM(config).float().eval()
    with tempfile.TemporaryDirectory() as tmp:
        plain.save_pretrained(tmp)
        logits = {}
        for name, settings in KINDS.items():
            model = AutoModelForCausalLM.from_pretrained(tmp, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.float32)
            shutil.rmtree(OUT / name, ignore_errors=True)
            model.save_pretrained(OUT / name)
            matrices = {n: m for n, m in model.named_modules() if isinstance(m, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))}
            assert len(matrices) == 7, matrices.keys()
            # What was saved is what is read: through bitsandbytes again.
            read = AutoModelForCausalLM.from_pretrained(OUT / name)
            reference = LlamaForCausalLM(config).float().eval()
            reference.load_state_dict(plain.state_dict())
            for n, m in matrices.items():
                w = dense(m)
                assert torch.equal(w, dense(read.get_submodule(n))), n
                reference.get_submodule(n).weight.data = w
            with torch.no_grad():
                logits[name] = reference(torch.tensor([IDS])).logits[0].contiguous()
            logits[name + ".up"] = dense(matrices["model.layers.0.mlp.up_proj"]).contiguous()
    save_file(logits, OUT / "expected.safetensors")
    (OUT / "ids.json").write_text(json.dumps(IDS))


if __name__ == "__main__":
    sys.exit(main())
