//! A model that answers.
use std::path::PathBuf;

use super::Conversation;
use crate::{
    device::DeviceChoice,
    error::Result,
    infer::answerer::{AnswerOptions, Answerer, Reply},
    pipeline::placement::{BaseDtype, Placement},
    tensor::DType,
};

/// How a model is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// The type of the weights in memory and of the arithmetic: F32 or Bf16.
    pub dtype: DType,
    /// Where it computes.
    pub device: DeviceChoice,
    /// A `.gguf` file's matrices stay as blocks, unpacked by the products that read them: the same bits with less memory, and slower.
    pub keep_blocks: bool,
    /// A PEFT adapter's folder, merged on load.
    pub adapter: Option<PathBuf>,
    /// How conversations are rendered: `auto` (the model's own template), `chatml`, `alpaca` ..., or a `.jinja` file.
    pub template: String,
    /// System prompt of conversations that have none of their own.
    pub system: Option<String>,
}

impl Default for LoadOptions {
    /// F32 on the CPU, the model's own template, no adapter, no system prompt.
    fn default() -> LoadOptions {
        LoadOptions {
            dtype: DType::F32,
            device: DeviceChoice::Cpu,
            keep_blocks: false,
            adapter: None,
            template: "auto".into(),
            system: None,
        }
    }
}

impl LoadOptions {
    pub(super) fn placement(&self) -> Placement {
        let base_dtype = if self.keep_blocks { BaseDtype::Stored } else { BaseDtype::Dtype };
        Placement { dtype: self.dtype, base_dtype, device: self.device }
    }
}

/// A language model with its tokenizer and chat template. It stays on the thread that loaded it; its work runs on a pool of its own
/// ([`crate::ops::with_threads`] sets the pool's size).
pub struct Model {
    pub(super) name: String,
    pub(super) options: LoadOptions,
    pub(super) answerer: Answerer,
}

impl Model {
    /// Loads a Hugging Face directory, a `.gguf` file, or a model of the local Hugging Face cache by its name.
    ///
    /// # Errors
    /// [`NotFound`](crate::Error::NotFound), [`Unsupported`](crate::Error::Unsupported) (by the name of the architecture, field or tensor),
    /// [`BadInput`](crate::Error::BadInput) (a damaged file, an adapter of another model), [`OutOfMemory`](crate::Error::OutOfMemory),
    /// [`NoDevice`](crate::Error::NoDevice), [`Setting`](crate::Error::Setting) (a template that there is not).
    pub fn load(model: &str, options: &LoadOptions) -> Result<Model> {
        let o = options;
        let adapter = o.adapter.as_deref();
        let answerer = Answerer::load(model, adapter, o.placement(), &o.template)?;
        Ok(Model { name: model.into(), options: options.clone(), answerer })
    }

    /// Answers each prompt, in order; `&["a question"]` and conversations will do. What the options leave open is as the model's generation_config.json has
    /// it. The answers do not depend on what runs together.
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

    /// The loaded parts: weights, tokenizer, template.
    pub fn answerer(&self) -> &Answerer {
        &self.answerer
    }
}
