//! Compiles CUDA kernels for a build script: one fatbin for each `.cu` of the folders in a [`Kernels`].
//!
//! nvcc is called directly and only when a kernel, a header, a flag or nvcc itself has changed: results are kept
//! under a hash of all of these in `target/kernel-cache`, which all profiles share. Without nvcc the table of kernels
//! is empty and the program runs on the CPU only.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::{env, fs, io, process, thread};

/// Part of every cache key: raise it when the layout of an entry or a rule that `parse_usage` checks changes.
const CACHE_FORMAT: u32 = 1;

/// The oldest nvcc that knows every flag below (`--compress-mode` came with 12.8).
const OLDEST_RELEASE: (u32, u32) = (12, 8);

/// Where scripts/get_nvcc.sh leaves nvcc, relative to the target directory.
const LOCAL_NVCC: &str = "nvcc/nvidia/cu13/bin/nvcc";

/// Flags of every compilation, before `-I` and the headers' folder. `-Xptxas -v` makes ptxas print the resources that `parse_usage` reads.
const FLAGS: &[&str] = &[
    "-fatbin",
    "-O3",
    "-std=c++17",
    "-lineinfo",
    "--expt-relaxed-constexpr",
    "--compress-mode=size",
    "-Xptxas",
    "-v",
    "-Werror",
    "all-warnings",
];

/// wgmma and TMA exist on Hopper only, and `sm_90a` code runs on nothing else.
pub const SM90_TARGETS: &[&str] = &["-gencode=arch=compute_90a,code=sm_90a"];

/// What a package compiles. Paths are relative to the package, which is where cargo runs a build script.
pub struct Kernels {
    /// Folder of `.cu` files, what comes before their names in the table, `-gencode` flags.
    pub folders: &'static [(&'static str, &'static str, &'static [&'static str])],
    /// Headers, with all folders inside.
    pub include: &'static str,
    /// What makes the build script run again.
    pub watched: &'static [&'static str],
}

/// Variables that change which nvcc is taken or what it does.
const VARIABLES: &[&str] = &[
    "NVCC",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_ROOT",
    "SDRRL_REQUIRE_NVCC",
    "NVCC_PREPEND_FLAGS",
    "NVCC_APPEND_FLAGS",
];

/// An nvcc that answered `--version`.
struct Nvcc {
    path: PathBuf,
    version: String,
}

/// One kernel file to compile.
struct Unit {
    /// Name in the table: `rmsnorm` or `sm90/gemm`.
    name: String,
    source: PathBuf,
    targets: &'static [&'static str],
}

/// What one compilation gives.
#[derive(Default)]
struct Compiled {
    fatbin: Vec<u8>,
    /// Lines `kernel arch registers smem stack spill`.
    usage: String,
}

/// A compiled unit, or the lines of what went wrong.
type Outcome = Result<Compiled, Vec<String>>;

/// Resources of one kernel on one architecture, as ptxas reports them.
#[derive(Default)]
struct Usage {
    kernel: String,
    arch: String,
    registers: u64,
    smem: u64,
    stack: u64,
    spill_stores: u64,
    spill_loads: u64,
}

/// Compiles all kernels and writes `fatbins.rs` (`FATBINS`, `NVCC_VERSION`, `KERNEL_USAGE`) into `out_dir`.
/// Ends the build script with readable errors when something fails.
pub fn compile(kernels: &Kernels, out_dir: &Path) {
    watch(kernels);
    println!("cargo::rustc-check-cfg=cfg(gpu_kernels)");
    let result = match find_nvcc(out_dir) {
        Ok(Some(nvcc)) => {
            // For tests that need the kernels in the program.
            println!("cargo::rustc-cfg=gpu_kernels");
            compile_all(&nvcc, kernels, out_dir)
        }
        Ok(None) => without_nvcc(out_dir),
        Err(error) => Err(vec![error]),
    };
    if let Err(errors) = result {
        for line in errors.iter().flat_map(|error| error.lines()).filter(|line| !line.trim().is_empty()) {
            println!("cargo::error={line}");
        }
        process::exit(1);
    }
}

/// Tells cargo when to run the build script again. Only paths that exist are named: a missing one would make it
/// run every time.
fn watch(kernels: &Kernels) {
    for path in kernels.watched.iter().filter(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
    for variable in VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
}

/// The value of an environment variable, where an empty one counts as not set.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

// ---------------------------------------------------------------------------------------------- finding nvcc

/// Looks for nvcc: `NVCC`, the CUDA home variables, PATH, the usual folder, and the one of scripts/get_nvcc.sh.
/// Only a `NVCC` that cannot be used is an error: the other places may hold anything.
fn find_nvcc(out_dir: &Path) -> Result<Option<Nvcc>, String> {
    if let Some(value) = variable("NVCC") {
        let path = if value.contains('/') { Some(PathBuf::from(&value)) } else { on_path(&value) };
        let path = path.ok_or_else(|| format!("NVCC={value}: there is no such program on PATH"))?;
        return probe(&path).map(Some).map_err(|error| format!("NVCC={value}: {error}"));
    }
    let homes = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(variable);
    let mut candidates: Vec<PathBuf> = homes.map(|home| Path::new(&home).join("bin/nvcc")).collect();
    candidates.extend(on_path("nvcc"));
    candidates.push("/usr/local/cuda/bin/nvcc".into());
    candidates.push(target_dir(out_dir).join(LOCAL_NVCC));
    // The script's default folder also where cargo builds into another target directory.
    candidates.push(Path::new("target").join(LOCAL_NVCC));
    for path in candidates.iter().filter(|path| path.is_file()) {
        match probe(path) {
            Ok(nvcc) => return Ok(Some(nvcc)),
            Err(error) => println!("cargo::warning=not using {}: {error}", path.display()),
        }
    }
    Ok(None)
}

/// The first file of this name in the folders of PATH.
fn on_path(program: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Asks an nvcc for its version. The path is resolved first: through a symbolic link nvcc does not find its headers.
fn probe(path: &Path) -> Result<Nvcc, String> {
    let path = path.canonicalize().map_err(|error| error.to_string())?;
    let output =
        Command::new(&path).arg("--version").output().map_err(|error| format!("cannot be run: {error}"))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_string();
    if !output.status.success() || !version.contains("Cuda compilation tools") {
        return Err("does not answer --version as nvcc does".into());
    }
    let release =
        release(&version).ok_or_else(|| format!("its release is not to be found in {version:?}"))?;
    if release < OLDEST_RELEASE {
        let (major, minor) = OLDEST_RELEASE;
        return Err(format!(
            "release {}.{} is too old, {major}.{minor} or newer is needed",
            release.0, release.1
        ));
    }
    Ok(Nvcc { path, version })
}

/// `(13, 0)` from `... release 13.0, V13.0.88 ...`.
fn release(version: &str) -> Option<(u32, u32)> {
    let (_, rest) = version.split_once("release ")?;
    let (major, minor) = rest.split(',').next()?.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The target directory around OUT_DIR: the ancestor with cargo's tag file, however deep the profile lies. Where the
/// directory was there before cargo there is no tag; then OUT_DIR is taken as `target/profile/build/package/out`.
fn target_dir(out_dir: &Path) -> PathBuf {
    let tagged = out_dir.ancestors().take(7).find(|folder| folder.join("CACHEDIR.TAG").is_file());
    tagged.or(out_dir.ancestors().nth(4)).unwrap_or(out_dir).to_path_buf()
}

// ------------------------------------------------------------------------------------------------- compiling

/// An empty table, so that the program still builds and says at run time that it has no kernels.
fn without_nvcc(out_dir: &Path) -> Result<(), Vec<String>> {
    if variable("SDRRL_REQUIRE_NVCC").is_some_and(|value| value == "1") {
        return Err(vec![
            "SDRRL_REQUIRE_NVCC=1, but no nvcc was found: run scripts/get_nvcc.sh or set NVCC".into(),
        ]);
    }
    // Said where a GPU is asked for: by `--device cuda` and `sdrrl doctor`.
    write_table(out_dir, "", &[]).map_err(|error| vec![error])
}

/// Compiles every unit, also after a failure, so that one build shows all errors.
fn compile_all(nvcc: &Nvcc, kernels: &Kernels, out_dir: &Path) -> Result<(), Vec<String>> {
    let prepare = || -> Result<(Vec<Unit>, Fnv, PathBuf), String> {
        let cache = target_dir(out_dir).join("kernel-cache");
        let results = kernels.folders.iter().map(|(_, prefix, _)| out_dir.join("kernels").join(prefix));
        for folder in results.chain([cache.clone()]) {
            fs::create_dir_all(&folder)
                .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        }
        Ok((units(kernels)?, common_key(nvcc, kernels)?, cache))
    };
    let (units, key, cache) = prepare().map_err(|error| vec![error])?;
    // Another nvcc in the same place may be another version.
    println!("cargo::rerun-if-changed={}", nvcc.path.display());

    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, Outcome)>> = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs().min(units.len()) {
            scope.spawn(|| {
                while let Some((index, unit)) = take(&next, &units) {
                    let result = compile_unit(nvcc, unit, kernels.include, key.clone(), &cache, out_dir);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);

    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    for (index, result) in results {
        match result {
            Ok(compiled) => rows.push((units[index].name.as_str(), compiled.usage)),
            Err(lines) => errors.extend(lines),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    write_table(out_dir, &nvcc.version, &rows).map_err(|error| vec![error])
}

/// The next unit that no thread has taken yet.
fn take<'a>(next: &AtomicUsize, units: &'a [Unit]) -> Option<(usize, &'a Unit)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    units.get(index).map(|unit| (index, unit))
}

/// How many nvcc processes may run at once: what cargo was allowed, else one for each core.
fn jobs() -> usize {
    let allowed = variable("NUM_JOBS").and_then(|jobs| jobs.parse().ok()).filter(|jobs| *jobs > 0);
    allowed.unwrap_or_else(|| thread::available_parallelism().map_or(1, |cores| cores.get()))
}

/// All kernel files in order of name. Other folders inside (the emulator's) are not looked into.
fn units(kernels: &Kernels) -> Result<Vec<Unit>, String> {
    let mut units = Vec::new();
    for &(folder, prefix, targets) in kernels.folders {
        for source in files(Path::new(folder), |path| path.extension() == Some(OsStr::new("cu")))? {
            let stem = source.file_stem().and_then(OsStr::to_str);
            let stem = stem.ok_or_else(|| format!("{}: the name is not UTF-8", source.display()))?;
            units.push(Unit { name: format!("{prefix}{stem}"), source, targets });
        }
    }
    Ok(units)
}

/// The plain files of a folder that pass a test, sorted. A missing folder has none.
fn files(folder: &Path, keep: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>, String> {
    let say = |error: io::Error| format!("cannot list {}: {error}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(say)?,
    };
    let paths: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(say)?;
    let mut paths: Vec<PathBuf> = paths.into_iter().filter(|path| path.is_file() && keep(path)).collect();
    paths.sort();
    Ok(paths)
}

/// Brings one unit's fatbin and usage into `out_dir/kernels`, from the cache or from nvcc.
fn compile_unit(
    nvcc: &Nvcc,
    unit: &Unit,
    include: &str,
    mut key: Fnv,
    cache: &Path,
    out_dir: &Path,
) -> Outcome {
    let one = |error: String| vec![error];
    key.add_file(&unit.source).map_err(one)?;
    unit.targets.iter().for_each(|target| key.add(target.as_bytes()));
    let entry = cache.join(format!("{}-{:032x}", unit.name.replace('/', "-"), key.0));
    let fatbin = out_dir.join(format!("kernels/{}.fatbin", unit.name));
    let compiled = match read_entry(&entry) {
        Some(compiled) => compiled,
        None => {
            let compiled = run_nvcc(nvcc, unit, include, &fatbin.with_extension("new"))?;
            write_entry(&entry, &compiled).map_err(one)?;
            compiled
        }
    };
    write_file(&fatbin, &compiled.fatbin).map_err(one)?;
    write_file(&fatbin.with_extension("usage"), compiled.usage.as_bytes()).map_err(one)?;
    Ok(compiled)
}

/// Runs nvcc on one file. Spills and local memory are errors: they cost more than any tuning brings, and go
/// unnoticed otherwise.
fn run_nvcc(nvcc: &Nvcc, unit: &Unit, include: &str, into: &Path) -> Outcome {
    let source = unit.source.display();
    let mut command = Command::new(&nvcc.path);
    command.args(FLAGS).args(["-I", include]).args(unit.targets).arg("-o").arg(into).arg(&unit.source);
    let output =
        command.output().map_err(|error| vec![format!("cannot run {}: {error}", nvcc.path.display())])?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    if !output.status.success() {
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        lines.push(format!("nvcc failed on {source} ({})", output.status));
        return Err(lines);
    }
    let kernels = parse_usage(&text).map_err(|problems| {
        problems.into_iter().map(|problem| format!("{source}: {problem}")).collect::<Vec<String>>()
    })?;
    let fatbin = fs::read(into).map_err(|error| vec![format!("nvcc left no {}: {error}", into.display())])?;
    // Only scratch: a file that stays behind is written over by the next run.
    let _ = fs::remove_file(into);
    let usage = kernels.iter().map(|kernel| format!("{}\n", usage_line(kernel))).collect();
    Ok(Compiled { fatbin, usage })
}

// -------------------------------------------------------------------------------------------- resource usage

/// `kernel arch registers smem stack spill`; spill is the sum of stores and loads.
fn usage_line(usage: &Usage) -> String {
    let Usage { kernel, arch, registers, smem, stack, spill_stores, spill_loads } = usage;
    format!("{kernel} {arch} {registers} {smem} {stack} {}", spill_stores + spill_loads)
}

/// Reads what `ptxas -v` says about each kernel:
/// ```text
/// ptxas info    : Compiling entry function 'rmsnorm_fwd' for 'sm_80'
/// ptxas info    : Function properties for rmsnorm_fwd
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 30 registers, used 1 barriers, 128 bytes smem, 392 bytes cmem[0]
/// ```
/// A device function that was not inlined has properties of its own, without an entry line, and the same rule.
/// Text without any kernel is an error as well: if ptxas ever words this differently, the check must not pass unseen.
fn parse_usage(text: &str) -> Result<Vec<Usage>, Vec<String>> {
    let (mut kernels, mut problems) = (Vec::<Usage>::new(), Vec::new());
    let mut function = String::new();
    let (mut seen_properties, mut seen_registers) = (0, 0);
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut quoted = rest.split('\'');
            let (kernel, arch) = (quoted.next().unwrap_or_default(), quoted.nth(1).unwrap_or_default());
            kernels.push(Usage { kernel: kernel.into(), arch: arch.into(), ..Usage::default() });
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            function = name.trim().to_string();
        } else if line.contains("bytes stack frame") {
            let Some(kernel) = kernels.last_mut() else { continue };
            let numbers = ["stack frame", "spill stores", "spill loads"].map(|what| bytes(line, what));
            let [Some(stack), Some(stores), Some(loads)] = numbers else { continue };
            if function == kernel.kernel {
                (kernel.stack, kernel.spill_stores, kernel.spill_loads) = (stack, stores, loads);
                seen_properties += 1;
            }
            if stack + stores + loads > 0 {
                let arch = &kernel.arch;
                problems.push(format!(
                    "{function} for {arch} uses local memory: {stack} bytes stack frame, {stores} bytes spill stores, \
                     {loads} bytes spill loads"
                ));
            }
        } else if let (Some((_, rest)), Some(kernel)) = (line.split_once(": Used "), kernels.last_mut()) {
            kernel.registers =
                rest.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or_default();
            kernel.smem = bytes(line, "smem").unwrap_or(0);
            seen_registers += usize::from(kernel.registers > 0);
        }
    }
    if kernels.is_empty() || seen_properties != kernels.len() || seen_registers != kernels.len() {
        let unknown =
            "ptxas did not report the resources of every kernel: is there none, or has its output changed?";
        problems.push(unknown.into());
    }
    if problems.is_empty() { Ok(kernels) } else { Err(problems) }
}

/// The number before ` bytes WHAT` in a line of ptxas.
fn bytes(line: &str, what: &str) -> Option<u64> {
    let part = line
        .split(',')
        .find_map(|part| part.trim_end().strip_suffix(what)?.trim_end().strip_suffix("bytes"))?;
    part.split_whitespace().next_back()?.parse().ok()
}

// ----------------------------------------------------------------------------------------------------- cache

/// FNV-1a of 128 bits: unlike the standard library's hasher it gives the same value under every compiler.
#[derive(Clone)]
struct Fnv(u128);

impl Fnv {
    fn new() -> Self {
        Fnv(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    /// Adds a piece and its length, so that moving a byte from one piece to the next changes the hash.
    fn add(&mut self, piece: &[u8]) {
        for byte in piece.iter().chain(&(piece.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }

    /// Adds a file's path, which -lineinfo puts into the fatbin, and its content.
    fn add_file(&mut self, path: &Path) -> Result<(), String> {
        let content = fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        self.add(path.as_os_str().as_encoded_bytes());
        self.add(&content);
        Ok(())
    }
}

/// The part of the key that all units share: compiler, flags and every file that a kernel may include.
fn common_key(nvcc: &Nvcc, kernels: &Kernels) -> Result<Fnv, String> {
    let mut key = Fnv::new();
    key.add(&CACHE_FORMAT.to_le_bytes());
    key.add(nvcc.version.as_bytes());
    FLAGS.iter().chain(&["-I", kernels.include]).for_each(|flag| key.add(flag.as_bytes()));
    for name in ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"] {
        key.add(variable(name).unwrap_or_default().as_bytes());
    }
    let mut folders: Vec<PathBuf> = kernels.folders.iter().map(|(folder, _, _)| folder.into()).collect();
    add_folders(Path::new(kernels.include), &mut folders)?;
    for folder in folders {
        for header in files(&folder, |path| path.extension() != Some(OsStr::new("cu")))? {
            key.add_file(&header)?;
        }
    }
    Ok(key)
}

/// Adds a folder and all folders in it, in order of name; nothing where it is missing.
fn add_folders(folder: &Path, into: &mut Vec<PathBuf>) -> Result<(), String> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    into.push(folder.to_path_buf());
    let mut inner: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    inner.sort();
    inner.iter().try_for_each(|path| add_folders(path, into))
}

/// An entry is one file: a line with the hash and the length of the usage text, then that text, then the fatbin.
fn write_entry(path: &Path, compiled: &Compiled) -> Result<(), String> {
    let mut entry =
        format!("{:032x} {}\n", entry_hash(&compiled.usage, &compiled.fatbin), compiled.usage.len())
            .into_bytes();
    entry.extend(compiled.usage.as_bytes());
    entry.extend(&compiled.fatbin);
    write_file(path, &entry)
}

/// Reads an entry; one that is missing, cut off or damaged counts as absent and is compiled again.
fn read_entry(path: &Path) -> Option<Compiled> {
    let entry = fs::read(path).ok()?;
    let end = entry.iter().position(|byte| *byte == b'\n')?;
    let (hash, length) = std::str::from_utf8(&entry[..end]).ok()?.split_once(' ')?;
    let (usage, fatbin) = entry[end + 1..].split_at_checked(length.parse().ok()?)?;
    let usage = std::str::from_utf8(usage).ok()?.to_string();
    (u128::from_str_radix(hash, 16).ok()? == entry_hash(&usage, fatbin))
        .then(|| Compiled { fatbin: fatbin.to_vec(), usage })
}

/// The hash that tells a whole entry from a damaged one.
fn entry_hash(usage: &str, fatbin: &[u8]) -> u128 {
    let mut hash = Fnv::new();
    hash.add(usage.as_bytes());
    hash.add(fatbin);
    hash.0
}

/// Writes a file under another name and renames it, so that nobody ever reads half of it. An equal file stays as it is.
fn write_file(path: &Path, content: &[u8]) -> Result<(), String> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", process::id()));
    let written = fs::write(&name, content).and_then(|()| fs::rename(&name, path));
    written.map_err(|error| format!("cannot write {}: {error}", path.display()))
}

// ----------------------------------------------------------------------------------------------------- table

/// Writes the Rust source that embeds the fatbins.
fn write_table(out_dir: &Path, version: &str, rows: &[(&str, String)]) -> Result<(), String> {
    // The driver reads words of 8 bytes from an image, which a plain `include_bytes!` may put anywhere.
    let mut table = String::new();
    if !rows.is_empty() {
        table.push_str("#[repr(C, align(16))]\nstruct Aligned<T>(T);\n");
    }
    let (mut list, mut usage) = (String::new(), String::new());
    for (i, (name, lines)) in rows.iter().enumerate() {
        let path = out_dir.join(format!("kernels/{name}.fatbin"));
        let path = path.to_str().ok_or_else(|| format!("{}: the path is not UTF-8", path.display()))?;
        // Writing into a String cannot fail.
        let _ = writeln!(
            table,
            "static F{i}: Aligned<[u8; include_bytes!({path:?}).len()]> = Aligned(*include_bytes!({path:?}));"
        );
        let _ = writeln!(list, "    ({name:?}, &F{i}.0),");
        usage.push_str(lines);
    }
    let _ = writeln!(
        table,
        "/// Compiled kernel files by name.\npub static FATBINS: &[(&str, &[u8])] = &[\n{list}];"
    );
    let _ = writeln!(table, "/// What `nvcc --version` printed; empty if no kernels were compiled.");
    let _ = writeln!(table, "pub const NVCC_VERSION: &str = {version:?};");
    let _ = writeln!(table, "/// Lines `kernel arch registers smem stack spill` of all kernels.");
    let _ = writeln!(table, "pub const KERNEL_USAGE: &str = {usage:?};");
    write_file(&out_dir.join("fatbins.rs"), table.as_bytes())
}
