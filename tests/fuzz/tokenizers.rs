//! Tokenizers and chat templates.
use std::{path::Path, sync::OnceLock};

use sdrrl::data::{
    conversation::Prompt,
    template::{ChatTemplate, TrainOn},
    tokenizer::{Tokenizer, sentencepiece},
};

use crate::{
    mutate,
    parsers::{Parser, parser},
    seeds::{self, files, texts},
};

/// As the program does it: by a child with limits.
pub fn contained<T>(work: impl FnOnce() -> T) -> T {
    let program = std::env::var_os("SDRRL_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_sdrrl").into());
    sdrrl::use_program(Some(program.into()));
    let result = work();
    sdrrl::use_program(None);
    result
}

fn template(path: &Path) -> bool {
    let tok = tokenizer();
    let Ok(template) = contained(|| ChatTemplate::load(path.to_str().unwrap(), tok)) else { return false };
    let prompt = Prompt::new(Some("Be brief."), "Who?", "");
    let asked = template.encode_prompt(tok, &prompt).is_ok();
    template.encode(tok, &prompt, "Me.", TrainOn::All).is_ok() && asked
}

/// A sound tokenizer with begin and end tokens, loaded once.
fn tokenizer() -> &'static Tokenizer {
    static LOADED: OnceLock<Tokenizer> = OnceLock::new();
    LOADED.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy("tests/golden/templates/spm-bare.json", dir.path().join("tokenizer.json")).unwrap();
        seeds::put(
            &dir.path().join("tokenizer_config.json"),
            b"{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\"}",
        );
        Tokenizer::load(dir.path()).unwrap()
    })
}

const TEMPLATES: [&str; 3] = [
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] | trim + eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "{%- if messages[0].role == 'system' -%}{% set system = messages[0].content %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "{{ messages|tojson(indent=2) }}{% macro f(x, n=3) %}{{ '%05d'|format(n) }}{{ x.split('a')|join('-') }}{% endmacro %}{{ f('banana') }}{{ strftime_now('%d %b') }}{% for i in range(3) %}{{ 'x' * i if i is odd else [i, i] }}{% endfor %}",
];

pub fn tokenizers() -> Vec<Parser> {
    vec![
        parser("sentencepiece", seeds::sentencepiece(), mutate::protobuf, "", |_, bytes| {
            let layouts = [sentencepiece::IdLayout::XlmRoberta, sentencepiece::IdLayout::Nllb];
            layouts.into_iter().any(|layout| sentencepiece::build(bytes, layout).is_ok())
        }),
        parser(
            "tokenizer-json",
            files(&["tests/golden/templates/spm-bare.json", "tests/golden/tokenizer/bpe.json"]),
            mutate::json,
            "tokenizer.json",
            |dir, _| {
                let Ok(tok) = Tokenizer::load(&dir.join("tokenizer.json")) else { return false };
                let ids = tok.encode_with_special("Hello, wörld 12 </s>");
                ids.is_ok_and(|ids| tok.decode(&ids).is_ok())
            },
        ),
        parser(
            "tokenizer-config",
            texts(&[
                "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}, \"add_bos_token\": true, \"additional_special_tokens\": [\"<a>\"], \"added_tokens_decoder\": {\"700\": {\"content\": \"<b>\", \"special\": true}}, \"chat_template\": \"{{ 1 }}\"}",
            ]),
            mutate::json,
            "tokenizer_config.json",
            |dir, _| {
                let path = dir.join("tokenizer.json");
                if !path.exists() {
                    seeds::put(&path, seeds::TOKENIZER.as_bytes());
                }
                let Ok(tok) = Tokenizer::load(dir) else { return false };
                ChatTemplate::load("auto", &tok).is_ok()
            },
        ),
        parser("template", texts(&TEMPLATES), mutate::text, "t.jinja", |dir, _| {
            template(&dir.join("t.jinja"))
        }),
    ]
}
