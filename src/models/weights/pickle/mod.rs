//! PyTorch's checkpoints (`pytorch_model.bin`, Lightning's `.ckpt`): a zip archive of a pickle and of one stored entry a storage.
//!
//! Nothing of the pickle is executed: a small machine builds plain data, and every global that is not on a short list (`machine::allowed`) is
//! refused by name. The storages stay where they are in the mapped file.
mod machine;
mod zip;

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;

use machine::{Node, Pickle, View};

/// Where one tensor is in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PickledTensor {
    /// Its key in the state dict.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions; a scalar has one of 1.
    pub shape: Vec<usize>,
    /// Elements from one index to the next in each dimension; `None` if the tensor is contiguous.
    pub strides: Option<Vec<usize>>,
    /// First byte, from the start of the file.
    pub offset: usize,
    /// Bytes from the first element to the last.
    pub bytes: usize,
}

/// Longest `data.pkl` that is read: weights stand beside it, so real ones have some hundred kilobytes.
const LONGEST_PICKLE: usize = 64 << 20;

/// The tensors of the state dict in a checkpoint's bytes: of the dict under `state_dict` (Lightning), else of the pickled dict itself.
pub fn read(path: &Path, file: &[u8]) -> Result<Vec<PickledTensor>> {
    let context = || format!("{} is not a usable PyTorch checkpoint", path.display());
    tensors(file).with_context(context)
}

fn tensors(file: &[u8]) -> Result<Vec<PickledTensor>> {
    let entries = zip::entries(file)?;
    let pickle = entries.iter().find(|e| e.name == "data.pkl" || e.name.ends_with("/data.pkl"));
    let pickle = pickle.context("the archive has no data.pkl")?;
    let folder = &pickle.name[..pickle.name.len() - "data.pkl".len()];
    let named: HashMap<&str, &zip::Entry> = entries.iter().map(|e| (e.name.as_str(), e)).collect();
    if let Some(order) = named.get(format!("{folder}byteorder").as_str()) {
        let order = zip::stored(file, order)?;
        ensure!(&file[order.clone()] == b"little", "its numbers are not little-endian: save it again");
    }
    let bytes = &file[zip::stored(file, pickle)?];
    ensure!(
        bytes.len() <= LONGEST_PICKLE,
        "data.pkl has {} bytes: no list of weights is that long",
        bytes.len()
    );
    let (pickle, top) = Pickle::run(bytes)?;
    let Some(dict) = pickle.dict(top) else { bail!("it holds no dict of tensors") };
    let nested = dict.iter().find(|(key, _)| pickle.text(*key) == Some("state_dict"));
    let state = nested.and_then(|(_, value)| pickle.dict(*value)).unwrap_or(dict);
    let mut out = vec![];
    for &(key, value) in state {
        let (Some(name), Node::Tensor(view)) = (pickle.text(key), pickle.node(value)) else { continue };
        let View { storage, offset, shape, strides } = view.as_ref();
        ensure!(name.len() <= machine::LONGEST_NAME, "a tensor's name has {} bytes", name.len());
        let storage = pickle.storage(*storage)?;
        let size = size_of(storage.dtype).with_context(|| format!("tensor {name}"))?;
        let place =
            locate(file, &named, &format!("{folder}data/{}", storage.key), size, *offset, shape, strides);
        let (offset, bytes, strided) = place.with_context(|| format!("tensor {name}"))?;
        let shape = if shape.is_empty() { vec![1] } else { shape.clone() };
        let strides = strided.then(|| strides.clone());
        out.push(PickledTensor { name: name.into(), dtype: storage.dtype, shape, strides, offset, bytes });
    }
    Ok(out)
}

fn size_of(dtype: Dtype) -> Result<usize> {
    Ok(match dtype {
        Dtype::F64 | Dtype::I64 => 8,
        Dtype::F32 | Dtype::I32 => 4,
        Dtype::F16 | Dtype::BF16 | Dtype::I16 => 2,
        Dtype::U8 | Dtype::I8 | Dtype::BOOL => 1,
        other => bail!("elements of type {other:?} cannot be read"),
    })
}

/// (first byte, bytes up to the last element, whether the elements lie apart or out of order) of a view of the storage `entry`.
fn locate(
    file: &[u8],
    named: &HashMap<&str, &zip::Entry>,
    entry: &str,
    size: usize,
    first: usize,
    shape: &[usize],
    strides: &[usize],
) -> Result<(usize, usize, bool)> {
    let stored = named.get(entry).with_context(|| format!("the archive has no entry {entry}"))?;
    let stored = zip::stored(file, stored)?;
    ensure!(shape.len() == strides.len(), "shape {shape:?} and strides {strides:?} differ in length");
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).context("the shape overflows")?;
    let (mut span, mut dense, mut contiguous) = (1usize, 1usize, true);
    for (&d, &stride) in shape.iter().zip(strides).rev() {
        contiguous &= d <= 1 || stride == dense;
        dense = dense.saturating_mul(d);
        let reach = d.saturating_sub(1).checked_mul(stride).context("the strides overflow")?;
        span = span.checked_add(reach).context("the strides overflow")?;
    }
    let span = if elements == 0 { 0 } else { span };
    // A copy of an expanded view (stride 0) would be larger than the file says.
    ensure!(contiguous || elements <= span, "a view of {elements} elements over {span} stored ones");
    let end = first.checked_add(span).and_then(|n| n.checked_mul(size)).context("the offset overflows")?;
    ensure!(
        end <= stored.len(),
        "it ends at byte {end} of entry {entry}, which has {}: the file may be truncated",
        stored.len()
    );
    Ok((stored.start + first * size, span * size, !contiguous))
}
