//! Compiles the CUDA kernels for the host, against the emulation of the CUDA execution model.
use std::path::{Path, PathBuf};

/// Compiles `files` into one library that is linked whole: kernels register themselves before `main`. Needs the emulator's headers, whose
/// place cargo passes on.
pub fn compile(library: &str, files: &[PathBuf], include: &Path, out: &Path) {
    let Ok(emulator) = std::env::var("DEP_SDRRL_EMULATOR_INCLUDE") else {
        println!("cargo::error=the emulator crate did not say where its headers are");
        return;
    };
    // -fsanitize=thread makes the compiler call a hook before each memory access; the emulator defines the hooks.
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(1)
        .debug(false)
        .flag("-xc++")
        .flag("-fno-strict-aliasing")
        // As on the device, where kernels that must not fuse say so: the host's bits do not depend on its instructions.
        .flag("-ffp-contract=off")
        .flag("-Wno-psabi")
        .flag("-Wno-unknown-pragmas")
        .flag("-fsanitize=thread")
        .flag_if_supported("--param=tsan-instrument-func-entry-exit=0")
        .include(include)
        .include(emulator)
        .files(files)
        .cargo_metadata(false)
        .compile(library);
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static:+whole-archive={library}");
    println!("cargo::rustc-link-lib=stdc++");
}

/// The `.cu` files of a folder and of its `sm90`, sorted.
pub fn kernels(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = [folder.to_path_buf(), folder.join("sm90")]
        .iter()
        .filter_map(|f| std::fs::read_dir(f).ok())
        .flat_map(|entries| entries.flatten().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|x| x == "cu"))
        .collect();
    found.sort();
    found
}
