//! Articles and their summaries: an article that is too long for the model's context is cut.
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Item, reply, rows};
use crate::{
    data::conversation::Prompt, eval::sample::Sample, infer::answerer::Answerer,
    mt::self_translate::translation_prompt, recipe::eval::EvalTask,
};

/// XL-Sum: `text` and `summary`. The prompt is only the article until it is known what fits.
pub(super) fn articles(task: &EvalTask) -> Result<Vec<Item>> {
    let mut out = vec![];
    for (doc_id, (place, row)) in rows(&task.file)?.into_iter().enumerate() {
        let text = |key: &str| {
            row.get(key)
                .and_then(Value::as_str)
                .filter(|t| !t.trim().is_empty())
                .map(String::from)
                .with_context(|| format!("{place}: the text `{key}` is missing"))
        };
        let (article, summary) = (text("text")?, text("summary")?);
        out.push(reply(doc_id, article, vec![summary], Value::Object(row)));
    }
    Ok(out)
}

/// Cuts the article, never the frame around it or the solved questions `before` it, until prompt and reply fit the model's context.
pub(super) fn fit_article(
    answerer: &Answerer,
    task: &EvalTask,
    (system, before): (Option<&str>, &str),
    sample: &mut Sample,
) -> Result<()> {
    let context = answerer.model.config.max_position_embeddings;
    let length = |prompt: &str| -> Result<usize> {
        let whole = format!("{before}{prompt}");
        Ok(answerer.template.encode_prompt(&answerer.tokenizer, &Prompt::new(system, &whole, ""))?.len())
    };
    let article = std::mem::take(&mut sample.prompt);
    let tokens = answerer.tokenizer.encode(&article, false)?;
    let (frame, room) = (length(&summary_prompt(task, ""))?, context.saturating_sub(task.reply_tokens()));
    ensure!(
        frame < room,
        "the prompt without its article has {frame} tokens, of {room} that are left for it"
    );
    let mut keep = tokens.len();
    loop {
        let text = if keep == tokens.len() {
            article.clone()
        } else {
            // The cut may fall inside of a character.
            answerer.tokenizer.decode(&tokens[..keep])?.trim_end_matches('\u{fffd}').to_string()
        };
        let prompt = summary_prompt(task, &text);
        let surplus = length(&prompt)?.saturating_sub(room);
        if surplus == 0 {
            sample.truncated = keep < tokens.len();
            sample.prompt = prompt;
            return Ok(());
        }
        keep = keep.saturating_sub(surplus);
    }
}

pub(super) fn summary_prompt(task: &EvalTask, article: &str) -> String {
    translation_prompt(task.prompt(), &task.source_language, &task.language, article)
}
