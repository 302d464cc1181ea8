//! `sdrrl help` and `sdrrl completions`: pages of docs/ that are part of the program, and what clap knows of the commands.
use anyhow::{Result, anyhow, bail};
use clap::Command;

use crate::{
    data::words::nearest,
    report::out::{data, say_text},
};

/// Pages by name: with the page of `docs/` that each is.
const PAGES: [(&str, &str); 3] = [
    ("tasks", include_str!("../../docs/tasks.md")),
    ("recipe", include_str!("../../docs/recipes.md")),
    ("formats", include_str!("../../docs/formats.md")),
];

/// Arguments of `help`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// tasks, recipe, formats, or a command
    pub topic: Option<String>,
}

/// Arguments of `completions`.
#[derive(Clone, Debug, clap::Args)]
pub struct CompletionArgs {
    /// The shell; for bash: `sdrrl completions bash > ~/.local/share/bash-completion/completions/sdrrl`
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Prints a page, or the help of a command of `program`.
pub fn run(args: &Args, mut program: Command) -> Result<()> {
    let Some(topic) = &args.topic else {
        say_text!("{}", program.render_long_help());
        return Ok(());
    };
    let topic = if topic == "recipes" { "recipe" } else { topic };
    if let Some((_, page)) = PAGES.iter().find(|(name, _)| *name == topic) {
        say_text!("{page}");
        return Ok(());
    }
    program.build();
    if let Some(command) = program.find_subcommand_mut(topic) {
        say_text!("{}", command.render_long_help());
        return Ok(());
    }
    let commands: Vec<String> = program.get_subcommands().map(|c| c.get_name().to_string()).collect();
    let names = || PAGES.iter().map(|(name, _)| *name).chain(commands.iter().map(String::as_str));
    let near = nearest(topic, names()).map(|name| format!("; did you mean `{name}`")).unwrap_or_default();
    bail!("there is no help on `{topic}`{near}; there are {}", names().collect::<Vec<_>>().join(", "))
}

/// Prints the completions of `program` for a shell.
pub fn complete(args: &CompletionArgs, mut program: Command) -> Result<()> {
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut program, "sdrrl", &mut script);
    let script = String::from_utf8(script).map_err(|e| anyhow!("the completions are no text: {e}"))?;
    data(format_args!("{script}"));
    Ok(())
}
