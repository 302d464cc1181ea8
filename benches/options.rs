//! The options of the bench programs: `sdrrl bench`'s own, by its own parser, and what a comparison with peers takes besides. What a program would ignore it refuses by
//! name, as it does what there is not.
// Every program takes a part of this.
#![allow(dead_code)]
use clap::{ArgMatches, Command, Parser, error::ErrorKind, parser::ValueSource};

/// What a comparison with peers takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Peers {
    /// Python with the peers' packages; without it only this program runs
    #[arg(long)]
    pub python: Option<String>,
    /// How often everyone runs, in turn [default: 3, or as the program says]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// What this program runs in a process of its own
    #[arg(long, hide = true)]
    pub worker: Option<String>,
    /// Cargo's
    #[arg(long, hide = true)]
    bench: bool,
}

impl Peers {
    /// Rounds, or `usual` of them.
    pub fn rounds(&self, usual: u32) -> usize {
        self.rounds.unwrap_or(usual) as usize
    }
}

/// Why results with peers take no --json and --compare.
pub const PRINTED: &str =
    "what is compared with peers is printed; `sdrrl bench` writes and compares this program's own figures";

/// An option and why a program refuses it.
pub type Refused = (&'static str, &'static str);

/// Options of `sdrrl bench` that say nothing about text.
pub const OF_MODELS: &[Refused] = &[
    ("warmup", "each case has its own number of runs"),
    ("runs", "each case has its own number of runs; --rounds repeats all of them"),
    ("json", PRINTED),
    ("compare", PRINTED),
    ("dtype", "the program chooses the types that it compares"),
    ("base_dtype", "no quantised base is compared"),
    ("activations", "no quantised base is compared"),
    ("device", "this runs on the processor"),
];

/// The options of the command line, and where each came from; ends the program where one is unknown or among `refused`.
pub fn options<T: Parser>(refused: &[Refused]) -> (T, ArgMatches) {
    read(T::command().no_binary_name(true), std::env::args_os().skip(1), refused).unwrap_or_else(|e| e.exit())
}

/// The same of `arguments`.
pub fn read<T: Parser>(
    mut command: Command,
    arguments: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>,
    refused: &[Refused],
) -> Result<(T, ArgMatches), clap::Error> {
    let matches = command.try_get_matches_from_mut(arguments)?;
    if let Some((id, why)) = refused.iter().find(|(id, _)| given(&matches, id)) {
        let message = format!("--{} is not for this program: {why}\n", id.replace('_', "-"));
        return Err(command.error(ErrorKind::ArgumentConflict, message));
    }
    let options = T::from_arg_matches(&matches).map_err(|e| e.format(&mut command))?;
    Ok((options, matches))
}

/// Whether the command line has the option.
pub fn given(matches: &ArgMatches, id: &str) -> bool {
    let known = matches.try_contains_id(id).unwrap_or(false);
    known && matches.value_source(id) == Some(ValueSource::CommandLine)
}
