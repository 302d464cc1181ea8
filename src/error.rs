//! What went wrong, by kind, for callers that do something about it.
//!
//! Inside of the crate errors are `anyhow`'s: a chain of what was being done. Where a fault arises that a caller may branch on, the chain holds an [`Error`],
//! whatever contexts are put around it; [`Error::from`] finds it, and takes the whole chain as its message.
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// What went wrong. Every variant's `message` is the whole text for people: what was being done, to which file, row or setting, what was expected and found.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file, a folder or a model is not there.
    NotFound {
        /// The path, or a model's name.
        path: PathBuf,
        /// For people.
        message: String,
    },
    /// Something is well-formed, but this program does not compute it.
    Unsupported {
        /// The architecture, field, format or tensor.
        what: String,
        /// For people.
        message: String,
    },
    /// A file, a row or a text is damaged, or not what is needed.
    BadInput {
        /// The file, with the row or line where there is one (`questions.jsonl:7`).
        place: String,
        /// For people.
        message: String,
    },
    /// A setting is out of range, or does not go with others.
    Setting {
        /// As recipes and the command line have it.
        name: String,
        /// For people.
        message: String,
    },
    /// Something is there that nobody asked to replace: nothing was changed.
    Exists {
        /// What is there.
        path: PathBuf,
        /// For people.
        message: String,
    },
    /// Another process is at work in the folder: the same call may succeed later.
    Locked {
        /// The folder or file.
        path: PathBuf,
        /// Process, machine, time and command line of the other.
        holder: String,
        /// For people.
        message: String,
    },
    /// The work was asked to stop and has kept its state: the same call goes on from there.
    Interrupted {
        /// For people.
        message: String,
    },
    /// There is too little memory, here or on the device.
    OutOfMemory {
        /// For people.
        message: String,
    },
    /// The device that was asked for is not there, or is none that this build has kernels for.
    NoDevice {
        /// As `--device` has it.
        device: String,
        /// For people.
        message: String,
    },
    /// A file cannot be written: a full disk, no permission, a folder in its place.
    CannotWrite {
        /// The file.
        path: PathBuf,
        /// For people.
        message: String,
    },
    /// Anything else, with its chain.
    Other(anyhow::Error),
}

/// What the functions at the crate's root return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn not_found(path: &Path, message: impl Into<String>) -> Error {
        Error::NotFound { path: path.into(), message: message.into() }
    }

    pub(crate) fn unsupported(what: impl fmt::Display, message: impl Into<String>) -> Error {
        Error::Unsupported { what: what.to_string(), message: message.into() }
    }

    pub(crate) fn bad_input(place: impl fmt::Display, message: impl Into<String>) -> Error {
        Error::BadInput { place: place.to_string(), message: message.into() }
    }

    pub(crate) fn setting(name: impl fmt::Display, message: impl Into<String>) -> Error {
        Error::Setting { name: name.to_string(), message: message.into() }
    }

    pub(crate) fn exists(path: &Path, message: impl Into<String>) -> Error {
        Error::Exists { path: path.into(), message: message.into() }
    }

    pub(crate) fn locked(path: &Path, holder: impl fmt::Display, message: impl Into<String>) -> Error {
        Error::Locked { path: path.into(), holder: holder.to_string(), message: message.into() }
    }

    pub(crate) fn interrupted(message: impl Into<String>) -> Error {
        Error::Interrupted { message: message.into() }
    }

    pub(crate) fn out_of_memory(message: impl Into<String>) -> Error {
        Error::OutOfMemory { message: message.into() }
    }

    pub(crate) fn no_device(device: impl fmt::Display, message: impl Into<String>) -> Error {
        Error::NoDevice { device: device.to_string(), message: message.into() }
    }

    pub(crate) fn cannot_write(path: &Path, message: impl Into<String>) -> Error {
        Error::CannotWrite { path: path.into(), message: message.into() }
    }

    /// The exit code of the program: 75 (of sysexits.h: try again later) while another process holds what is needed, 69 (not available) without the memory or
    /// the device, 130 after Ctrl-C and its kin; with all of these the command itself is right, and the same one may be run again. Else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::OutOfMemory { .. } | Error::NoDevice { .. } => 69,
            Error::Locked { .. } => 75,
            Error::Interrupted { .. } => 130,
            _ => 1,
        }
    }

    fn with_message(&self, message: String) -> Option<Error> {
        Some(match self {
            Error::NotFound { path, .. } => Error::not_found(path, message),
            Error::Unsupported { what, .. } => Error::unsupported(what, message),
            Error::BadInput { place, .. } => Error::bad_input(place, message),
            Error::Setting { name, .. } => Error::setting(name, message),
            Error::Exists { path, .. } => Error::exists(path, message),
            Error::Locked { path, holder, .. } => Error::locked(path, holder, message),
            Error::Interrupted { .. } => Error::interrupted(message),
            Error::OutOfMemory { .. } => Error::out_of_memory(message),
            Error::NoDevice { device, .. } => Error::no_device(device, message),
            Error::CannotWrite { path, .. } => Error::cannot_write(path, message),
            Error::Other(_) => return None,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotFound { message, .. }
            | Error::Unsupported { message, .. }
            | Error::BadInput { message, .. }
            | Error::Setting { message, .. }
            | Error::Exists { message, .. }
            | Error::Locked { message, .. }
            | Error::Interrupted { message }
            | Error::OutOfMemory { message }
            | Error::NoDevice { message, .. }
            | Error::CannotWrite { message, .. } => f.write_str(message),
            Error::Other(error) => write!(f, "{error:#}"),
        }
    }
}

/// Messages are whole: there is nothing below them to print.
impl std::error::Error for Error {}

impl From<anyhow::Error> for Error {
    /// The kind that the chain holds, outermost first, with the whole chain as its message.
    fn from(error: anyhow::Error) -> Error {
        let typed = error.downcast_ref::<Error>().and_then(|e| e.with_message(format!("{error:#}")));
        typed.unwrap_or(Error::Other(error))
    }
}

/// Gives a kind to errors that have none.
pub(crate) trait Kind<T> {
    /// An error without a kind becomes `kind` of its message; one that has a kind, or comes from the operating system, stays as it is.
    fn or_kind(self, kind: impl FnOnce(String) -> Error) -> anyhow::Result<T>;
}

impl<T> Kind<T> for anyhow::Result<T> {
    fn or_kind(self, kind: impl FnOnce(String) -> Error) -> anyhow::Result<T> {
        self.map_err(|error| {
            let known = error.downcast_ref::<Error>().is_some();
            let system = error.chain().any(|e| e.is::<std::io::Error>());
            if known || system { error } else { kind(format!("{error:#}")).into() }
        })
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow, bail};

    use super::*;

    #[test]
    fn a_kind_survives_every_context_and_takes_the_whole_message() {
        let fails = || -> anyhow::Result<()> { bail!(Error::unsupported("mamba", "model_type is mamba")) };
        let chain = fails().context("load model x").with_context(|| "generate").unwrap_err();
        assert_eq!(format!("{chain:#}"), "generate: load model x: model_type is mamba");
        match Error::from(chain) {
            Error::Unsupported { what, message } => {
                assert_eq!(
                    (what.as_str(), message.as_str()),
                    ("mamba", "generate: load model x: model_type is mamba")
                );
            }
            other => panic!("{other:?}"),
        }
        let io = std::io::Error::from(std::io::ErrorKind::NotFound);
        let chain = anyhow::Error::new(io).context(Error::not_found(Path::new("x"), "open x")).context("all");
        assert!(chain.chain().any(|e| e.is::<std::io::Error>()), "the cause stays in the chain");
        assert!(
            matches!(Error::from(chain), Error::NotFound { path, message } if path == Path::new("x") && message.starts_with("all: open x: "))
        );
    }

    #[test]
    fn an_error_gets_a_kind_once() {
        let kind = |e: anyhow::Error| Err::<(), _>(e).or_kind(|m| Error::bad_input("f:3", m)).unwrap_err();
        let error = kind(anyhow!("inner").context("outer"));
        assert_eq!(error.to_string(), "outer: inner");
        assert!(matches!(Error::from(error), Error::BadInput { place, .. } if place == "f:3"));
        let error = kind(Error::setting("train.lr", "no").into());
        assert!(matches!(Error::from(error), Error::Setting { .. }));
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert!(matches!(Error::from(kind(full.into())), Error::Other(_)));
    }

    #[test]
    fn codes_tell_what_may_be_run_again() {
        let codes = [
            (Error::locked(Path::new("x"), "1", ""), 75),
            (Error::interrupted(""), 130),
            (Error::out_of_memory(""), 69),
            (Error::no_device("cuda", ""), 69),
            (Error::setting("x", ""), 1),
            (Error::Other(anyhow!("x")), 1),
        ];
        for (error, code) in codes {
            assert_eq!(error.exit_code(), code, "{error:?}");
        }
    }
}
