//! One exchange with the server, and what its failures mean: whether the request is sent again, and what a person is told.
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Map, Value};
use ureq::{
    Agent, Body,
    http::{Response, header},
};

use super::{
    endpoint::{Endpoint, Key},
    pace::retry_after,
};
use crate::{data::json, error::Error, recipe::remote::RemoteSettings};

/// The longest reply that is read, bytes.
const LONGEST: u64 = 16 << 20;
/// How long an idle connection is used again: servers drop theirs after five seconds or more.
const IDLE: Duration = Duration::from_secs(4);

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub message: String,
    pub then: Then,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Then {
    /// It would fail again, and so would the others.
    End,
    /// The server has nothing of that path.
    Absent,
    /// It would fail again, by what is in this request.
    LeaveOut,
    /// It is sent again, after the pause that the server asks for or one of our own.
    Again(Option<Duration>),
}

impl Failure {
    pub fn new(then: Then, message: impl Into<String>) -> Failure {
        Failure { message: message.into(), then }
    }

    /// A reply that a server in order would not give.
    pub fn broken(message: impl Into<String>) -> Failure {
        Failure::new(Then::Again(None), message)
    }
}

/// Fields of a request that are set by settings of their own.
const OWN: [&str; 11] = [
    "model",
    "messages",
    "n",
    "stream",
    "stop",
    "seed",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
];

/// A server, and how it is asked.
pub(super) struct Client {
    agent: Agent,
    pub endpoint: Endpoint,
    pub key: Key,
    /// The model's name.
    pub model: String,
    /// More fields of every request.
    pub extra: Map<String, Value>,
}

impl Client {
    /// Nothing is contacted.
    ///
    /// # Errors
    /// [`Error::Setting`]: what is missing or cannot be.
    pub fn new(s: &RemoteSettings) -> Result<Client> {
        let missing = |key: &str, what: &str| {
            Error::setting(key, format!("{key} is not set: engine `openai` needs {what}"))
        };
        let endpoint = s.endpoint.as_deref();
        let endpoint = Endpoint::parse(
            endpoint.ok_or_else(|| missing("endpoint", "an address such as http://127.0.0.1:8000/v1"))?,
        )?;
        let model = s.remote_model.clone().filter(|name| !name.is_empty());
        let model = model.ok_or_else(|| {
            missing("remote-model", "the model's name, as /v1/models of the endpoint lists it")
        })?;
        let extra = s.extra_body.as_deref().map(serde_json::from_str::<Map<String, Value>>);
        let extra = extra.transpose().map_err(|e| {
            let message = format!("extra-body is no JSON object ({e}): something like {{\"repetition_penalty\": 1.1}} was expected");
            Error::setting("extra-body", message)
        })?;
        let extra = extra.unwrap_or_default();
        let own = extra.keys().find(|key| OWN.contains(&key.as_str()));
        let taken = || format!("extra-body has `{}`, which other settings decide", own.map_or("", |k| k));
        ensure!(own.is_none(), Error::setting("extra-body", taken()));
        Ok(Client { agent: agent(s), endpoint, key: Key::read(s.api_key_env.as_deref())?, model, extra })
    }

    /// The JSON that comes back from `path`: a GET, or a POST of `body`.
    pub fn exchange(&self, path: &str, body: Option<&str>) -> Result<Value, Failure> {
        let url = format!("{}{path}", self.endpoint.base);
        let key = self.key.bearer();
        let sent = match body {
            Some(body) => {
                let request = self.agent.post(&url).header(header::CONTENT_TYPE, "application/json");
                key.iter().fold(request, |r, key| r.header(header::AUTHORIZATION, key)).send(body)
            }
            None => {
                let request = self.agent.get(&url);
                key.iter().fold(request, |r, key| r.header(header::AUTHORIZATION, key)).call()
            }
        };
        let mut response = sent.map_err(|e| self.lost(e))?;
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(LONGEST).read_to_vec();
        if !(200..300).contains(&status) {
            return Err(self.refusal(status, &response, &text.unwrap_or_default()));
        }
        let text = text.map_err(|e| self.lost(e))?;
        if self.key.is_in(&String::from_utf8_lossy(&text)) {
            return Err(Failure::new(Then::End, "the reply repeats the API key: nothing of it is taken"));
        }
        json::check(&text).map_err(|e| Failure::new(Then::End, format!("the reply has {e}")))?;
        let value: Value = serde_json::from_slice(&text).map_err(|e| match e.is_eof() {
            true => {
                Failure::broken(format!("the reply is cut off after {} bytes: JSON was expected", text.len()))
            }
            false => Failure::new(Then::End, self.no_json(&response, &text, &e)),
        })?;
        // Written with escapes it may have passed above.
        match self.key.is_in(&value.to_string()) {
            true => Err(Failure::new(Then::End, "the reply repeats the API key: nothing of it is taken")),
            false => Ok(value),
        }
    }

    fn no_json(&self, response: &Response<Body>, text: &[u8], why: &serde_json::Error) -> String {
        let kind = self.key.cleaned(header_of(response, "content-type"));
        let begin = self.key.cleaned(&String::from_utf8_lossy(&text[..text.len().min(200)]));
        format!(
            "the reply is no JSON ({why}) but {kind:?}, {begin:?}: is there an OpenAI-compatible API at {}?",
            self.endpoint.base
        )
    }

    /// What became of a connection.
    fn lost(&self, error: ureq::Error) -> Failure {
        use ureq::Error::{BodyExceedsLimit, HostNotFound, LargeResponseHeader, Timeout};
        let host = &self.endpoint.host;
        let then = Then::Again(None);
        match error {
            Timeout(_) => Failure::new(then, format!("{host} did not answer in time (request-timeout)")),
            HostNotFound => Failure::new(then, format!("there is no machine of the name {host}")),
            BodyExceedsLimit(_) => {
                Failure::new(Then::End, format!("the reply has more than {} MiB", LONGEST >> 20))
            }
            LargeResponseHeader(..) => Failure::new(Then::End, "the reply's headers are too long"),
            other => {
                let what = self.key.cleaned(&other.to_string());
                if self.endpoint.base.starts_with("https:") && what.contains("InvalidContentType") {
                    let message = format!(
                        "what answers at {host} speaks no TLS, as https needs it ({what}): is its address one of http://?"
                    );
                    return Failure::new(Then::End, message);
                }
                if what.contains("certificate") {
                    let message = format!(
                        "{host} is not trusted ({what}): SSL_CERT_FILE names a file of other roots than the system's"
                    );
                    return Failure::new(Then::End, message);
                }
                Failure::new(
                    then,
                    format!(
                        "the connection to {host} failed ({what}); proxies of the environment are not used"
                    ),
                )
            }
        }
    }

    /// What a status other than success means.
    fn refusal(&self, status: u16, response: &Response<Body>, text: &[u8]) -> Failure {
        let said = said(text);
        let said = if said.is_empty() { String::new() } else { format!(": {}", self.key.cleaned(&said)) };
        let told = format!("the server answered with status {status}{said}");
        match status {
            300..400 => {
                let to = self.key.cleaned(header_of(response, "location"));
                let to = to.split(['?', '#']).next().unwrap_or_default();
                let message = format!(
                    "the server sends on to {to:?} (status {status}), and no address is contacted but the one that was named: give that one as endpoint if you trust it"
                );
                Failure::new(Then::End, message)
            }
            401 | 403 => Failure::new(Then::End, format!("{told}; {}", self.key.advice())),
            400 | 413 | 422 => Failure::new(Then::LeaveOut, told),
            408 | 425 | 429 | 500 | 502..600 => {
                Failure::new(Then::Again(retry_after(header_of(response, "retry-after"))), told)
            }
            404 | 405 | 501 => Failure::new(
                Then::Absent,
                format!("{told}; is {} the address of the API?", self.endpoint.base),
            ),
            _ => Failure::new(Then::End, told),
        }
    }
}

/// No proxy, no redirect, no address but the endpoint's.
fn agent(s: &RemoteSettings) -> Agent {
    let config = Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs_f64(s.request_timeout)))
        .max_idle_age(IDLE)
        .max_idle_connections(s.concurrency)
        .max_idle_connections_per_host(s.concurrency)
        .user_agent(concat!("sdrrl/", env!("CARGO_PKG_VERSION")));
    #[cfg(feature = "https")]
    let config = config.tls_config(
        ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build(),
    );
    config.build().into()
}

fn header_of<'a>(response: &'a Response<Body>, name: &str) -> &'a str {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// What a server says about an error: OpenAI's form, FastAPI's, or the beginning of whatever else it is.
fn said(text: &[u8]) -> String {
    let value: Value = serde_json::from_slice(text).unwrap_or_default();
    let places = [&value["error"]["message"], &value["error"], &value["message"], &value["detail"]];
    match places.into_iter().find_map(Value::as_str) {
        Some(message) => message.to_string(),
        None => String::from_utf8_lossy(&text[..text.len().min(400)]).into_owned(),
    }
}
