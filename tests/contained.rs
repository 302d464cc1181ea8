//! Chat templates and tokenizers that do harm: each ends with an error by name, within its time and memory, and the program goes on.
use std::{path::Path, sync::Once, time::Duration};

use sdrrl::data::{
    contained,
    conversation::Prompt,
    questions,
    tally::OnBadRow,
    template::{ChatTemplate, TrainOn},
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};

use crate::common::program;

/// From here on templates and tokenizers are tried by the program under test.
fn contain() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| contained::use_program(Some(program().get_program().into())));
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(Path::new("tests/golden/templates/spm-bare.json")).unwrap()
}

fn prompt(question: &str) -> Prompt<'_> {
    Prompt { system: None, earlier: &[], instruction: question, input: "" }
}

/// A program that is no `sdrrl` and has none beside it or on its PATH: this one, under another name in an empty folder.
#[test]
fn a_library_without_the_program_refuses_templates() {
    const NAME: &str = "alone";
    let own = std::env::current_exe().unwrap();
    if own.file_name().is_some_and(|name| name == NAME) {
        let tok = tokenizer();
        let refused = outcome("{{ messages[0].content }}", &tok).unwrap_err();
        assert!(refused.contains("use_program") && refused.contains("PATH"), "{refused}");
        // Templates that are ours need no program.
        assert!(ChatTemplate::load("chatml", &tok).is_ok());
        sdrrl::use_program(None);
        assert!(outcome("{{ messages[0].content }}", &tok).is_ok());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Nor in the folder above it.
    let (folder, other) = (dir.path().join("own"), dir.path().join("own").join(NAME));
    std::fs::create_dir(&folder).unwrap();
    std::fs::hard_link(&own, &other).or_else(|_| std::fs::copy(&own, &other).map(drop)).unwrap();
    let test = "contained::a_library_without_the_program_refuses_templates";
    let run = std::process::Command::new(&other).args(["--exact", test]).env("PATH", "").output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_files_are_refused_by_name_in_a_build_without_them() {
    let read = questions::read(Path::new("tests/golden/rows/none.parquet"), "en", OnBadRow::Fail);
    let error = format!("{:#}", read.unwrap_err());
    assert!(error.contains("none.parquet") && error.contains("--features parquet"), "{error}");
}

/// A kilobyte whose dictionary says that it has hundreds of millions of entries (found by `fuzz`): 14 GB and 40 s in its library.
#[cfg(feature = "parquet")]
#[test]
fn a_damaged_parquet_file_ends_a_child_and_not_the_program() {
    contain();
    let began = std::time::Instant::now();
    let path = Path::new("tests/golden/rows/damaged.parquet");
    let error = questions::read(path, "en", OnBadRow::Skip).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("damaged.parquet") && error.contains("256 MiB of memory"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    // Sound ones are read as ever.
    let sound = questions::read(Path::new("tests/golden/rows/snappy.parquet"), "en", OnBadRow::Fail);
    assert_eq!(sound.unwrap().0.len(), 3);
}

/// What becomes of a template: the ids' number, or the error.
fn outcome(source: &str, tok: &Tokenizer) -> Result<usize, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.jinja");
    std::fs::write(&path, source).unwrap();
    let template = ChatTemplate::load(path.to_str().unwrap(), tok).map_err(|e| format!("{e:#}"))?;
    let ids = template.encode_prompt(tok, &prompt("Who?")).map_err(|e| format!("{e:#}"))?;
    Ok(ids.len())
}

fn repeated(before: &str, text: &str, times: usize, after: &str) -> String {
    format!("{before}{}{after}", text.repeat(times))
}

/// Programs that ask for more than anybody has, by their kinds.
fn hostile() -> Vec<(&'static str, String)> {
    let doubling = |what: &str| {
        format!(
            "{{% set ns = namespace(a={what}) %}}{{% for i in range(60) %}}{{% set ns.a = STEP %}}{{% endfor %}}{{{{ ns.a|length }}}}"
        )
    };
    let list = doubling("[1]");
    let text = doubling("'x'");
    vec![
        ("list doubling", list.replace("STEP", "(ns.a + ns.a)|list")),
        ("text doubling", text.replace("STEP", "ns.a ~ ns.a")),
        ("text addition", text.replace("STEP", "ns.a + ns.a")),
        ("replacement", text.replace("STEP", "ns.a|replace('x', 'xx')")),
        ("python's replacement", text.replace("STEP", "ns.a.replace('x', 'xx')")),
        ("joining", "{{ range(100000)|join('x' * 1000000) }}".into()),
        ("multiplication", "{{ 'x' * 10000000000 }}".into()),
        ("multiplied output", "{% set x = 'x' * 10000000 %}{% for i in range(1000) %}{{ x }}{% endfor %}".into()),
        ("a format's width", "{{ '%4000000000d' % 1 }}{{ '%4000000000s'|format('x') }}".into()),
        ("a wide number", "{{ '%16777215d'|format(3) }}".into()),
        ("python's format", "{{ '{:>4000000000}'.format('x') }}".into()),
        ("tojson's indent", "{{ messages|tojson(indent=18446744073709551615) }}".into()),
        ("indentation", "{{ 'a\nb'|indent(4000000000) }}".into()),
        ("range", "{{ range(10000000000)|list|length }}".into()),
        ("batches", "{{ [1]|batch(10000000000, 0)|list|length }}".into()),
        ("slices", "{{ [1]|slice(10000000000, 0)|list|length }}".into()),
        ("loops", "{% for i in range(90000) %}{% for j in range(90000) %}x{% endfor %}{% endfor %}".into()),
        ("slow filters", "{% set x = 'ab' * 20000000 %}{% for i in range(90000) %}{{ x|replace('a', 'c')|length }}{% endfor %}".into()),
        ("recursion", "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}".into()),
        ("a recursive loop", "{% for x in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}".into()),
        ("a deep value", "{% set ns = namespace(a=[]) %}{% for i in range(99000) %}{% for j in range(9) %}{% set ns.a = [ns.a] %}{% endfor %}{% endfor %}{{ ns.a }}".into()),
        ("brackets", repeated("{{ ", "(", 200_000, "")),
        ("whole brackets", format!("{{{{ {}1{} }}}}", "(".repeat(200_000), ")".repeat(200_000))),
        ("lists in lists", format!("{{{{ {}1{} }}}}", "[".repeat(200_000), "]".repeat(200_000))),
        ("signs", repeated("{{ ", "-", 200_000, "1 }}")),
        ("not", repeated("{{ ", "not ", 200_000, "true }}")),
        ("blocks", repeated("", "{% if true %}", 60_000, "")),
        ("whole blocks", format!("{}x{}", "{% if true %}".repeat(30_000), "{% endif %}".repeat(30_000))),
    ]
}

#[test]
fn a_template_takes_a_second_and_256_mib_whatever_it_does() {
    contain();
    let tok = tokenizer();
    for (what, source) in hostile() {
        let began = std::time::Instant::now();
        let outcome = outcome(&source, &tok);
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: {:?}", began.elapsed());
        let error = outcome.expect_err(what);
        assert!(error.contains("template") && error.len() < 2500, "{what}: {error}");
    }
}

/// What is long and does no harm may be refused, but by name.
#[test]
fn long_chains_are_rendered_or_refused_by_name() {
    contain();
    let tok = tokenizer();
    for (what, source) in [
        ("additions", repeated("{{ 1", "+1", 200_000, " }}")),
        ("concatenations", repeated("{{ 'a'", "~'a'", 200_000, " }}")),
        ("alternatives", repeated("{{ 0", " or 0", 150_000, " }}")),
        ("comparisons", repeated("{{ 1", "<2", 200_000, " }}")),
        ("attributes", repeated("{{ messages", "[0]", 200_000, " }}")),
        ("filters", repeated("{{ 1", "|abs", 200_000, " }}")),
        ("elif", repeated("{% if 0 %}", "{% elif 0 %}", 80_000, "{% endif %}")),
        ("statements", repeated("", "{% set a = 1 %}", 60_000, "x")),
    ] {
        if let Err(error) = outcome(&source, &tok) {
            assert!(error.contains("the chat template cannot be"), "{what}: {error}");
        }
    }
}

#[test]
fn a_template_that_fails_once_does_not_harm_the_next_conversation() {
    contain();
    let (tok, dir) = (tokenizer(), tempfile::tempdir().unwrap());
    let path = dir.path().join("t.jinja");
    let source =
        "{% if 'bomb' in messages[0].content %}{{ 'x' * 10000000000 }}{% endif %}{{ messages[0].content }}";
    std::fs::write(&path, source).unwrap();
    let template = ChatTemplate::load(path.to_str().unwrap(), &tok).unwrap();
    let good = template.encode_prompt(&tok, &prompt("Who?")).unwrap();
    for _ in 0..3 {
        assert!(template.encode_prompt(&tok, &prompt("a bomb")).is_err());
        assert_eq!(template.encode_prompt(&tok, &prompt("Who?")).unwrap(), good);
        template.encode(&tok, &prompt("Who?"), "Me.", TrainOn::All).unwrap_err();
    }
}

/// A sound file with one part replaced.
fn file(part: &str, value: Value) -> Value {
    let model = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "ignore_merges": false,
        "vocab": {"<pad>": 0, "</s>": 1, "<unk>": 2, "h": 3, "e": 4, "he": 5}, "merges": [["h", "e"]]});
    let mut file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model});
    if let Some((outer, inner)) = part.split_once('/') {
        file[outer][inner] = value;
    } else {
        file[part] = value;
    }
    file
}

/// Files that make the library panic, abort, run for ever or read outside of its memory.
fn bad_tokenizers() -> Vec<(&'static str, Value)> {
    let replace = |pattern: Value| json!({"type": "Replace", "pattern": pattern, "content": "xxxxxxxxxx"});
    let mut nested = json!({"type": "Lowercase"});
    for _ in 0..40 {
        nested = json!({"type": "Sequence", "normalizers": [nested]});
    }
    vec![
        ("pieces of no letters", file("pre_tokenizer", json!({"type": "FixedLength", "length": 0}))),
        (
            "a trie that leads out",
            file("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="})),
        ),
        ("no trie", file("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": ""}))),
        (
            "a long trie",
            file("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="})),
        ),
        (
            "growth",
            file(
                "normalizer",
                json!({"type": "Sequence", "normalizers": vec![replace(json!({"Regex": "."})); 9]}),
            ),
        ),
        ("depth", file("normalizer", nested)),
        (
            "a missing special token",
            file(
                "post_processor",
                json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<no>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {}}),
            ),
        ),
        ("a prefix longer than its piece", file("model/continuing_subword_prefix", json!("#####"))),
        (
            "a broken pattern",
            file(
                "pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
            ),
        ),
        (
            "no pieces",
            file("model", json!({"type": "Unigram", "unk_id": 0, "vocab": [], "byte_fallback": false})),
        ),
        (
            "an unknown piece beyond the pieces",
            file(
                "model",
                json!({"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]], "byte_fallback": false}),
            ),
        ),
        ("an unknown model", file("model", json!({"type": "Tree"}))),
        (
            "a strip beyond the token",
            file("decoder", json!({"type": "Strip", "content": "h", "start": 0, "stop": 9})),
        ),
    ]
}

#[test]
fn tokenizers_that_harm_their_library_are_refused_by_name() {
    contain();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    for (what, json) in bad_tokenizers().into_iter().chain([("a list", json!([])), ("nothing", Value::Null)])
    {
        std::fs::write(&path, json.to_string()).unwrap();
        let outcome = Tokenizer::load(&path).and_then(|tok| tok.decode(&tok.encode("hhe he", true)?));
        let error = format!("{:#}", outcome.err().unwrap_or_else(|| panic!("{what} was taken")));
        assert!(error.contains("tokenizer") || error.contains("library"), "{what}: {error}");
    }
    // What only says how to cut and to pad is left out, as in transformers.
    let fixed = json!({"strategy": {"Fixed": 2_000_000_000}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"});
    std::fs::write(&path, file("padding", fixed).to_string()).unwrap();
    assert_eq!(Tokenizer::load(&path).unwrap().encode("he", false).unwrap(), [5]);
}

/// The program itself, as somebody types it.
#[test]
fn the_program_names_a_hostile_template() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::copy("tests/golden/templates/spm-bare.json", at("tokenizer.json")).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ 'x' * 10000000000 }}"});
    std::fs::write(at("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(at("rows.jsonl"), "{\"instruction\": \"Q\", \"output\": \"A\"}\n").unwrap();
    let out = program()
        .args(["pack", "--examples"])
        .arg(at("rows.jsonl"))
        .arg("--model")
        .arg(dir.path())
        .arg("--out")
        .arg(at("shards"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("the chat template cannot be rendered"), "{said}");
}
