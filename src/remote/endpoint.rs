//! The one address that is contacted, and the key that it is given. Neither an error nor a file ever holds the key, or a password of an address.
use anyhow::{Result, bail, ensure};
use ureq::http::Uri;

use crate::{
    error::Error,
    report::out::{note, shown},
};

/// An address of an API: `/chat/completions` and `/models` are below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Without a `/` at its end.
    pub base: String,
    /// The machine, for messages.
    pub host: String,
    /// What is sent there can be read on the way.
    pub open: bool,
}

impl Endpoint {
    /// From what a person wrote. An address without a path means its `/v1`, where every such server has the API.
    ///
    /// # Errors
    /// [`Error::Setting`]: no URL of a machine, one with a password, a query or a fragment; `https` in a build without it.
    pub fn parse(text: &str) -> Result<Endpoint> {
        // What stands before an @ may be a password.
        let told = text.rsplit_once('@').map_or(text.to_string(), |(_, rest)| format!("...@{rest}"));
        let wrong = |why: &str| {
            let message = format!(
                "endpoint {}: {why}; an address such as http://127.0.0.1:8000/v1 was expected",
                shown(&told)
            );
            Error::setting("endpoint", message)
        };
        let uri: Uri = text.trim().parse().map_err(|e| match text.is_ascii() {
            true => wrong(&format!("no URL ({e})")),
            false => wrong(
                "it has other characters than ASCII's: write the name of the machine as DNS has it (xn--...)",
            ),
        })?;
        let (scheme, authority) = (uri.scheme_str().unwrap_or_default(), uri.authority());
        ensure!(
            ["http", "https"].contains(&scheme),
            wrong("it begins neither with http:// nor with https://")
        );
        let host = uri.host().unwrap_or_default();
        let authority = authority.map_or("", |a| a.as_str());
        ensure!(
            !authority.contains('@'),
            wrong(
                "it has a user or a password: put the key into an environment variable, and name that (api-key-env)"
            )
        );
        let port = authority.strip_prefix(host).unwrap_or_default();
        ensure!(!host.is_empty(), wrong("it names no machine"));
        ensure!(
            port.is_empty() || uri.port_u16().is_some_and(|p| p > 0),
            wrong("its port is no number from 1 to 65535")
        );
        ensure!(uri.query().is_none() && !text.contains('#'), wrong("it has a query or a fragment"));
        if scheme == "https" && !cfg!(feature = "https") {
            let message =
                format!("endpoint {told}: this build speaks no https: build it with --features https");
            bail!(Error::unsupported("https", message));
        }
        let path = uri.path().trim_end_matches('/');
        let path = if path.is_empty() { "/v1" } else { path };
        let near = host == "localhost" || host == "[::1]" || host.starts_with("127.");
        Ok(Endpoint {
            base: format!("{scheme}://{authority}{path}"),
            host: authority.to_string(),
            open: scheme == "http" && !near,
        })
    }
}

/// A key of an API, if there is one.
pub(super) struct Key {
    variable: Option<String>,
    secret: Option<String>,
}

/// A shorter key is none that anybody must keep (`EMPTY`, `none`): answers may hold such a word.
const SECRET: usize = 8;

impl Key {
    /// From the environment variable of that name.
    ///
    /// # Errors
    /// [`Error::Setting`]: the variable is not set, is empty, or holds what no header can.
    pub fn read(variable: Option<&str>) -> Result<Key> {
        let Some(name) = variable else { return Ok(Key { variable: None, secret: None }) };
        let wrong = |why: &str| {
            Error::setting(
                "api-key-env",
                format!("api-key-env: the environment variable {} {why}", shown(name)),
            )
        };
        let plain = !name.is_empty() && !name.contains(['=', '\0']);
        let value = std::env::var_os(name)
            .filter(|_| plain)
            .ok_or_else(|| wrong("is not set: export it, or leave api-key-env out where no key is needed"))?;
        let secret = value.to_str().unwrap_or_default();
        ensure!(
            !secret.is_empty() && secret.bytes().all(|b| b.is_ascii_graphic()),
            wrong("holds no key: visible ASCII characters without spaces were expected")
        );
        Ok(Key { variable: Some(name.to_string()), secret: Some(secret.to_string()) })
    }

    /// The value of the header `Authorization`.
    pub fn bearer(&self) -> Option<String> {
        self.secret.as_ref().map(|secret| format!("Bearer {secret}"))
    }

    /// What a server said, fit for a message: without the key, on one line, not long.
    pub fn cleaned(&self, text: &str) -> String {
        let text = self
            .secret
            .as_ref()
            .map_or(text.to_string(), |secret| text.replace(secret.as_str(), "[the key]"));
        let words: Vec<&str> = text.split_whitespace().collect();
        let line = words.join(" ");
        let cut: String = line.chars().take(300).collect();
        let more = if cut.len() < line.len() { " ..." } else { "" };
        format!("{}{more}", shown(&cut))
    }

    /// Whether a text that would be kept holds the key.
    pub fn is_in(&self, text: &str) -> bool {
        self.secret.as_ref().is_some_and(|secret| secret.len() >= SECRET && text.contains(secret.as_str()))
    }

    /// What to do about a server that lets nobody in.
    pub fn advice(&self) -> String {
        match &self.variable {
            Some(name) => format!("is the key in the environment variable {name} the right one?"),
            None => "no key was sent: api-key-env names the environment variable that holds it".into(),
        }
    }

    /// Says that others may read the key on its way.
    pub fn warn(&self, endpoint: &Endpoint) {
        if self.secret.is_some() && endpoint.open {
            note!(
                "warning: the key is sent to {} by http, where others on the way can read it",
                endpoint.host
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_read_and_others_are_refused_without_their_password() {
        for (text, base) in [
            ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
            ("http://localhost:8000", "http://localhost:8000/v1"),
            ("http://[::1]:8000/", "http://[::1]:8000/v1"),
            ("http://node-7/api/v3/", "http://node-7/api/v3"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().base, base);
        }
        assert!(
            !Endpoint::parse("http://127.0.0.1:1").unwrap().open
                && Endpoint::parse("http://node").unwrap().open
        );
        for (text, part) in [
            ("", "no URL"),
            ("127.0.0.1:8000", "neither with http://"),
            ("ftp://a/v1", "neither with http://"),
            ("http://", "no URL"),
            ("http://a:99999/v1", "port"),
            ("http://a:/v1", "port"),
            ("http://a/v1?key=x", "query"),
            ("http://a/v1#x", "fragment"),
            ("http://münchen.example/v1", "ASCII"),
            ("http://me:hunter2@a/v1", "a user or a password"),
            ("http://me:hunter2 @a/v1", "no URL"),
        ] {
            let error = format!("{:#}", Endpoint::parse(text).unwrap_err());
            assert!(error.contains(part) && !error.contains("hunter2"), "{text}: {error}");
        }
        assert_eq!(Endpoint::parse("https://a/v1").is_ok(), cfg!(feature = "https"));
    }

    #[test]
    fn a_key_is_in_no_message_and_short_ones_are_no_secret() {
        let key = |secret: &str| Key { variable: Some("X".into()), secret: Some(secret.into()) };
        assert_eq!(key("sk-12345678").cleaned("bad\n key sk-12345678!"), "bad key [the key]!");
        assert!(key("sk-12345678").is_in("a sk-12345678 b") && !key("none").is_in("none"));
        assert!(
            Key::read(Some("NO_SUCH_VARIABLE_HERE")).is_err()
                && Key::read(Some("")).is_err()
                && Key::read(Some("a=b")).is_err()
        );
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_refused(text in "\\PC{0,40}", rest in "[a-z:/@#?\\[\\]0-9.]{0,20}") {
            let _ = Endpoint::parse(&text);
            let _ = Endpoint::parse(&format!("http://{rest}"));
        }
    }
}
