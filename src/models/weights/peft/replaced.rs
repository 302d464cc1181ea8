//! What an adapter puts in the place of the model's own tensors: modules that were trained whole (`modules_to_save`), biases (`bias`, `lora_bias`), rows of the
//! embedding (`trainable_token_indices`), and low-rank updates of the embedding and the head, which are folded in.
use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::{
    config::Wholes,
    tensors::{BIAS, LORA_BIAS, TOKENS, Tensors, WHOLE},
};
use crate::{
    models::transformer::{
        ids::{LinearId, PerLinear},
        lora::{Adapter, LoraConfig, Replaced, Selection, is_called, merge},
        tree::{Leaf, LeafPart, Place},
        weight::Weight,
        weights::Transformer,
    },
    tensor::Tensor,
};

const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

/// What is replaced, and the file's tensors that say so, by PEFT's names.
type Found = (Vec<Replaced>, Vec<(String, Tensor)>);

/// Takes all of it out of `tensors`; `layers` are the adapters of the linears.
pub(super) fn read(
    config: &LoraConfig,
    fields: &Map<String, Value>,
    tensors: &mut Tensors,
    layers: &[PerLinear<Option<Adapter>>],
    model: &Transformer,
) -> Result<Found> {
    let wholes = Wholes::of(fields)?;
    let selection = config.selection()?;
    let mut reader = Reader { tensors, model, config, selection, values: BTreeMap::new(), kept: vec![] };
    let found = reader.wholes()?;
    for name in &wholes.modules {
        let is_it =
            |module: &str| is_called(module, name) || format!(".{module}.").contains(&format!(".{name}."));
        ensure!(
            found.iter().any(|module| is_it(module)),
            "modules_to_save has {name}, but no tensor of such a module of this model is in the adapter's file"
        );
    }
    reader.embedding()?;
    reader.head()?;
    for (module, ids) in &wholes.rows {
        reader.rows(module, ids).with_context(|| format!("trainable_token_indices of {module}"))?;
    }
    if wholes.lora_bias {
        reader.biases(layers).context("lora_bias")?;
    }
    reader.finish()
}

struct Reader<'a> {
    tensors: &'a mut Tensors,
    model: &'a Transformer,
    config: &'a LoraConfig,
    selection: Selection<'a>,
    /// By the leaf's name: the values that it has with the adapter.
    values: BTreeMap<String, (Place, Tensor)>,
    kept: Vec<(String, Tensor)>,
}

impl Reader<'_> {
    /// The leaves of the model, a head of its own among them.
    fn leaves(&self) -> Vec<Leaf> {
        let mut leaves = self.model.spec.leaves();
        if self.model.spec.tied_head {
            let dims = leaves[0].dims.clone();
            leaves.push(Leaf {
                place: Place::Head,
                name: format!("{HEAD}.weight"),
                dims,
                whole: None,
                stack: None,
            });
        }
        leaves
    }

    fn leaf(&self, place: Place) -> Result<Leaf> {
        let leaf = self.leaves().into_iter().find(|leaf| leaf.place == place);
        leaf.with_context(|| format!("the model has no {place:?}"))
    }

    /// What stands at `place` so far, F32; a tied head is the embedding as the model has it.
    fn current(&self, place: Place) -> Result<Tensor> {
        let leaf = self.leaf(place)?;
        if let Some((_, values)) = self.values.get(&leaf.name) {
            return Ok(values.alias());
        }
        let own = if place == Place::Head && self.model.spec.tied_head { Place::Embedding } else { place };
        let values = match self.model.weights.get(own).with_context(|| format!("no {place:?}"))? {
            LeafPart::Matrix(w) => w.to_f32_vec()?,
            LeafPart::Vector(t) => t.to_f32_vec()?,
        };
        Tensor::from_f32(&leaf.name, &leaf.dims, &values)
    }

    fn put(&mut self, place: Place, values: Tensor) -> Result<()> {
        let leaf = self.leaf(place)?;
        self.values.insert(leaf.name, (place, values));
        Ok(())
    }

    fn keep(&mut self, module: &str, part: &str, tensor: &Tensor) {
        self.kept.push((format!("base_model.model.{module}.{part}"), tensor.alias()));
    }

    /// Whole tensors of the model; gives the paths of their modules.
    fn wholes(&mut self) -> Result<Vec<String>> {
        let (mut found, mut taken) = (vec![], BTreeMap::<String, Tensor>::new());
        for leaf in self.leaves() {
            let name = leaf.stored_name();
            if let Some(values) = taken.get(name) {
                self.put(leaf.place, values.rows(leaf.stored_rows())?)?;
                continue;
            }
            let (module, part) = match name.rsplit_once('.') {
                Some((module, "bias")) => (module, BIAS),
                Some((module, _)) => (module, WHOLE),
                None => continue,
            };
            let Some(values) = self.tensors.take_if(module, part, &leaf.stored_dims())? else { continue };
            // The name that PEFT gives what its own adapter stands beside.
            let inner = if self.selection.has(module)? { "base_layer." } else { "" };
            self.keep(module, &format!("{inner}{part}"), &values);
            self.put(leaf.place, values.rows(leaf.stored_rows())?)?;
            found.push(module.to_string());
            taken.insert(name.to_string(), values);
        }
        let tied = self.model.spec.tied_head;
        // PEFT trains a copy of the embedding, and the head stays what it was.
        if tied && found.iter().any(|m| m == EMBEDDING) && !found.iter().any(|m| m == HEAD) {
            let head = self.current(Place::Head)?;
            self.put(Place::Head, head)?;
        }
        Ok(found)
    }

    /// The adapter of a module of (out, in).
    fn adapter(&mut self, module: &str, parts: [&str; 2], out: usize, inp: usize) -> Result<(Adapter, bool)> {
        let (r, alpha) = self.selection.rank_alpha(module)?;
        let embedding = parts[0] == "lora_embedding_A";
        let dims = if embedding { [[r, out], [inp, r]] } else { [[r, inp], [out, r]] };
        let a = self.tensors.take(module, parts[0], &dims[0])?;
        let b = self.tensors.take(module, parts[1], &dims[1])?;
        let end = if embedding { "" } else { ".weight" };
        self.keep(module, &format!("{}{end}", parts[0]), &a);
        self.keep(module, &format!("{}{end}", parts[1]), &b);
        let magnitude = match self.config.use_dora {
            true if embedding => {
                bail!("use_dora of the embedding is not supported: {}", super::config::MERGE)
            }
            true => Some(self.tensors.take(module, "lora_magnitude_vector", &[out])?),
            false => None,
        };
        if let Some(m) = &magnitude {
            self.keep(module, "lora_magnitude_vector", m);
        }
        let (a, b) = if embedding { (transposed(&b)?, transposed(&a)?) } else { (a, b) };
        let scale = self.config.scale(r, alpha);
        Ok((Adapter { a, b, magnitude, scale, norms: None, narrow: None }, embedding))
    }

    fn folded(&mut self, module: &str, place: Place, parts: [&str; 2]) -> Result<()> {
        if !self.selection.has(module)? {
            return Ok(());
        }
        let base = self.current(place)?;
        let (out, inp) = (base.shape()[0], base.shape()[1]);
        let (adapter, embedding) = self.adapter(module, parts, out, inp)?;
        // The head of a tied model has no share in the embedding's update.
        if embedding && self.model.spec.tied_head {
            let head = self.current(Place::Head)?;
            self.put(Place::Head, head)?;
        }
        let merged = merge(&Weight::Dense(base), &adapter).with_context(|| format!("merge {module}"))?;
        self.put(place, merged)
    }

    fn embedding(&mut self) -> Result<()> {
        self.folded(EMBEDDING, Place::Embedding, ["lora_embedding_A", "lora_embedding_B"])
    }

    fn head(&mut self) -> Result<()> {
        self.folded(HEAD, Place::Head, ["lora_A", "lora_B"])
    }

    /// Rows of the embedding or the head; of a tied model's embedding they are the head's too.
    fn rows(&mut self, name: &str, ids: &[usize]) -> Result<()> {
        let (module, place) = match () {
            () if is_called(EMBEDDING, name) => (EMBEDDING, Place::Embedding),
            () if is_called(HEAD, name) => (HEAD, Place::Head),
            () => bail!("rows of the embedding and the head are known"),
        };
        if ids.is_empty() {
            return Ok(());
        }
        let base = self.current(place)?;
        let (rows, width) = (base.shape()[0], base.shape()[1]);
        if let Some(id) = ids.iter().find(|id| **id >= rows) {
            bail!("token {id}: the model has {rows}");
        }
        // A tied head shares the embedding's rows, and the file may say so twice.
        let delta = match self.tensors.take_if(module, TOKENS, &[ids.len(), width])? {
            Some(delta) => delta,
            None if place == Place::Head && self.model.spec.tied_head => return Ok(()),
            None => bail!("the adapter's file has no {TOKENS} of {module}"),
        };
        self.keep(module, &format!("token_adapter.{TOKENS}"), &delta);
        let (mut values, delta) = (base.to_f32_vec()?, delta.to_f32_vec()?);
        for (id, row) in ids.iter().zip(delta.chunks_exact(width)) {
            values[id * width..][..width].copy_from_slice(row);
        }
        let values = Tensor::from_f32(base.name(), base.shape(), &values)?;
        self.put(place, values)
    }

    /// B's biases, which join those of the linears.
    fn biases(&mut self, layers: &[PerLinear<Option<Adapter>>]) -> Result<()> {
        ensure!(!self.config.use_dora, "it does not go with use_dora (PEFT refuses it too)");
        for (l, layer) in layers.iter().enumerate() {
            for &id in LinearId::ALL {
                let Some(adapter) = &layer[id] else { continue };
                let module = self.model.spec.module_path(l, id);
                ensure!(
                    self.model.spec.biases[id],
                    "{module} has no bias in this model, so there is no place for that of B: {}",
                    super::config::MERGE
                );
                let bias = self.tensors.take(&module, LORA_BIAS, &[self.model.spec.linear_dims(l, id).0])?;
                self.keep(&module, LORA_BIAS, &bias);
                let base = self.current(Place::Bias(l, id))?;
                let (mut sum, bias) = (base.to_f32_vec()?, bias.to_f32_vec()?);
                sum.iter_mut().zip(bias).for_each(|(x, b)| *x += adapter.scale * b);
                let sum = Tensor::from_f32(base.name(), base.shape(), &sum)?;
                self.put(Place::Bias(l, id), sum)?;
            }
        }
        Ok(())
    }

    /// A tied model whose head became the same as its embedding stays tied.
    fn finish(mut self) -> Result<Found> {
        if self.model.spec.tied_head {
            let same = |a: &Tensor, b: &Tensor| anyhow::Ok(a.to_f32_vec()? == b.to_f32_vec()?);
            let head = format!("{HEAD}.weight");
            let of = |name: &str| self.values.get(name).map(|(_, t)| t);
            let both = of(&head).zip(of(&format!("{EMBEDDING}.weight")));
            if both.map_or(Ok(false), |(head, embedding)| same(head, embedding))? {
                self.values.remove(&head);
            }
        }
        let replaced = self.values.into_values().map(|(place, values)| Replaced { place, values });
        Ok((replaced.collect(), self.kept))
    }
}

/// (C, R) of (R, C).
fn transposed(t: &Tensor) -> Result<Tensor> {
    let (rows, columns) = (t.shape()[0], t.shape()[1]);
    let values = t.to_f32_vec()?;
    let turned: Vec<f32> = (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect();
    Tensor::from_f32(t.name(), &[columns, rows], &turned)
}
