#!/usr/bin/env python3
"""The peers of benches/generation.rs: python scripts/peer_generation.py transformers|llama.cpp f32:1|bf16:8|... Prints one JSON line.
python scripts/peer_generation.py transformers-random bf16:8 --shape llama2-7b --device cuda --prompt 128 --new 128: random weights.

pip install torch transformers gguf llama-cpp-python; scripts/get_assets.sh brings the model. llama.cpp's f32 and bf16 files are made once
from the shipped Q4_1 file: right for speed."""
import argparse
import json
import random
import resource
import statistics
import time
from pathlib import Path

from peer_card import card, torch_device

DIR, FILE = Path("assets/downloads"), "SmolLM2-135M-Instruct.Q4_1.gguf"


def prompts(rows, length=64, below=40100):
    rng = random.Random(1)
    return [[100 + rng.randrange(below - 100) for _ in range(length)] for _ in range(rows)]


def generator(model, ids):
    """A call that generates n tokens greedily behind `ids` and returns the seconds."""
    import torch

    def run(n):
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=2)
        if ids.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        assert out.shape == (ids.shape[0], ids.shape[1] + n) and 0 <= out.min() and out.max() < model.config.vocab_size, "tokens that cannot be"
        return seconds
    return run


def with_random_weights(dtype, rows, args):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    shape = json.loads((Path(__file__).parent.parent / "benches/shapes.json").read_text())[args.shape]
    torch.manual_seed(1)
    with torch.device(args.device):
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
        model = LlamaForCausalLM._from_config(LlamaConfig(**shape), dtype=dtype, attn_implementation="sdpa").eval()
        # Without an end token every row runs to its length; min_new_tokens would cost a pass over the logits.
        model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
        ids = torch.tensor(prompts(rows, args.prompt, min(40100, shape["vocab_size"])))
    return generator(model, ids)


def with_transformers(dtype, rows, args):
    import torch
    from transformers import AutoModelForCausalLM
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = AutoModelForCausalLM.from_pretrained(args.model.parent, gguf_file=args.model.name, dtype=dtype, attn_implementation="sdpa").eval()
    return generator(model, torch.tensor(prompts(rows, args.prompt)))


def with_llama_cpp(dtype, rows, args):
    import ctypes

    import llama_cpp as C
    path = args.model
    if dtype != "stored":
        path = path.with_suffix(f".{dtype}.gguf")
    if not path.exists():
        params = C.llama_model_quantize_default_params()
        params.ftype = {"f32": C.LLAMA_FTYPE_ALL_F32, "bf16": C.LLAMA_FTYPE_MOSTLY_BF16}[dtype]
        params.allow_requantize, params.nthread = True, 2
        C.llama_model_quantize(str(args.model).encode(), str(path).encode(), ctypes.byref(params))
    C.llama_backend_init()
    quiet = C.llama_log_callback(lambda *a: None)
    C.llama_log_set(quiet, None)
    model = C.llama_model_load_from_file(str(path).encode(), C.llama_model_default_params())
    params = C.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max, params.n_threads, params.n_threads_batch = (args.prompt + args.new + 8) * rows, 512, 512, rows, 2, 2
    context = C.llama_init_from_model(model, params)
    vocabulary = C.llama_vocab_n_tokens(C.llama_model_get_vocab(model))
    import numpy as np
    batch = C.llama_batch_init(512, 0, rows)

    def decode(entries):
        batch.n_tokens = len(entries)
        for i, (token, position, row, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, position, 1, row, wanted
        assert C.llama_decode(context, batch) == 0
        wanted = [i for i, e in enumerate(entries) if e[3]]
        return [int(np.ctypeslib.as_array(C.llama_get_logits_ith(context, i), (vocabulary,)).argmax()) for i in wanted]

    ids, last = prompts(rows, args.prompt), args.prompt - 1
    asked = [(t, p, r, p == last) for r, prompt in enumerate(ids) for p, t in enumerate(prompt)]

    def run(n):
        C.llama_memory_clear(C.llama_get_memory(context), True)
        start = time.perf_counter()
        tokens = [t for i in range(0, len(asked), 512) for t in decode(asked[i:i + 512])]
        for step in range(n - 1):
            tokens = decode([(t, args.prompt + step, r, True) for r, t in enumerate(tokens)])
        return time.perf_counter() - start
    run.kept = quiet  # llama.cpp calls it as long as it runs
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = {"transformers": with_transformers, "llama.cpp": with_llama_cpp, "transformers-random": with_random_weights}
    parser.add_argument("peer", choices=list(ways))
    parser.add_argument("run", help="DTYPE:ROWS; llama.cpp also takes stored:ROWS, the file as it is")
    parser.add_argument("--shape")
    parser.add_argument("--model", type=Path, default=DIR / FILE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    args = parser.parse_args()
    args.device = torch_device(args.device)
    dtype, rows = args.run.split(":")
    rows = int(rows)
    run = ways[args.peer](dtype, rows, args)
    run(4)
    found = []
    for _ in range(3):
        first, whole = run(1), run(args.new)
        found.append((rows * args.prompt / first, rows * (args.new - 1) / (whole - first)))
    peak, name = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, None
    if args.device.startswith("cuda"):
        import torch
        peak, name = torch.cuda.max_memory_allocated() / 2**20, card(args.device)["device"]
    print(json.dumps({"prefill": statistics.median(f[0] for f in found), "decode": statistics.median(f[1] for f in found), "peak_mib": peak, "card": name}))


main()
