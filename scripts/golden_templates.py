"""Writes tests/golden/templates: small tokenizers of six kinds, twenty chat templates in the manner of published models, and the ids that
transformers' apply_chat_template gives for conversations.

    python scripts/golden_templates.py        # needs transformers and tokenizers
"""
import json
import os
import pathlib
import tempfile

os.environ["SOURCE_DATE_EPOCH"] = "1721952000"
import datetime

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/templates"
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
            "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|end|>", "<pad>"]
TEXT = """What is the capital of France? Paris is the capital of France. Hello, how can I help you today? The answer is 42.
Antworten Sie bitte auf Deutsch. ¿Qué hora es? 日本語の文です。 def main(): return {"a": [1, 2]}
system user assistant model Human Assistant Instruction Response Today think tools documents
""".splitlines() * 4


def trained(model, trainer, **parts):
    tok = Tokenizer(model)
    for name, part in parts.items():
        setattr(tok, name, part)
    tok.train_from_iterator(TEXT, trainer)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return tok


def bpe_trainer(size, alphabet=()):
    return trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIALS, initial_alphabet=list(alphabet), show_progress=False)


def bytes_fallback():
    return [f"<0x{i:02X}>" for i in range(256)]


def spm(prepend, metaspace):
    """BPE over ▁ with byte fallback: Llama 2's (normalizer) or the newer form (pre-tokenizer)."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIALS + bytes_fallback(), show_progress=False)
    tok.train_from_iterator(TEXT, trainer)
    data = json.loads(tok.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    tok = Tokenizer.from_str(json.dumps(data))
    if metaspace:
        tok.normalizer = None
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
    elif not prepend:
        tok.normalizer = normalizers.Replace(" ", "▁")
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tok


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tokenizers():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False)
    yield "byte-level", trained(models.BPE(), bpe_trainer(420, alphabet), pre_tokenizer=byte, decoder=decoders.ByteLevel())
    from tokenizers import Regex
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    llama3 = trained(models.BPE(), bpe_trainer(420, alphabet), pre_tokenizer=split, decoder=decoders.ByteLevel())
    llama3.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", llama3.token_to_id("<s>"))])
    yield "llama-3", llama3
    yield "spm-legacy", spm(True, None)
    yield "spm-first", spm(False, "first")
    yield "spm-bare", spm(False, None)
    unigram = trained(models.Unigram(), trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False),
                      normalizer=normalizers.NFKC(), pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace())
    yield "unigram", unigram


def loop(user, assistant, system="", prompt="", head="", tail=""):
    """A template of the usual shape: each role's text with {c} for the content."""
    def say(text):
        return "{{ '" + text.replace("\n", "\\n").replace("{c}", "' + message['content'] + '") + "' }}"
    out = head + "{% for message in messages %}{% if message['role'] == 'user' %}" + say(user)
    out += "{% elif message['role'] == 'assistant' %}" + say(assistant)
    out += "{% else %}" + (say(system) if system else "{{ raise_exception('no system role') }}") + "{% endif %}{% endfor %}"
    return out + tail + ("{% if add_generation_prompt %}" + say(prompt) + "{% endif %}" if prompt else "")


TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "chatml-default-system": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "inst": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "inst-tight": loop("[INST]{c}[/INST]", "{c}</s>", "[INST]{c}[/INST]", head="{{ bos_token }}"),
    "headers": "{%- for message in messages %}{%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{%- if loop.index0 == 0 %}{%- set content = bos_token + content %}{%- endif %}{{- content }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
    "headers-date": "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date_string + '\n\n' + system_message + '<|eot_id|>' }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
    "turns": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for message in rest %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "phi": loop("<|user|>\n{c}<|end|>\n", "<|assistant|>\n{c}<|end|>\n", "<|system|>\n{c}<|end|>\n", "<|assistant|>\n"),
    "vicuna": loop("USER: {c} ", "ASSISTANT: {c}</s>", "{c} ", "ASSISTANT:"),
    "human-assistant": loop("\n\nHuman: {c}", "\n\nAssistant: {c}</s>", "{c}", "\n\nAssistant:"),
    "instruction-response": loop("### Instruction:\n{c}\n\n", "### Response:\n{c}</s>\n\n", "{c}\n\n", "### Response:\n"),
    "generation-tag": "{% for message in messages %}{% if message['role']=='assistant' %}{{'<|im_start|>assistant\n'}}{% generation %}{{message['content'] + '<|im_end|>'}}{% endgeneration %}{{'\n'}}{% else %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "generation-tag-lines": "{%- for message in messages %}\n    {%- if message['role'] == 'assistant' %}\n        {{- '<|im_start|>assistant\n' }}\n        {%- generation %}\n        {{- message['content'] + '<|im_end|>\n' }}\n        {%- endgeneration %}\n    {%- else %}\n        {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\n' }}\n{%- endif %}",
    "think-stripped": "{{ bos_token }}{%- set ns = namespace(system='') -%}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{ ns.system }}{%- for message in messages %}{%- if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}{%- elif message['role'] == 'assistant' %}{%- set content = message['content'] %}{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}{{ '<|assistant|>' + content + eos_token }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{%- endif %}",
    "think-reversed": "{%- set ns = namespace(last=-1) %}{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}{%- if ns.last < 0 and message.role == 'user' %}{%- set ns.last = index %}{%- endif %}{%- endfor %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}{%- if message.role == 'assistant' and loop.index0 > ns.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{{- message.content.lstrip('\n') + '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}",
    "tools-branch": "{%- if tools is not none %}{{- 'Tools: ' + tools|tojson }}{%- endif %}{%- if documents %}{{- 'Documents' }}{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}",
    "tojson": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']|tojson + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "macro": "{% macro show(role, text) %}<|im_start|>{{ role|upper|lower }}\n{{ text }}<|im_end|>\n{% endmacro %}{% for message in messages %}{{ show(message.role, message.content) }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "items": "{{ bos_token }}{% for message in messages %}{% for key, value in message.items() %}{% if key == 'role' %}{{ '<|' + value + '|>' }}{% else %}{{ value.replace('  ', ' ').rstrip() }}{% endif %}{% endfor %}{{ eos_token if message.role == 'assistant' else '' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
}

CONVERSATIONS = {
    "single": [("user", "What is the capital of <b>France</b> & \"Paris\"?"), ("assistant", "Paris is the capital.")],
    "system": [("system", "Answer in one word."), ("user", "¿Qué hora es?"), ("assistant", "日本語")],
    "turns": [("user", "Hello"), ("assistant", "Hello, how can I help?"), ("user", "What is  two plus two"), ("assistant", "The answer is 42."),
              ("user", "def f(): return 1"), ("assistant", "a\nb")],
}


def ids(tok, messages, prompt):
    out = tok.apply_chat_template(messages, tokenize=True, add_generation_prompt=prompt, return_dict=False)
    return list(out)


def main():
    OUT.mkdir(parents=True, exist_ok=True)

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2024, 7, 26)

    chat_template_utils.datetime = Fixed
    cases = []
    for name, inner in tokenizers():
        (OUT / f"{name}.json").write_text(inner.to_str(pretty=False), encoding="utf-8")
        for template, source in TEMPLATES.items():
            with tempfile.TemporaryDirectory() as folder:
                folder = pathlib.Path(folder)
                (folder / "tokenizer.json").write_text(inner.to_str(), encoding="utf-8")
                config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                          "clean_up_tokenization_spaces": False, "chat_template": source}
                (folder / "tokenizer_config.json").write_text(json.dumps(config))
                tok = AutoTokenizer.from_pretrained(folder)
                for conversation, turns in CONVERSATIONS.items():
                    messages = [{"role": r, "content": c} for r, c in turns]
                    case = {"tokenizer": name, "template": template, "conversation": conversation}
                    try:
                        case["whole"] = ids(tok, messages, False)
                        case["prompt"] = ids(tok, messages[:-1], True)
                    except Exception as e:
                        case["refused"] = str(e)[:80]
                    if "{% generation" in source or "{%- generation" in source:
                        out = tok.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
                        case["mask"] = list(out["assistant_masks"])
                    cases.append(case)
    head = {"templates": TEMPLATES, "conversations": CONVERSATIONS}
    text = json.dumps(head, ensure_ascii=False, indent=1)[:-2] + ',\n "cases": [\n' + ",\n".join(json.dumps(c) for c in cases) + "\n]}\n"
    (OUT / "golden.json").write_text(text, encoding="utf-8")
    print(len(cases), "cases,", sum("refused" in c for c in cases), "refused")


# What transformers makes of a SentencePiece tokenizer whose class is LlamaTokenizer.
CLASSES = {
    "plain": {}, "legacy": {"legacy": True}, "legacy-false": {"legacy": False}, "no-prefix": {"add_prefix_space": False},
    "mistral": {"model_type": "mistral"},
}
CLASS_TEXTS = ["Hello, how can I help", " Two  spaces [INST] What is  it? [/INST] 42</s>", "[INST]What[/INST] Paris\n", "", "\u65e5 \U0001f600 x"]


def classes():
    cases = []
    for name in ["spm-legacy", "spm-first", "spm-bare", "byte-level"]:
        for case, fields in CLASSES.items():
            for class_name in ["LlamaTokenizer", "LlamaTokenizerFast"]:
                with tempfile.TemporaryDirectory() as folder:
                    folder = pathlib.Path(folder)
                    (folder / "tokenizer.json").write_text((OUT / f"{name}.json").read_text())
                    model_type = fields.get("model_type", "llama")
                    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
                    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": class_name}
                    config |= {k: v for k, v in fields.items() if k != "model_type"}
                    (folder / "tokenizer_config.json").write_text(json.dumps(config))
                    tok = AutoTokenizer.from_pretrained(folder)
                    texts = [[t, tok(t, add_special_tokens=False)["input_ids"]] for t in CLASS_TEXTS]
                    shown = [[ids, tok.decode(ids, skip_special_tokens=True)] for _, ids in texts]
                cases.append({"tokenizer": name, "model_type": model_type, "config": config, "texts": texts, "decoded": shown})
    text = "[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n"
    (OUT / "classes.json").write_text(text, encoding="utf-8")


main()
classes()
