//! From declarations to Rust.
use std::{collections::BTreeMap, fmt::Write as _};

use super::{Element, Error, Kernel, Kind, Parameter, Place, Source};

/// Kernels that one launch function stands for: variants of element types, told apart by the tensors that it is called with.
struct Function<'a> {
    unit: &'a str,
    name: String,
    variants: Vec<&'a Kernel>,
}

/// A kernel's name without the element types behind it: `cast_f32_bf16` is a `cast`.
fn base(mut name: &str) -> &str {
    while let Some(rest) = ["_f32", "_bf16"].iter().find_map(|suffix| name.strip_suffix(suffix)) {
        name = rest;
    }
    name
}

/// The element types that a variant may differ in from the others.
fn floats(kernel: &Kernel) -> Vec<Element> {
    let float = |p: &Parameter| match p.kind {
        Kind::Pointer { element: element @ (Element::F32 | Element::Bf16), .. } => Some(element),
        _ => None,
    };
    kernel.parameters.iter().filter_map(float).collect()
}

/// True if two parameters are the same but for F32 or Bf16.
fn alike(a: &Parameter, b: &Parameter) -> bool {
    let general = |kind: Kind| match kind {
        Kind::Pointer { element: Element::Bf16, written, optional } => {
            Kind::Pointer { element: Element::F32, written, optional }
        }
        other => other,
    };
    a.name == b.name && general(a.kind) == general(b.kind)
}

/// The functions of a file: kernels of one base and of different element types become one function, all others one each.
fn functions(source: &Source) -> Result<Vec<Function<'_>>, Error> {
    let mut groups: BTreeMap<&str, Vec<&Kernel>> = BTreeMap::new();
    for kernel in &source.kernels {
        groups.entry(base(&kernel.name)).or_default().push(kernel);
    }
    let mut found = vec![];
    for (base, kernels) in groups {
        let first = kernels[0];
        for other in &kernels[1..] {
            if first.tiled != other.tiled {
                let (one, two) = (&first.name, &other.name);
                return other.place.error(format!("of {one} and {two}, one has a TILE: give it to both"));
            }
            let same = first.parameters.len() == other.parameters.len();
            if !same || !first.parameters.iter().zip(&other.parameters).all(|(a, b)| alike(a, b)) {
                let what = format!(
                    "the parameters of {} and {} may differ in float and bf16 only",
                    first.name, other.name
                );
                return other.place.error(what);
            }
        }
        let mut types: Vec<_> = kernels.iter().map(|k| floats(k)).collect();
        types.sort();
        types.dedup();
        let unit = source.unit.as_str();
        if kernels.len() > 1 && types.len() == kernels.len() {
            found.push(Function { unit, name: base.into(), variants: kernels });
        } else {
            found.extend(kernels.into_iter().map(|k| Function {
                unit,
                name: k.name.clone(),
                variants: vec![k],
            }));
        }
    }
    Ok(found)
}

/// The launch functions of all files, and a function for each exported constant: what `src/ops/kernels.rs` includes.
pub fn generate(sources: &[Source]) -> Result<String, Error> {
    let (mut out, mut symbols) = (String::new(), String::new());
    let mut names: BTreeMap<String, &Place> = BTreeMap::new();
    for source in sources {
        for function in functions(source)? {
            let place = &function.variants[0].place;
            claim(&mut names, &function.name, place)?;
            write_function(&mut out, &function);
        }
        for kernel in &source.kernels {
            let _ = writeln!(symbols, "        pub(super) safe static sdrrl_threads_{}: u32;", kernel.name);
            if kernel.shared {
                let _ =
                    writeln!(symbols, "        pub(super) safe static sdrrl_shared_{}: u32;", kernel.name);
            }
            for side in ["x", "y"].iter().filter(|_| kernel.tiled) {
                let name = &kernel.name;
                let _ = writeln!(symbols, "        pub(super) safe static sdrrl_tile_{side}_{name}: u32;");
            }
        }
        for (place, name) in &source.constants {
            claim(&mut names, name, place)?;
            let _ = writeln!(symbols, "        pub(super) safe static sdrrl_constant_{name}: u32;");
            let _ = writeln!(
                out,
                "/// EXPORT_CONSTANT of kernels/{}.cu.\npub(crate) fn {name}() -> usize {{\n    symbols::sdrrl_constant_{name} as usize\n}}",
                source.unit
            );
        }
    }
    let head = "// Made by build/bindings.\n";
    Ok(format!(
        "{head}// What is unused is a function below.\n#[allow(non_upper_case_globals, dead_code)]\nmod symbols {{\n    // SAFETY: constants of the kernels' host objects.\n    unsafe extern \"C\" {{\n{symbols}    }}\n}}\n{out}"
    ))
}

fn claim<'a>(names: &mut BTreeMap<String, &'a Place>, name: &str, place: &'a Place) -> Result<(), Error> {
    match names.insert(name.into(), place) {
        Some(other) => place.error(format!("{name} is also declared in {}:{}", other.file, other.line)),
        None => Ok(()),
    }
}

/// The Rust type of a parameter, and how it is handed on.
fn rust(p: &Parameter) -> (&'static str, String) {
    let name = &p.name;
    match p.kind {
        Kind::Pointer { written: true, optional: false, .. } => {
            ("&mut Tensor", format!("Value::Tensor(Some({name}))"))
        }
        Kind::Pointer { written: false, optional: false, .. } => {
            ("&Tensor", format!("Value::Tensor(Some({name}))"))
        }
        Kind::Pointer { written: true, optional: true, .. } => {
            ("Option<&mut Tensor>", format!("Value::Tensor({name}.as_deref())"))
        }
        Kind::Pointer { written: false, optional: true, .. } => {
            ("Option<&Tensor>", format!("Value::Tensor({name})"))
        }
        Kind::Int => ("usize", format!("Value::Int({name})")),
        Kind::U32 => ("u32", format!("Value::U32({name})")),
        Kind::U64 => ("u64", format!("Value::U64({name})")),
        Kind::F32 => ("f32", format!("Value::F32({name})")),
        Kind::Map => ("&TileMap", format!("Value::Map({name})")),
    }
}

fn write_function(out: &mut String, function: &Function) {
    let (unit, name, first) = (function.unit, &function.name, function.variants[0]);
    let mut text = format!("/// Launches a kernel of kernels/{unit}.cu, line {}.\n///\n", first.place.line);
    text += "/// # Safety\n/// Grid and sizes keep the kernel inside its tensors.\n";
    let _ = write!(text, "pub(crate) unsafe fn {name}(gpu: &Gpu, grid: Grid");
    for p in &first.parameters {
        let _ = write!(text, ", {}: {}", p.name, rust(p).0);
    }
    let _ = writeln!(
        text,
        ") -> Result<()> {{\n    static BINDING: Binding = Binding {{ file: {unit:?}, name: {name:?}, variants: &["
    );
    for kernel in &function.variants {
        let own = &kernel.name;
        let takes: Vec<&str> = kernel.parameters.iter().map(|p| takes(p.kind)).collect();
        let shared =
            if kernel.shared { format!("Some(&symbols::sdrrl_shared_{own})") } else { "None".into() };
        let tile = match kernel.tiled {
            true => format!("Some([&symbols::sdrrl_tile_x_{own}, &symbols::sdrrl_tile_y_{own}])"),
            false => "None".into(),
        };
        let _ = writeln!(
            text,
            "        Variant {{ kernel: {own:?}, takes: &[{}], threads: &symbols::sdrrl_threads_{own}, shared: {shared}, tile: {tile} }},",
            takes.join(", ")
        );
    }
    let values: Vec<String> =
        first.parameters.iter().map(|p| format!("({:?}, {})", p.name, rust(p).1)).collect();
    let _ = writeln!(
        text,
        "    ] }};\n    // SAFETY: the parameters are the source's; the rest is the caller's promise."
    );
    let _ = writeln!(text, "    unsafe {{ BINDING.launch(gpu, grid, &[{}]) }}\n}}", values.join(", "));
    *out += &text;
}

/// The element type that a parameter insists on.
fn takes(kind: Kind) -> &'static str {
    match kind {
        Kind::Pointer { element: Element::F32, .. } => "Some(DType::F32)",
        Kind::Pointer { element: Element::Bf16, .. } => "Some(DType::Bf16)",
        Kind::Pointer { element: Element::Words, .. } => "Some(DType::U32)",
        _ => "None",
    }
}
