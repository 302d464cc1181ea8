#!/usr/bin/env python3
"""Engine `openai` against llama.cpp's server: the embedded model as a GGUF file of F32 behind `python -m llama_cpp.server`, beside the local engine on the same file.

python scripts/check_remote.py [SDRRL]: greedy answers and translations must be the same texts, a judge must be asked and read, and no file may hold the key. The server keeps keys and
values in F32 (in its F16 two tokens whose logits are 0.002 apart change places), and is asked for no penalty on repetition (its default has one).

pip install gguf==0.19.0 "llama-cpp-python[server]" safetensors numpy"""
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from safetensors.numpy import load_file

MODEL = Path("assets/quickstart/model")
KEY = "sk-check-remote-1234567890"
NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def permute(x, heads):
    return x.reshape(heads, 2, len(x) // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write_gguf(path):
    config = json.loads((MODEL / "config.json").read_text())
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text())
    about = json.loads((MODEL / "tokenizer_config.json").read_text())
    size, layers, heads, kv = (config[k] for k in ("vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"))
    out = GGUFWriter(path, "llama")
    out.add_vocab_size(size)
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_block_count(layers)
    out.add_head_count(heads)
    out.add_head_count_kv(kv)
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_freq_base(config["rope_theta"])
    tokens, kinds = [f"[unused{i}]" for i in range(size)], [5] * size
    for text, i in tokenizer["model"]["vocab"].items():
        tokens[i], kinds[i] = text, 1
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], 3 if added["special"] else 4
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types(kinds)
    out.add_token_merges(merges)
    out.add_bos_token_id(config["bos_token_id"])
    out.add_eos_token_id(config["eos_token_id"])
    out.add_add_bos_token(False)
    out.add_chat_template(about["chat_template"])
    for name, x in load_file(MODEL / "model.safetensors").items():
        x = x.astype(np.float32)
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        if parts[0] == "layers":
            stem = NAMES[parts[2]]
            x = permute(x, {"attn_q": heads, "attn_k": kv}[stem]) if stem in ("attn_q", "attn_k") else x
            name = f"blk.{parts[1]}.{stem}.weight"
        else:
            name = {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[0]]
        out.add_tensor(name, x)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def serve(model, log):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "small", "--host", "127.0.0.1", "--port", str(port), "--n_ctx", "256",
               "--type_k", "0", "--type_v", "0", "--api_key", KEY]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    for _ in range(120):
        try:
            urllib.request.urlopen(request, timeout=1)
            return server, f"http://127.0.0.1:{port}/v1"
        except OSError:
            time.sleep(0.5)
    server.kill()
    sys.exit(f"llama.cpp's server did not start: {Path(log.name).read_text()[-2000:]}")


def rows(folder):
    return [json.loads(line) for path in sorted(folder.glob("rows-*.jsonl")) for line in path.open()]


def main():
    sdrrl = sys.argv[1] if len(sys.argv) > 1 else "target/release/sdrrl"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = work / "small.gguf"
        write_gguf(model)
        log = (work / "server.log").open("w")
        server, url = serve(model, log)

        def run(*words):
            done = subprocess.run([sdrrl, *map(str, words)], capture_output=True, text=True, env={**os.environ, "CHECK_KEY": KEY})
            print(done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr)
            assert done.returncode == 0, words

        try:
            remote = ["--engine", "openai", "--endpoint", url, "--remote-model", "small", "--api-key-env", "CHECK_KEY", "--concurrency", 4,
                      "--extra-body", json.dumps({"repeat_penalty": 1.0})]
            ask = ["generate", "--prompts", "assets/quickstart/world/questions.en.jsonl", "--limit", 40, "--max-new-tokens", 24]
            run(*ask, "--model", model, "--out", work / "local")
            run(*ask, *remote, "--out", work / "remote")
            translate = ["translate", "--input", work / "local", "--target-languages", "es", "--max-new-tokens", 16]
            run(*translate, "--engine", "self", "--model", model, "--out", work / "t-local")
            run(*translate, *remote, "--out", work / "t-remote")
            # The model answers nothing but invented people's facts; what matters is that whatever it says is asked for and read.
            judge = subprocess.run([sdrrl, "score", "--input", work / "t-local", "--target-languages", "es", *map(str, remote), "--out", work / "s"],
                                   capture_output=True, text=True, env={**os.environ, "CHECK_KEY": KEY})
            assert judge.returncode == 0 or "holds one number" in judge.stderr, judge.stderr
            print(judge.stdout.strip() or judge.stderr.strip())
        finally:
            server.terminate()
            server.wait()
        same, all_rows = 0, list(zip(rows(work / "local"), rows(work / "remote")))
        for local, far in all_rows:
            keys = ["text", "finish", "alarms"]
            a, b = ([row["answer"][k] for k in keys] for row in (local, far))
            same += a == b
            if a != b:
                print("local ", a, "\nremote", b)
        sides, equal = 0, 0
        for local, far in zip(rows(work / "t-local"), rows(work / "t-remote")):
            for side in ("instruction", "input", "answer", "output"):
                a, b = local["translations"]["es"][side], far["translations"]["es"][side]
                sides, equal = sides + 1, equal + (a == b)
                if a != b:
                    print("local ", a, "\nremote", b)
        written = [p for p in work.rglob("*") if p.is_file() and p.name != "server.log" and KEY.encode() in p.read_bytes()]
        print(f"{same} of {len(all_rows)} answers and {equal} of {sides} translated sides are the same; files with the key: {len(written)}")
        print(json.loads((work / "remote" / "manifest.json").read_text())["summary"]["remote"])
        sys.exit(same != len(all_rows) or equal != sides or bool(written))


main()
