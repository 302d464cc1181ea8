//! Settings of engine `openai`: a model behind an HTTP endpoint that speaks OpenAI's API.
use serde::{Deserialize, Serialize};

/// Which server, and how it is asked. The answers depend on the model, the stops and the extra fields; where the server stands and how fast it is asked
/// may change between runs.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RemoteSettings {
    /// Engine `openai`: address of an OpenAI-compatible API (vLLM, SGLang, llama.cpp's server, sdrrl serve ...), such as http://127.0.0.1:8000/v1. No
    /// other address is contacted: redirects are refused, and proxies of the environment are not used
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Engine `openai`: the model's name there, as its /v1/models lists it
    #[arg(long, value_name = "NAME")]
    pub remote_model: Option<String>,
    /// Engine `openai`: environment variable that holds the API key; the key itself is never written anywhere
    #[arg(long, value_name = "NAME")]
    pub api_key_env: Option<String>,
    /// Engine `openai`: requests under way at the same time; rows come in their order whatever this is
    #[arg(long, default_value_t = 16)]
    pub concurrency: usize,
    /// Engine `openai`: requests a minute at most, evenly spaced (0: no limit)
    #[arg(long, default_value_t = 0)]
    pub requests_per_minute: usize,
    /// Engine `openai`: how often a request is sent again after a lost connection, a broken reply, status 408, 425, 429 or 5xx; the pauses double from
    /// half a second, or are what Retry-After says
    #[arg(long, default_value_t = 5)]
    pub retries: usize,
    /// Engine `openai`: give up on a request after this many seconds
    #[arg(long, default_value_t = 300.0)]
    pub request_timeout: f64,
    /// Engine `openai`: text at which the server ends an answer, and which is no part of it (repeatable)
    #[arg(long)]
    pub stop: Vec<String>,
    /// Engine `openai`: more fields of every request, a JSON object such as {"chat_template_kwargs": {"enable_thinking": false}}
    #[arg(long, value_name = "JSON")]
    pub extra_body: Option<String>,
}

impl Default for RemoteSettings {
    fn default() -> RemoteSettings {
        RemoteSettings {
            endpoint: None,
            remote_model: None,
            api_key_env: None,
            concurrency: 16,
            requests_per_minute: 0,
            retries: 5,
            request_timeout: 300.0,
            stop: vec![],
            extra_body: None,
        }
    }
}

impl RemoteSettings {
    /// Whether all is as it is where nothing is set.
    pub fn is_unset(&self) -> bool {
        *self == RemoteSettings::default()
    }
}
