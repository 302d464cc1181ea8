use super::*;

/// A file as the preprocessor leaves it: the text begins at line 10 of kernels/x.cu.
fn read(text: &str) -> Result<Source, Error> {
    parse(
        "x",
        &format!(
            "# 1 \"kernels/x.cu\"\n# 1 \"kernels/include/prelude.cuh\" 1\nstruct Unused;\n# 10 \"kernels/x.cu\" 2\n{text}"
        ),
    )
}

/// A kernel with these parameters and its export.
fn kernel(name: &str, parameters: &str) -> String {
    format!("sdrrl_kernel {name} (256)({parameters}) {{ if (x) {{ y(); }} }}\nsdrrl_export {name} (256)\n")
}

fn written(text: &str) -> String {
    generate(&[read(text).unwrap()]).unwrap()
}

/// The error's text.
#[track_caller]
fn refused(text: &str) -> String {
    match read(text).and_then(|source| generate(&[source])) {
        Ok(text) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn parameters_have_rust_types_by_their_c_types() {
    let list = "float* out, const __nv_bfloat16* a, const bf16 *b, const unsigned* ids, const int* map, void* any, const Entry* table, \
                int n, unsigned u, unsigned long long m, u64 v, float eps, const __grid_constant__ TensorMap tiles, float* sdrrl_optional sums, \
                const float* __restrict__ sdrrl_optional bias";
    let text = written(&format!("struct Entry {{ int x; }};\n{}", kernel("k", list)));
    let signature = "pub(crate) unsafe fn k(gpu: &Gpu, grid: Grid, out: &mut Tensor, a: &Tensor, b: &Tensor, ids: &Tensor, map: &Tensor, \
                     any: &mut Tensor, table: &Tensor, n: usize, u: u32, m: u64, v: u64, eps: f32, tiles: &TileMap, sums: Option<&mut Tensor>, \
                     bias: Option<&Tensor>) -> Result<()>";
    assert!(text.contains(signature), "{text}");
    let types = "takes: &[Some(DType::F32), Some(DType::Bf16), Some(DType::Bf16), Some(DType::U32), Some(DType::U32), None, \
                 Some(DType::U32), None, None, None, None, None, None, Some(DType::F32), Some(DType::F32)]";
    assert!(text.contains(types), "{text}");
    for value in [
        "(\"sums\", Value::Tensor(sums.as_deref()))",
        "(\"n\", Value::Int(n))",
        "(\"tiles\", Value::Map(tiles))",
    ] {
        assert!(text.contains(value), "{value} is not in {text}");
    }
}

#[test]
fn what_has_no_rust_type_is_refused_with_file_and_line() {
    for (parameter, part) in [
        ("double x", "no Rust type is known for `double x`"),
        ("const Row* rows", "no Rust type is known for `const Row * rows`"),
        ("float** x", "no Rust type is known"),
        ("float* const x", "`const` is not understood"),
        ("float& x", "`&` is not understood"),
        ("float", "is not a type and a name"),
        ("int type", "is not a type and a name"),
        ("TensorMap map", "no Rust type is known"),
        ("int sdrrl_optional n", "can be neither OPTIONAL"),
    ] {
        let error = refused(&format!("\n{}", kernel("k", &format!("int n0, {parameter}"))));
        assert!(
            error.starts_with("kernels/x.cu:11: k, parameter 2: ") && error.contains(part),
            "{parameter}: {error}"
        );
    }
    assert_eq!(refused(&kernel("k", "int n, float n")), "kernels/x.cu:10: k: two parameters are called n");
}

#[test]
fn variants_of_element_types_become_one_function() {
    let text = written(
        &(kernel("norm_f32", "float* out, const float* w")
            + &kernel("norm_bf16", "bf16* out, const float* w")),
    );
    assert!(text.contains("fn norm(gpu: &Gpu, grid: Grid, out: &mut Tensor, w: &Tensor)"), "{text}");
    for (name, out) in [("norm_f32", "F32"), ("norm_bf16", "Bf16")] {
        let variant = format!(
            "Variant {{ kernel: \"{name}\", takes: &[Some(DType::{out}), Some(DType::F32)], threads: &symbols::sdrrl_threads_{name}, shared: None, tile: None }}"
        );
        assert!(text.contains(&variant), "{variant} is not in {text}");
    }
    // Pairs of types.
    let pairs = [
        ("cast_f32_f32", "float", "float"),
        ("cast_f32_bf16", "bf16", "float"),
        ("cast_bf16_f32", "float", "bf16"),
    ];
    let text = written(
        &pairs.map(|(name, out, inp)| kernel(name, &format!("{out}* out, const {inp}* inp"))).concat(),
    );
    assert!(text.matches("Variant {").count() == 3 && text.matches("unsafe fn").count() == 1, "{text}");
    // Types do not tell these apart, and a single one has no variants.
    let text = written(
        &(kernel("few_f32", "void* out")
            + &kernel("few_f32_bf16", "void* out")
            + &kernel("one_f32", "float* out")),
    );
    for name in ["fn few_f32(", "fn few_f32_bf16(", "fn one_f32("] {
        assert!(text.contains(name), "{name} is not in {text}");
    }
}

#[test]
fn variants_with_other_parameters_are_refused() {
    for other in [
        "bf16* out, int rows",
        "bf16* out",
        "bf16* out, const int* cols",
        "const bf16* out, int cols",
        "bf16* out, int cols, int rows",
    ] {
        let error = refused(&(kernel("norm_f32", "float* out, int cols") + &kernel("norm_bf16", other)));
        assert_eq!(
            error,
            "kernels/x.cu:12: the parameters of norm_f32 and norm_bf16 may differ in float and bf16 only",
            "{other}"
        );
    }
}

#[test]
fn a_kernel_is_exported_once_with_its_own_threads() {
    let alone = "sdrrl_kernel k (32 * WARPS)(int n) {}\n";
    assert_eq!(refused(alone), "kernels/x.cu:10: there is no EXPORT_KERNEL(k, 32 * WARPS)");
    let other = format!("{alone}sdrrl_export k (256)\n");
    assert_eq!(
        refused(&other),
        "kernels/x.cu:11: k has 32 * WARPS threads in KERNEL and 256 in EXPORT_KERNEL"
    );
    let twice = kernel("k", "int n") + "sdrrl_export k (256)\n";
    assert_eq!(refused(&twice), "kernels/x.cu:10: there is more than one EXPORT_KERNEL(k, ..)");
    assert_eq!(refused("sdrrl_export k (256)\n"), "kernels/x.cu:10: there is no KERNEL k in this file");
    assert_eq!(refused("sdrrl_shared k\n"), "kernels/x.cu:10: there is no KERNEL k in this file");
}

#[test]
fn dynamic_shared_memory_has_a_size_in_the_source() {
    let dynamic = |size: &str| {
        format!("sdrrl_kernel k (32)(int n) {{ {{ sdrrl_dynamic; }} }}\nsdrrl_export k (32)\n{size}")
    };
    let text = written(&dynamic("sdrrl_shared k\n"));
    assert!(
        text.contains("shared: Some(&symbols::sdrrl_shared_k)")
            && text.contains("safe static sdrrl_shared_k: u32"),
        "{text}"
    );
    assert!(refused(&dynamic("")).contains("say how much with SHARED_BYTES(k, bytes)"));
    assert!(
        refused(&dynamic("sdrrl_shared k\nsdrrl_shared k\n")).contains("more than one SHARED_BYTES(k, ..)")
    );
    assert!(
        refused(&(kernel("k", "int n") + "sdrrl_shared k\n"))
            .contains("k has SHARED_BYTES but no DYNAMIC_SHARED")
    );
    assert_eq!(
        refused("void helper() { sdrrl_dynamic; }"),
        "kernels/x.cu:10: DYNAMIC_SHARED outside of a KERNEL"
    );
}

#[test]
fn a_tile_belongs_to_one_kernel_and_to_all_its_variants() {
    let pair = kernel("norm_f32", "float* out") + &kernel("norm_bf16", "bf16* out");
    let text = written(&(pair.clone() + "sdrrl_tile norm_f32\nsdrrl_tile norm_bf16\n"));
    let tile = "tile: Some([&symbols::sdrrl_tile_x_norm_bf16, &symbols::sdrrl_tile_y_norm_bf16])";
    assert!(text.contains(tile) && text.contains("safe static sdrrl_tile_y_norm_f32: u32"), "{text}");
    let one = kernel("k", "int n") + "sdrrl_tile k\n";
    assert!(refused(&(one.clone() + "sdrrl_tile k\n")).contains("there is more than one TILE(k, ..)"));
    assert_eq!(
        refused(&(one + "sdrrl_tile other\n")),
        "kernels/x.cu:13: there is no KERNEL other in this file"
    );
    assert_eq!(
        refused(&(pair + "sdrrl_tile norm_f32\n")),
        "kernels/x.cu:12: of norm_f32 and norm_bf16, one has a TILE: give it to both"
    );
    assert!(refused("sdrrl_tile").contains("there is no name behind `sdrrl_tile`"));
}

#[test]
fn constants_become_functions_and_names_are_taken_once() {
    let text = written("sdrrl_constant rows_of_block\n");
    assert!(
        text.contains("pub(crate) fn rows_of_block() -> usize")
            && text.contains("static sdrrl_constant_rows_of_block: u32"),
        "{text}"
    );
    let error = refused(&(kernel("k", "int n") + "sdrrl_constant k\n"));
    assert_eq!(error, "kernels/x.cu:12: k is also declared in kernels/x.cu:10");
    let twice = [read(&kernel("k", "int n")).unwrap(), read(&kernel("k", "int n")).unwrap()];
    assert!(generate(&twice).unwrap_err().to_string().contains("also declared"));
}

#[test]
fn text_that_ends_early_is_refused_and_not_read_past() {
    let whole = kernel("k", "float* out, int n");
    let declared = whole.find("sdrrl_export").unwrap();
    for end in 1..declared - 2 {
        let Err(error) = read(&whole[..end]) else { continue };
        assert_eq!((error.file.as_str(), error.line), ("kernels/x.cu", 10), "{}", &whole[..end]);
    }
    assert!(refused("sdrrl_kernel").contains("there is no name behind `sdrrl_kernel`"));
    assert!(refused("sdrrl_kernel k (256)(int n").contains("the parameters of k does not end"));
    assert!(refused("sdrrl_kernel k int n").contains("the threads must begin with `(`"));
}
