//! PyTorch's checkpoints: values as torch wrote them (scripts/golden_pickle.py), refusals, and damaged files.
use std::{fs, path::Path};

use proptest::prelude::*;
use sdrrl::{
    models::weights::{pickle, safetensors::Checkpoint},
    tensor::DType,
};
use serde_json::Value;

const DIR: &str = "tests/golden/pickle";

#[test]
fn tensors_of_every_type_and_stride_are_read_as_torch_wrote_them() {
    let text = fs::read_to_string(format!("{DIR}/values.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    for (file, tensors) in golden["files"].as_object().unwrap() {
        let checkpoint = Checkpoint::open_file(&Path::new(DIR).join(file)).unwrap();
        for (name, want) in tensors.as_object().unwrap() {
            let dims: Vec<usize> =
                want["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
            let got = checkpoint.tensor(name, &dims, DType::F32).unwrap().to_f32_vec().unwrap();
            let want: Vec<f32> =
                want["values"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
            assert_eq!(got, want, "{file} {name}");
        }
    }
}

/// What the file holds in the wanted type is used where it stands: such a tensor cannot be written.
#[test]
fn contiguous_tensors_stay_in_the_mapped_file() {
    let checkpoint = Checkpoint::open_file(&Path::new(DIR).join("views.bin")).unwrap();
    for (name, dims, mapped) in
        [("f32", vec![6, 4], true), ("part", vec![3, 4], true), ("transposed", vec![4, 6], false)]
    {
        let mut t = checkpoint.tensor(name, &dims, DType::F32).unwrap();
        assert_eq!(t.write_f32(&[0.0; 24][..t.len()]).is_err(), mapped, "{name}");
    }
}

#[test]
fn other_globals_are_refused_by_name_and_old_files_are_explained() {
    let error = format!("{:#}", Checkpoint::open_file(&Path::new(DIR).join("evil.bin")).err().unwrap());
    assert!(error.contains("posix.system") && error.contains("evil.bin"), "{error}");
    assert!(!Path::new("executed").exists());
    let error = format!("{:#}", Checkpoint::open_file(&Path::new(DIR).join("legacy.bin")).err().unwrap());
    assert!(error.contains("saved again"), "{error}");
}

/// A zip64 archive, as PyTorch writes it above 4 GB: sizes and places only in the extra fields and the zip64 record.
#[test]
fn zip64_records_are_followed() {
    let small = fs::read(format!("{DIR}/module.bin")).unwrap();
    let end = small.windows(4).rposition(|w| w == b"PK\x05\x06").unwrap();
    let number = |at: usize, n: usize| small[at..at + n].iter().rev().fold(0u64, |v, &b| v << 8 | b as u64);
    let (count, directory) = (number(end + 10, 2), number(end + 16, 4) as usize);
    let mut wide = small[..directory].to_vec();
    let mut at = directory;
    for _ in 0..count {
        let [name, extra, comment] = [28, 30, 32].map(|o| number(at + o, 2) as usize);
        let mut head = small[at..at + 46].to_vec();
        for o in [20, 24, 42] {
            head[o..o + 4].fill(0xff);
        }
        head[30..32].copy_from_slice(&28u16.to_le_bytes());
        head[32..34].fill(0);
        wide.extend(head);
        wide.extend(&small[at + 46..at + 46 + name]);
        wide.extend([1, 0, 24, 0]);
        for o in [24, 20, 42] {
            wide.extend(number(at + o, 4).to_le_bytes());
        }
        at += 46 + name + extra + comment;
    }
    let record = wide.len() as u64;
    wide.extend(b"PK\x06\x06");
    wide.extend(44u64.to_le_bytes());
    wide.extend([0; 12]);
    wide.extend(count.to_le_bytes());
    wide.extend(count.to_le_bytes());
    wide.extend((record - directory as u64).to_le_bytes());
    wide.extend((directory as u64).to_le_bytes());
    wide.extend(b"PK\x06\x07\0\0\0\0");
    wide.extend(record.to_le_bytes());
    wide.extend([1, 0, 0, 0]);
    wide.extend(b"PK\x05\x06\0\0\0\0");
    wide.extend([0xff; 12]);
    wide.extend([0, 0]);
    let path = Path::new("wide.bin");
    assert_eq!(pickle::read(path, &wide).unwrap(), pickle::read(path, &small).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn damaged_checkpoints_give_tensors_or_a_named_error(
        which in 0usize..3, at in any::<usize>(), value in any::<u8>(), more in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..3), cut in any::<bool>(),
    ) {
        let name = ["module.bin", "views.bin", "lightning.ckpt"][which];
        let mut bytes = fs::read(format!("{DIR}/{name}")).unwrap();
        for (at, value) in more.into_iter().chain([(at, value)]) {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(at % bytes.len());
        }
        match pickle::read(Path::new(name), &bytes) {
            Ok(tensors) => tensors.iter().for_each(|t| assert!(t.offset + t.bytes <= bytes.len())),
            Err(e) => { let text = format!("{e:#}"); prop_assert!(text.contains(name), "{}", text) }
        }
    }

    /// Opcodes in any order: the archive is sound, its pickle is not.
    #[test]
    fn any_pickle_gives_tensors_or_an_error(
        ops in proptest::collection::vec(prop_oneof![
            proptest::sample::select(b"(0122.NJKMGXTUBCtl)]}aedsuhjqrcQRb\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x93\x94\x95".to_vec()),
            0u8..8,
        ], 0..60),
    ) {
        let small = fs::read(format!("{DIR}/module.bin")).unwrap();
        let start = small.windows(2).position(|w| w == b"\x80\x02").unwrap();
        let mut bytes = small.clone();
        bytes[start..start + ops.len()].copy_from_slice(&ops);
        if let Err(e) = pickle::read(Path::new("module.bin"), &bytes) {
            let text = format!("{e:#}"); prop_assert!(text.contains("module.bin"), "{}", text);
        }
    }
}
