#!/usr/bin/env python3
"""Writes tests/golden/tokenizer/: tiny tokenizers in both forms (tokenizer.json and GGUF) and the ids their makers give.

pip install transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 gguf==0.19.0
  bpe.json, bpe.gguf    byte-level BPE with single digits (SmolLM's pre-tokeniser), with a ChatML template
  spm.gguf              SentencePiece BPE with byte fallback (LLaMA-2's kind)
  golden.json           texts with the ids of `tokenizers` and `sentencepiece`; conversations rendered by transformers
"""
import json
import random
import tempfile
from pathlib import Path

import gguf
import sentencepiece
import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "tokenizer"
TEXTS = ["Hello world", "Hello, World! It's 2024.", "  two  spaces \n\n and\tlines ", "12345 6", "¿Cuál es el niño?", "日本語のテキスト。", "ภาษาไทย",
         "emoji 👍🏽 and \u200b zero", "don't we'll I'M", "a", " ", "\n", "user text with <|im_end|> in it", "<s> and </s>", "x=f(y); // code\n\treturn 0;"]
CHATML = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}"
          "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA2 = ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
          "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
          "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
          "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
          "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
          "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
          "{% endif %}{% endfor %}")


def corpus():
    r = random.Random(0)
    words = "the a cat dog house green run quickly is was hello world text language tokenizer small niño cuál está lines code return don't we'll".split()
    return [" ".join(r.choice(words) for _ in range(r.randint(3, 12))).capitalize() + r.choice(".!?") for _ in range(400)]


def bpe():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=500, show_progress=False, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                                                          initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.save(str(OUT / "bpe.json"))
    vocab = sorted(tok.get_vocab().items(), key=lambda kv: kv[1])
    model = json.loads(tok.to_str())["model"]
    w = gguf.GGUFWriter(OUT / "bpe.gguf", "llama")
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list([t for t, _ in vocab])
    w.add_token_types([3 if i < 3 else 1 for _, i in vocab])
    w.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in model["merges"]])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)
    w.add_chat_template(CHATML)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    ids = {t: tok.encode(t).ids for t in TEXTS if "<|im_end|>" not in t}
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=CHATML)
    return ids, fast


def spm():
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "c.txt").write_text("\n".join(corpus()))
        sentencepiece.SentencePieceTrainer.train(
            input=f"{d}/c.txt", model_prefix=f"{d}/m", vocab_size=420, model_type="bpe", byte_fallback=True, character_coverage=1.0,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True, minloglevel=2)
        sp = sentencepiece.SentencePieceProcessor(model_file=f"{d}/m.model")
    w = gguf.GGUFWriter(OUT / "spm.gguf", "llama")
    w.add_tokenizer_model("llama")
    n = sp.get_piece_size()
    w.add_token_list([sp.id_to_piece(i) for i in range(n)])
    w.add_token_scores([sp.get_score(i) for i in range(n)])
    w.add_token_types([2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in range(n)])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(True)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    return {t: sp.encode(t) for t in TEXTS}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    bpe_ids, fast = bpe()
    spm_ids = spm()
    rendered = []
    for template in (CHATML, LLAMA2):
        for system in (None, "You know things."):
            messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": "What is it?"}]
            rendered.append({
                "template": template, "system": system,
                "prompt": fast.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True),
                "whole": fast.apply_chat_template(messages + [{"role": "assistant", "content": "A cat."}], chat_template=template, tokenize=False)})
    golden = {"versions": {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__, "sentencepiece": sentencepiece.__version__},
              "bpe": bpe_ids, "spm": spm_ids, "rendered": rendered}
    (OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")


main()
