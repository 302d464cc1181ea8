//! A chat template as Jinja, for a folder that other programs read: the built-in ones too.
use super::named::{LLAMA_FACTORY_HEAD, Named};

/// Jinja that renders conversations as the built-in template does. Alpaca's two-part form has no place in messages: question and context are one text.
pub(super) fn jinja(named: Named) -> String {
    let head = LLAMA_FACTORY_HEAD;
    let single = |before: &str, after: &str| {
        format!(
            "{{% if messages[0]['role'] != 'user' or messages|length > 2 %}}{{{{ raise_exception('this template has a place for one question and its answer') }}}}{{% endif %}}\
             {{{{ '{before}' + messages[0]['content'] + '{after}' }}}}{{% if messages|length == 2 %}}{{{{ messages[1]['content'] + eos_token }}}}{{% endif %}}"
        )
    };
    // Of a conversation that may begin with a system prompt: what its turns are put between, and what stands behind all of them but a last answer.
    let turns = |[before, after]: [&str; 2], line: &str| {
        format!(
            "{{% for m in messages %}}{{{{ '{before}' + m['role'] + '\\n' + m['content'] + '{after}' }}}}\
             {{% if not loop.last or m['role'] != 'assistant' %}}{{{{ '{line}' }}}}{{% endif %}}{{% endfor %}}\
             {{% if add_generation_prompt %}}{{{{ '{before}assistant\\n' }}}}{{% endif %}}"
        )
    };
    match named {
        Named::Plain => single("", ""),
        Named::Alpaca => single(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\\n\\n### Instruction:\\n",
            "\\n\\n### Response:",
        ),
        Named::AlpacaLlamaFactory => format!(
            "{{% if messages[0]['role'] != 'system' %}}{{{{ '{head}\\n\\n' }}}}{{% endif %}}{{% for m in messages %}}\
             {{% if m['role'] == 'system' %}}{{{{ m['content'] + '\\n\\n' }}}}\
             {{% elif m['role'] == 'user' %}}{{{{ '### Instruction:\\n' + m['content'] + '\\n\\n### Response:\\n' }}}}\
             {{% else %}}{{{{ m['content'] + eos_token }}}}{{% if not loop.last %}}{{{{ '\\n\\n' }}}}{{% endif %}}{{% endif %}}{{% endfor %}}"
        ),
        Named::Llama2 => "{% set ns = namespace(opened=false) %}{% for m in messages %}\
             {% if m['role'] == 'system' %}{{ '[INST] <<SYS>>\\n' + m['content'] + '\\n<</SYS>>\\n\\n' }}{% set ns.opened = true %}\
             {% elif m['role'] == 'user' %}{{ ('' if ns.opened else '[INST] ') + m['content'] + ' [/INST]' }}{% set ns.opened = false %}\
             {% else %}{{ ' ' + m['content'] + ('' if loop.last else ' ') + eos_token }}{% if not loop.last %}{{ bos_token }}{% endif %}{% endif %}{% endfor %}"
            .into(),
        Named::ChatMl => turns(["<|im_start|>", "<|im_end|>"], "\\n"),
        Named::SeaLlmV2 => turns(["<|im_start|>", "</s>"], ""),
    }
}
