//! The limits that DESIGN.md sets: how long a file and a function may be, and that the list of exceptions holds nothing that has become short.
use std::fs;

use syn::{
    ImplItemFn, ItemFn, TraitItemFn,
    spanned::Spanned,
    visit::{self, Visit},
};

use crate::common::source::{files, rust_files};

const FILE_LINES: usize = 400;
const FUNCTION_LINES: usize = 60;

/// Folders whose files are counted, and how their names end.
const SOURCES: &[(&str, &[&str])] = &[
    ("src", &["rs"]),
    ("tests", &["rs"]),
    ("benches", &["rs"]),
    ("build", &["rs"]),
    ("examples", &["rs"]),
    ("kernels", &["rs", "cu", "cuh", "cpp", "hpp"]),
];

/// Files that may be longer.
const LONG_FILES: &[&str] = &[
    "build/nvcc.rs",
    "src/data/row_shard.rs",
    "tests/cli.rs",
    "tests/evaluation.rs",
    "tests/qe.rs",
    "tests/training.rs",
];

/// Functions that may be longer: (file, function).
const LONG_FUNCTIONS: &[(&str, &str)] = &[
    ("kernels/emulator/tests/tests/rules.rs", "tensor_maps"),
    ("kernels/emulator/tests/tests/wgmma.rs", "wgmma_reads_every_layout"),
    // A row per op.
    ("src/ops/checks.rs", "outputs_that_share_memory_with_another_operand_are_refused"),
    ("src/ops/gemm/amx/mod.rs", "dot_task"),
    ("src/orchestrate/ablate/report.rs", "build"),
    // A row per setting.
    ("src/recipe/train.rs", "default"),
    ("src/stages/assemble.rs", "from_row"),
    ("tests/cli.rs", "bad_input_is_named_with_what_to_do"),
    ("tests/cli.rs", "evaluation_runs_every_kind_of_task_and_compares"),
    ("tests/cli.rs", "every_engine_translates_and_scores"),
    ("tests/cli.rs", "stages_by_hand_give_what_the_recipe_gives"),
    ("tests/evaluation.rs", "alignment_of_two_files_equals_numpys_by_command_and_as_a_task"),
    ("tests/evaluation.rs", "mkqa_and_summaries_are_evaluated_from_their_own_files"),
    ("tests/evaluation.rs", "the_emulated_gpu_evaluates_and_guards_as_the_cpu_does"),
    ("tests/lm_eval.rs", "sample_files_have_lm_evals_rows"),
    ("tests/nllb.rs", "a_translation_killed_at_any_moment_goes_on_to_the_same_bytes"),
];

/// Names and lengths of the functions of a file, from `fn` to the closing brace; attributes and documentation are not counted.
#[derive(Default)]
struct Functions(Vec<(String, usize)>);

impl Functions {
    fn of(text: &str) -> Vec<(String, usize)> {
        let mut functions = Functions::default();
        functions.visit_file(&syn::parse_file(text).unwrap());
        functions.0
    }

    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let lines = block.brace_token.span.close().end().line - signature.span().start().line + 1;
        self.0.push((signature.ident.to_string(), lines));
    }
}

impl<'a> Visit<'a> for Functions {
    fn visit_item_fn(&mut self, item: &'a ItemFn) {
        self.add(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'a ImplItemFn) {
        self.add(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'a TraitItemFn) {
        if let Some(block) = &item.default {
            self.add(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

/// What is over a limit and not in the list, then what is in the list and not over it.
fn judge<'a, T: PartialEq + std::fmt::Debug>(over: &'a [(T, usize)], excepted: &'a [T]) -> Vec<String> {
    let new = over.iter().filter(|(x, _)| !excepted.contains(x)).map(|(x, n)| format!("{n} lines: {x:?}"));
    let gone = excepted.iter().filter(|x| over.iter().all(|(o, _)| o != *x));
    new.chain(gone.map(|x| format!("short enough, take it from the list of exceptions: {x:?}"))).collect()
}

#[test]
fn files_are_short() {
    let (mut over, mut seen) = (vec![], 0);
    for (folder, endings) in SOURCES {
        for file in files(folder, endings) {
            seen += 1;
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            if lines > FILE_LINES {
                over.push((file.to_str().unwrap().to_string(), lines));
            }
        }
    }
    let over: Vec<(&str, usize)> = over.iter().map(|(f, n)| (f.as_str(), *n)).collect();
    let wrong = judge(&over, LONG_FILES);
    assert!(wrong.is_empty(), "more than {FILE_LINES} lines:\n{}", wrong.join("\n"));
    assert!(seen > 250, "only {seen} files were looked at");
}

#[test]
fn functions_are_short() {
    let (mut over, mut seen) = (vec![], 0);
    for file in SOURCES.iter().flat_map(|(folder, _)| rust_files(folder)) {
        for (name, lines) in Functions::of(&fs::read_to_string(&file).unwrap()) {
            seen += 1;
            if lines > FUNCTION_LINES {
                over.push(((file.to_str().unwrap().to_string(), name), lines));
            }
        }
    }
    let over: Vec<((&str, &str), usize)> =
        over.iter().map(|((f, name), n)| ((f.as_str(), name.as_str()), *n)).collect();
    let wrong = judge(&over, LONG_FUNCTIONS);
    assert!(wrong.is_empty(), "more than {FUNCTION_LINES} lines:\n{}", wrong.join("\n"));
    assert!(seen > 1000, "only {seen} functions were looked at");
}

#[test]
fn lengths_are_counted_from_the_signature_to_the_brace() {
    let text = "/// Words.\n#[inline]\nfn a() {\n}\nimpl X {\n    pub fn b(\n        &self,\n    ) -> usize {\n        fn c() {}\n        1\n    }\n}\n\
                trait T {\n    fn d();\n    fn e() {\n    }\n}\nmod m {\n    fn f() {}\n}\n";
    let found = Functions::of(text);
    let expected = [("a", 2), ("b", 6), ("c", 1), ("e", 2), ("f", 1)];
    assert_eq!(found, expected.map(|(name, n)| (name.to_string(), n)));
    let over = [("long", 500), ("known", 500)];
    assert_eq!(judge(&over, &["known", "gone"]).len(), 2, "one that is new and one that is gone");
    assert!(judge(&over, &["known", "long"]).is_empty());
}
