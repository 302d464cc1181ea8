//! Loading a model and generating with it.
use std::path::PathBuf;

use super::Conversation;
use crate::{
    device::DeviceChoice,
    error::Result,
    infer::answerer::{AnswerOptions, Answerer, Reply},
    pipeline::placement::{BaseDtype, Placement},
    tensor::{Activations, DType},
};

/// How a model is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// The type of the weights in memory and of the arithmetic: F32 or Bf16.
    pub dtype: DType,
    /// The device that it runs on.
    pub device: DeviceChoice,
    /// Keep a `.gguf` file's matrices quantised and unpack them in each product: bit-identical results in less memory, but slower.
    pub keep_blocks: bool,
    /// What products over such matrices read of their input.
    pub activations: Activations,
    /// Folder of a PEFT adapter to merge on load.
    pub adapter: Option<PathBuf>,
    /// How conversations are rendered: `auto` (the model's own template), `chatml`, `alpaca` ..., or a `.jinja` file.
    pub template: String,
    /// System prompt for conversations without one.
    pub system: Option<String>,
}

impl Default for LoadOptions {
    /// F32 on the CPU, the model's own template, no adapter, no system prompt.
    fn default() -> LoadOptions {
        LoadOptions {
            dtype: DType::F32,
            device: DeviceChoice::Cpu,
            keep_blocks: false,
            activations: Activations::F32,
            adapter: None,
            template: "auto".into(),
            system: None,
        }
    }
}

impl LoadOptions {
    pub(super) fn placement(&self) -> Placement {
        let base_dtype = if self.keep_blocks { BaseDtype::Stored } else { BaseDtype::Dtype };
        Placement { dtype: self.dtype, base_dtype, activations: self.activations, device: self.device }
    }
}

/// A language model with its tokenizer and chat template. It must stay on the thread that loaded it; the computation uses the crate's own
/// thread pool, whose size [`crate::ops::with_threads`] sets.
pub struct Model {
    pub(super) name: String,
    pub(super) options: LoadOptions,
    pub(super) answerer: Answerer,
}

impl Model {
    /// Loads a Hugging Face directory, a `.gguf` file, or, by name, a model in the local Hugging Face cache.
    ///
    /// # Errors
    /// [`NotFound`](crate::Error::NotFound), [`Unsupported`](crate::Error::Unsupported) (by the name of the architecture, field or tensor),
    /// [`BadInput`](crate::Error::BadInput) (a damaged file, an adapter for another model), [`OutOfMemory`](crate::Error::OutOfMemory),
    /// [`NoDevice`](crate::Error::NoDevice), [`Setting`](crate::Error::Setting) (an unknown template).
    pub fn load(model: &str, options: &LoadOptions) -> Result<Model> {
        let o = options;
        let adapter = o.adapter.as_deref();
        let answerer = Answerer::load(model, adapter, o.placement(), &o.template)?;
        Ok(Model { name: model.into(), options: options.clone(), answerer })
    }

    /// Answers each prompt, in order. A prompt is a question (`&str`) or a [`Conversation`](crate::Conversation). Options that are not set come from the model's
    /// generation_config.json. An answer does not depend on the other prompts.
    ///
    /// # Errors
    /// [`BadInput`](crate::Error::BadInput) (an empty prompt, one that fills the model's context, a conversation that does not end with the user),
    /// [`Setting`](crate::Error::Setting), [`OutOfMemory`](crate::Error::OutOfMemory).
    pub fn generate<C: Into<Conversation> + Clone>(
        &self,
        prompts: &[C],
        options: &AnswerOptions,
    ) -> Result<Vec<Reply>> {
        let prompts: Vec<Conversation> = prompts.iter().cloned().map(Into::into).collect();
        let system = options.system.clone().or_else(|| self.options.system.clone());
        let options = AnswerOptions { system, ..options.clone() };
        let ids: Vec<String> = (0..prompts.len()).map(|i| i.to_string()).collect();
        let mut asked = vec![];
        for (id, conversation) in ids.iter().zip(&prompts) {
            asked.push((id.as_str(), conversation.prompt(&format!("prompt {id}"))?));
        }
        Ok(self.answerer.answer(&asked, &options, &mut |_| {})?)
    }

    /// The loaded weights, tokenizer and template.
    pub fn answerer(&self) -> &Answerer {
        &self.answerer
    }
}
