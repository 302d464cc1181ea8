//! Each module of `src` may use only the modules below it (DESIGN.md, "Layout").
//!
//! Every file is parsed: `use` in any shape, every path in types and expressions, attributes, and the words inside macros, where a path cannot be
//! told from other words and `crate::x` alone is looked at. A relative path (`super::super::x`) is resolved by where its module stands.
use std::{fs, path::Path};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    UseTree,
    visit::{self, Visit},
};

use crate::common::source::rust_files;

/// From the top down; modules on one line may not use each other.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["orchestrate", "api"],
    &["stages"],
    &["eval", "bench"],
    &["remote"],
    &["recipe"],
    &["infer", "train", "mt", "qe"],
    &["models"],
    &["distributed"],
    &["ops", "pipeline"],
    &["tensor"],
    &["metrics", "device"],
    &["data", "report"],
    &["error"],
];

/// Arrows that stand for now: (file, module used).
const STANDING: &[(&str, &str)] = &[];

/// One use of another module: the path from the crate's root, and the line.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrow {
    path: Vec<String>,
    line: usize,
}

/// Collects what a file uses of its crate. `module` is the file's path (`ops`, `gemm`, `plan`), longer inside inline modules.
struct Arrows {
    module: Vec<String>,
    found: Vec<Arrow>,
}

/// The arrows of a source text whose module is `module`.
fn arrows(text: &str, module: &[&str]) -> Vec<Arrow> {
    let file = syn::parse_file(text).unwrap_or_else(|e| panic!("{module:?}: {e}"));
    let mut all = Arrows { module: module.iter().map(|m| m.to_string()).collect(), found: vec![] };
    all.visit_file(&file);
    all.found.sort();
    all.found.dedup();
    all.found
}

impl Arrows {
    /// Takes a path as written. One that begins with neither `crate` (in the program: `sdrrl`), `super` nor `self` stays in its module or leaves the crate.
    fn path(&mut self, words: &[String], line: usize) {
        let mut words = words.iter().map(String::as_str).peekable();
        let mut path = match words.next() {
            Some("crate" | "sdrrl") => vec![],
            Some("self") => self.module.clone(),
            Some("super") => self.module[..self.module.len().saturating_sub(1)].to_vec(),
            _ => return,
        };
        while words.next_if_eq(&"super").is_some() {
            path.pop();
        }
        path.extend(words.map(String::from));
        self.found.push(Arrow { path, line });
    }

    fn tree(&mut self, before: &[String], tree: &UseTree) {
        let joined = |word: &syn::Ident| [before, &[word.to_string()]].concat();
        match tree {
            UseTree::Path(p) => self.tree(&joined(&p.ident), &p.tree),
            UseTree::Group(g) => g.items.iter().for_each(|t| self.tree(before, t)),
            UseTree::Name(n) if n.ident == "self" => self.path(before, n.ident.span().start().line),
            UseTree::Name(n) => self.path(&joined(&n.ident), n.ident.span().start().line),
            UseTree::Rename(r) => self.path(&joined(&r.ident), r.ident.span().start().line),
            UseTree::Glob(g) => self.path(before, g.star_token.spans[0].start().line),
        }
    }

    /// Paths among the tokens of a macro: words joined by `::`, begun by `crate`, `$crate` or `super`.
    fn tokens(&mut self, stream: TokenStream) {
        let (mut words, mut colons, mut line) = (vec![], 0, 0);
        for token in stream {
            match token {
                TokenTree::Ident(word) => {
                    if words.is_empty() || colons != 2 {
                        self.path(&words, line);
                        words.clear();
                        line = word.span().start().line;
                    }
                    words.push(word.to_string());
                    colons = 0;
                }
                TokenTree::Punct(p) if p.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    // `use crate::{a, b}` inside a macro: each word that begins a part of the group.
                    if colons == 2 && matches!(words.first().map(String::as_str), Some("crate" | "super")) {
                        self.token_group(&words, &group, line);
                    }
                    self.path(&words, line);
                    words.clear();
                    self.tokens(group.stream());
                }
                _ => {
                    self.path(&words, line);
                    words.clear();
                }
            }
        }
        self.path(&words, line);
    }

    fn token_group(&mut self, before: &[String], group: &proc_macro2::Group, line: usize) {
        let mut first = true;
        for token in group.stream() {
            match token {
                TokenTree::Ident(word) if first => {
                    self.path(&[before, &[word.to_string()]].concat(), line);
                    first = false;
                }
                TokenTree::Punct(p) => first = p.as_char() == ',',
                _ => first = false,
            }
        }
    }
}

impl<'a> Visit<'a> for Arrows {
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let words: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        let line = path.segments.first().map_or(0, |s| s.ident.span().start().line);
        // One word alone (`self`, a type) leaves no module.
        if words.len() > 1 {
            self.path(&words, line);
        }
        visit::visit_path(self, path);
    }

    /// `pub(in crate::x)` gives access and uses nothing.
    fn visit_visibility(&mut self, _: &'a syn::Visibility) {}

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if item.content.is_some() {
            self.module.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }

    fn visit_macro(&mut self, item: &'a syn::Macro) {
        visit::visit_macro(self, item);
        self.tokens(item.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'a syn::Attribute) {
        if attribute.path().is_ident("doc") {
            return;
        }
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
        // `#[serde(default = "crate::x::f")]` names a function in a string.
        let text = quote::ToTokens::to_token_stream(attribute).to_string();
        for part in text.split('"').skip(1).step_by(2).filter(|p| p.starts_with("crate::")) {
            let words: Vec<String> = part.split("::").map(String::from).collect();
            self.path(&words, attribute.pound_token.spans[0].start().line);
        }
    }
}

/// The module path of a file of `src`.
fn module_of(file: &Path) -> Vec<String> {
    let inside = file.strip_prefix("src").unwrap().with_extension("");
    let mut module: Vec<String> =
        inside.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|m| m == "mod") {
        module.pop();
    }
    module
}

/// What in `text` points up or sideways, or at a module that no layer has.
fn upward(text: &str, module: &[&str]) -> Vec<Arrow> {
    let depth = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let own = module.first().copied().unwrap_or("main");
    let from = depth(own).unwrap_or_else(|| panic!("module {own} stands in no layer"));
    let allowed = |to: &str| to == own || depth(to).is_some_and(|to| to > from);
    let mut found = arrows(text, module);
    found.retain(|arrow| arrow.path.first().is_some_and(|to| !allowed(to)));
    found
}

#[test]
fn dependencies_point_down() {
    let files = rust_files("src");
    let mut standing = vec![];
    let mut wrong = vec![];
    for file in files.iter().filter(|f| !f.ends_with("src/lib.rs")) {
        let module = module_of(file);
        let module: Vec<&str> = module.iter().map(String::as_str).collect();
        for arrow in upward(&fs::read_to_string(file).unwrap(), &module) {
            let known = (file.to_str().unwrap(), arrow.path[0].as_str());
            match STANDING.iter().find(|s| **s == known) {
                Some(s) => standing.push(*s),
                None => wrong.push(format!(
                    "{}:{} uses {}, which does not stand below {}",
                    file.display(),
                    arrow.line,
                    arrow.path.join("::"),
                    module[0]
                )),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let gone: Vec<_> = STANDING.iter().filter(|s| !standing.contains(s)).collect();
    assert!(gone.is_empty(), "no longer there, take them from the list: {gone:?}");
    assert!(files.len() > 100, "only {} files were looked at", files.len());
}

#[test]
fn every_module_stands_in_a_layer() {
    let named: Vec<&str> = LAYERS.iter().flat_map(|l| l.iter().copied()).collect();
    let files = rust_files("src");
    for file in files.iter().filter(|f| !f.ends_with("src/lib.rs")) {
        let top = &module_of(file)[0];
        assert!(named.contains(&top.as_str()), "{}: {top} stands in no layer", file.display());
    }
    for name in &named {
        assert!(files.iter().any(|f| module_of(f)[0] == *name), "no source for module {name}");
    }
}

/// `data` and `metrics` must stay free of tensors and devices, whatever the list says.
#[test]
fn data_and_metrics_know_no_tensors() {
    for file in rust_files("src").iter().filter(|f| f.starts_with("src/data") || f.starts_with("src/metrics"))
    {
        let module = module_of(file);
        let module: Vec<&str> = module.iter().map(String::as_str).collect();
        for arrow in arrows(&fs::read_to_string(file).unwrap(), &module) {
            let to = arrow.path.first().map(String::as_str);
            assert!(
                !matches!(to, Some("tensor" | "device" | "ops")),
                "{}:{} uses {to:?}",
                file.display(),
                arrow.line
            );
        }
    }
}

/// Every shape that an import may have is seen: each of these, planted into `ops/gemm/plan.rs`, points up.
#[test]
fn planted_upward_imports_are_found() {
    for planted in [
        "use crate::train::Trainer;",
        "use crate::{tensor::Tensor, train::Trainer};",
        "use crate::{\n    data,\n    train::{self, trainer::{Config, Trainer}},\n};",
        "use crate::train as lower;",
        "use crate::{tensor, train as lower};",
        "pub use crate::train::*;",
        "pub(crate) use crate::{train::trainer::*};",
        "use super::super::super::train::Trainer;",
        "use super::{super::{super::train::Trainer}};",
        "fn f() { use crate::train; }",
        "fn f() { crate::train::go() }",
        "fn f() { let x = super::super::super::train::LIMIT; }",
        "fn f(x: &crate::train::Trainer) {}",
        "fn f() -> Vec<Option<crate::train::Trainer>> { vec![] }",
        "impl crate::train::Watch for X {}",
        "mod inner { use super::super::super::super::train::Trainer; }",
        "mod inner { fn f() { crate::train::go() } }",
        "#[cfg(test)]\nmod tests { use crate::train; }",
        "fn f() { println!(\"{}\", crate::train::LIMIT) }",
        "fn f() { vec![1, super::super::super::train::LIMIT] }",
        "macro_rules! m { () => { $crate::train::go() } }",
        "macro_rules! m { () => { use crate::{data, train}; } }",
        "fn f() { matches!(x, Some(crate::train::Kind::A { .. })) }",
        "#[serde(default = \"crate::train::limit\")]\nstruct X;",
        "#[derive(crate::train::Derive)]\nstruct X;",
        "extern crate self as sdrrl; use sdrrl::train::Trainer;",
    ] {
        let found = upward(planted, &["ops", "gemm", "plan"]);
        assert!(!found.is_empty(), "{planted}");
        assert!(found.iter().all(|arrow| arrow.path[0] == "train"), "{planted}: {found:?}");
    }
    let twice = upward("use crate::{train::a, infer::{b, c}};", &["ops"]);
    assert_eq!(twice.len(), 3, "{twice:?}");
    let sideways = upward("use crate::pipeline::rows;", &["ops", "rows"]);
    assert_eq!(sideways.len(), 1, "modules of one layer may not use each other");
    let unknown = upward("use crate::nowhere::x;", &["ops"]);
    assert_eq!(unknown.len(), 1, "a module of no layer");
}

#[test]
fn what_points_down_or_stays_is_left_alone() {
    for fine in [
        "use crate::{data::record::Row, tensor::{DType, Tensor}};",
        "use super::{dot, outer};\nuse super::super::launch::kernel;",
        "use crate::ops::gemm;\nuse self::inner::f;",
        "use std::{fs, train};\nuse train::x;",
        "pub(in crate::train) fn f() {}\npub(super) fn g() {}",
        "mod inner { use super::super::super::attention; }",
        "// crate::train::Trainer\n/// See [`crate::train::Trainer`].\nfn f() { println!(\"crate::train\") }",
        "impl X { fn f(self) -> Self { Self::new(self.x) } }",
    ] {
        assert_eq!(upward(fine, &["ops", "gemm", "plan"]), [], "{fine}");
    }
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    let allowed = ["src/device/", "src/tensor.rs", "src/tensor/", "src/ops/", "src/data/map.rs"];
    for file in rust_files("src") {
        let path = file.to_str().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let opens = has_unsafe(text.parse().unwrap());
        assert!(!opens || allowed.iter().any(|a| path.starts_with(a)), "{path} may not contain unsafe code");
    }
}

/// The word `unsafe` in code, or a lint that lets it in.
fn has_unsafe(stream: TokenStream) -> bool {
    stream.into_iter().any(|token| match token {
        TokenTree::Ident(word) => word == "unsafe" || word == "unsafe_code",
        TokenTree::Group(group) => has_unsafe(group.stream()),
        _ => false,
    })
}

#[test]
fn unsafe_is_seen_in_code_and_not_in_comments() {
    for (text, expected) in [
        ("fn f() { unsafe { g() } }", true),
        ("#![allow(unsafe_code)]", true),
        ("macro_rules! m { () => { unsafe { g() } } }", true),
        ("/// An unsafe habit.\nfn f() { println!(\"unsafe\") }", false),
    ] {
        assert_eq!(has_unsafe(text.parse().unwrap()), expected, "{text}");
    }
}
