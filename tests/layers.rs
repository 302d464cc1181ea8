//! Each module of `src` may use only the modules below it (DESIGN.md, "Layout").
use std::{
    fs,
    path::{Path, PathBuf},
};

/// From the top down; modules on one line may not use each other.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["orchestrate"],
    &["stages"],
    &["eval"],
    &["recipe"],
    &["infer", "train", "mt", "qe"],
    &["models"],
    &["ops", "pipeline"],
    &["tensor"],
    &["metrics", "device"],
    &["data", "report"],
];

#[test]
fn dependencies_point_down() {
    let mut seen = 0;
    for (depth, layer) in LAYERS.iter().enumerate() {
        let below: Vec<&str> = LAYERS[depth + 1..].iter().flat_map(|l| l.iter().copied()).collect();
        for module in *layer {
            let mut files = vec![];
            collect(&Path::new("src").join(module), &mut files);
            files.extend([PathBuf::from(format!("src/{module}.rs"))].into_iter().filter(|f| f.exists()));
            assert!(!files.is_empty(), "no source for module {module}");
            for file in files {
                seen += 1;
                let text = fs::read_to_string(&file).unwrap();
                for word in text.split("crate::").skip(1) {
                    let to = word.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                    assert!(
                        to.is_empty() || to == *module || below.contains(&to),
                        "{} uses crate::{to}; {module} may use {below:?}",
                        file.display()
                    );
                }
            }
        }
    }
    assert!(seen > 20, "only {seen} files were looked at");
}

/// `data` must stay free of tensors and devices, although it stands above them in the list.
#[test]
fn data_and_metrics_know_no_tensors() {
    for module in ["data", "metrics"] {
        let mut files = vec![];
        collect(&Path::new("src").join(module), &mut files);
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for forbidden in ["crate::tensor", "crate::device", "crate::ops"] {
                assert!(!text.contains(forbidden), "{} uses {forbidden}", file.display());
            }
        }
    }
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    let allowed = ["src/device/", "src/tensor.rs", "src/ops/", "src/data/map.rs"];
    let mut files = vec![];
    collect(Path::new("src"), &mut files);
    for file in files {
        let path = file.to_string_lossy().to_string();
        let text = fs::read_to_string(&file).unwrap();
        let opens = text.contains("allow(unsafe_code)");
        assert!(!opens || allowed.iter().any(|a| path.starts_with(a)), "{path} may not contain unsafe code");
    }
}

fn collect(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() { collect(&entry.path(), out) } else { out.push(entry.path()) }
    }
}
