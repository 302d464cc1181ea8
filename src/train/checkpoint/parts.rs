//! The optimizer's state in the files of a checkpoint: whole, or in parts that as many ranks wrote as there are files. Any number of ranks reads any number of parts.
use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, ensure};

use super::{
    super::optimizer::{CODES, PART, TOPS},
    Tensors,
};
use crate::tensor::{DType, Tensor};

/// The tensors of rank `rank`.
pub(super) fn file_of(rank: usize) -> String {
    if rank == 0 { "state.safetensors".into() } else { format!("state.{rank}.safetensors") }
}

/// Whether [`file_of`] gives such a name.
pub(super) fn is_file(name: &str) -> bool {
    let rank = name.strip_prefix("state.").and_then(|name| name.strip_suffix(".safetensors"));
    name == file_of(0) || rank.and_then(|r| r.parse().ok()).is_some_and(|rank: usize| name == file_of(rank))
}

/// A tensor's name, the whole's name, and the place of its first entry in the whole.
fn placed(name: &str) -> Result<(&str, usize)> {
    let Some((whole, element)) = name.rsplit_once(PART) else { return Ok((name, 0)) };
    let element: usize = element.parse().with_context(|| format!("the part {name} has no first element"))?;
    // Elements of a parameter that an entry stands for.
    let each = match whole {
        _ if whole.ends_with(CODES) => 4,
        _ if whole.ends_with(TOPS) => 256,
        _ => 1,
    };
    Ok((whole, element / each))
}

/// Where a part lies: its file, its own name, its first entry in the whole, and how many it has.
struct Stored {
    file: usize,
    name: String,
    begin: usize,
    len: usize,
}

/// All files of a checkpoint.
pub(super) struct Parts {
    files: Vec<Tensors>,
    /// By the name of the whole.
    of: HashMap<String, Vec<Stored>>,
}

impl Parts {
    /// The `count` files of the checkpoint in `dir`.
    ///
    /// # Errors
    /// One that is missing or damaged.
    pub(super) fn open(dir: &Path, count: usize) -> Result<Parts> {
        let open = |rank| Tensors::open_file(&dir.join(file_of(rank)));
        let files = (0..count).map(open).collect::<Result<Vec<_>>>()?;
        let mut of: HashMap<String, Vec<Stored>> = HashMap::new();
        for (file, tensors) in files.iter().enumerate() {
            for name in tensors.names() {
                let (whole, begin) = placed(name)?;
                let len = tensors.shape(name).unwrap_or_default().iter().product();
                let stored = Stored { file, name: name.into(), begin, len };
                of.entry(whole.into()).or_default().push(stored);
            }
        }
        Ok(Parts { files, of })
    }

    /// What rank 0 wrote: it has every parameter.
    pub(super) fn first(&self) -> &Tensors {
        &self.files[0]
    }

    /// Reads a whole tensor of the state, or a part of one, from whatever parts it lies in.
    ///
    /// # Errors
    /// Entries that no part holds; another type.
    pub(super) fn read_into(&self, out: &mut Tensor) -> Result<()> {
        let name = out.name().to_string();
        let (whole, begin) = placed(&name)?;
        // Checkpoint has names without a leading `model.`.
        let stored = self.of.get(whole).or_else(|| self.of.get(whole.strip_prefix("model.")?));
        let stored = stored.with_context(|| format!("the checkpoint has no tensor {whole}"))?;
        let wanted = begin..begin + out.len();
        let (mut words, mut there) = (vec![0u32; out.len()], 0);
        for part in stored {
            let (from, to) = (part.begin.max(wanted.start), (part.begin + part.len).min(wanted.end));
            if from >= to {
                continue;
            }
            let entries = self.entries(part, out.dtype())?;
            ensure!(entries.len() == part.len, "{} has {} entries", part.name, entries.len());
            words[from - begin..to - begin].copy_from_slice(&entries[from - part.begin..to - part.begin]);
            there += to - from;
        }
        ensure!(there == out.len(), "{name} has {there} entries: {} were expected", out.len());
        match out.dtype() {
            DType::U32 => out.write_u32(&words),
            _ => out.write_f32(bytemuck::cast_slice(&words)),
        }
    }

    /// A part's entries, by their bits.
    fn entries(&self, part: &Stored, dtype: DType) -> Result<Vec<u32>> {
        let file = &self.files[part.file];
        if dtype == DType::U32 {
            return file.integers(&part.name);
        }
        let shape = file.shape(&part.name).unwrap_or_default().to_vec();
        Ok(bytemuck::cast_vec(file.tensor(&part.name, &shape, DType::F32)?.to_f32_vec()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::weights::export::write_safetensors;

    /// `name`'s entries from `begin` on count upwards.
    fn counting(name: &str, begin: usize, n: usize) -> (String, Tensor) {
        let values: Vec<f32> = (begin..begin + n).map(|i| i as f32).collect();
        (name.into(), Tensor::from_f32(name, &[n], &values).unwrap())
    }

    #[test]
    fn any_parts_are_read_from_any_parts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |rank: usize, tensors: &[(String, Tensor)]| {
            let path = dir.path().join(file_of(rank));
            write_safetensors(&path, &tensors.iter().collect::<Vec<_>>(), DType::F32).unwrap();
        };
        write(0, &[counting("a.m", 0, 512), counting("model.b.m:0", 0, 256), counting("b.m_tops:0", 0, 1)]);
        write(1, &[counting("model.b.m:256", 256, 256), counting("b.m_tops:256", 1, 2)]);
        write(2, &[counting("model.b.m:512", 512, 88)]);
        let parts = Parts::open(dir.path(), 3).unwrap();
        let read = |name: &str, n: usize| {
            let mut out = Tensor::zeros(name, DType::F32, &[n])?;
            parts.read_into(&mut out)?;
            let values = out.to_f32_vec()?;
            let first = values[0];
            assert!(values.iter().enumerate().all(|(i, x)| *x == first + i as f32), "{name}");
            anyhow::Ok((first, values.len()))
        };
        for (name, n, first) in [
            ("a.m", 512, 0.0),
            ("a.m:256", 256, 256.0),
            ("model.b.m", 600, 0.0),
            ("model.b.m:200", 200, 200.0),
            ("b.m_tops:256", 2, 1.0),
            ("b.m_tops", 3, 0.0),
        ] {
            assert_eq!(read(name, n).unwrap(), (first, n), "{name}");
        }
        assert!(
            read("model.b.m", 601).is_err() && read("c.m", 1).is_err() && read("b.m_tops:512", 2).is_err()
        );
        assert!(Parts::open(dir.path(), 4).is_err());
        assert!(is_file("state.safetensors") && is_file("state.12.safetensors"));
        assert!(!is_file("state..safetensors") && !is_file("state.x.safetensors") && !is_file("state.json"));
    }
}
