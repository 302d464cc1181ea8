//! HTTP/1.1 as far as the server needs it, over blocking sockets: `httparse` reads heads, and everything is bounded in bytes and in time. One request a
//! connection.
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Bytes of a request line with its headers.
const HEAD: usize = 32 << 10;
/// Headers.
const HEADERS: usize = 64;
/// How long a client may take to send its request.
const SENDING: Duration = Duration::from_secs(30);
/// What is read and thrown away behind a refused request, so that its client gets to see why: bytes and time.
const DRAINED: (u64, Duration) = (16 << 20, Duration::from_secs(2));

/// A request that has come whole.
#[derive(Debug)]
pub(super) struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header; names are in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// Why there is no reply, in the form of OpenAI's errors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into() }
    }

    pub fn to_json(&self) -> Value {
        let kind = match self.status {
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": null, "code": self.code}})
    }
}

/// Reads a request whose body has at most `max_body` bytes.
pub(super) fn read(stream: &mut TcpStream, max_body: usize) -> Result<Request, Refusal> {
    let until = Instant::now() + SENDING;
    let mut bytes = vec![];
    let (mut request, length, start) = loop {
        if let Some(head) = head(&bytes)? {
            break head;
        }
        if bytes.len() >= HEAD {
            let long = format!("the request's head has more than {HEAD} bytes");
            return Err(Refusal::new(431, "head_too_large", long));
        }
        let left = HEAD - bytes.len();
        receive(stream, &mut bytes, left, until)?;
    };
    if length > max_body {
        let long = format!("the body has {length} bytes, at most {max_body} are taken (--max-body)");
        return Err(Refusal::new(413, "body_too_large", long));
    }
    if request.header("expect").is_some_and(|e| e.eq_ignore_ascii_case("100-continue")) {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").map_err(|e| gone(&e))?;
    }
    request.body = bytes.split_off(start.min(bytes.len()));
    while request.body.len() < length {
        let left = length - request.body.len();
        receive(stream, &mut request.body, left, until)?;
    }
    request.body.truncate(length);
    Ok(request)
}

/// The request, its body's length and where that begins; `None` while the head is not whole.
fn head(bytes: &[u8]) -> Result<Option<(Request, usize, usize)>, Refusal> {
    let bad = |what: String| Refusal::new(400, "bad_request", what);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let start = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(start)) => start,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(e) => return Err(bad(format!("the request is no HTTP/1.1: {e}"))),
    };
    let text = |v: &[u8]| String::from_utf8_lossy(v).trim().to_string();
    let headers: Vec<(String, String)> =
        parsed.headers.iter().map(|h| (h.name.to_ascii_lowercase(), text(h.value))).collect();
    let path = parsed.path.unwrap_or_default();
    let request = Request {
        method: parsed.method.unwrap_or_default().to_string(),
        path: path.split('?').next().unwrap_or_default().to_string(),
        headers,
        body: vec![],
    };
    if request.header("transfer-encoding").is_some() {
        let how = "a body is taken with Content-Length, not with Transfer-Encoding";
        return Err(Refusal::new(411, "length_required", how));
    }
    let lengths = request.headers.iter().filter(|(name, _)| name == "content-length");
    let lengths: Vec<&str> = lengths.map(|(_, v)| v.as_str()).collect();
    let length = match lengths[..] {
        [] if request.method == "POST" => {
            return Err(Refusal::new(411, "length_required", "a POST needs a Content-Length"));
        }
        [] => 0,
        [one] if one.bytes().all(|b| b.is_ascii_digit()) => one.parse().unwrap_or(usize::MAX),
        _ => return Err(bad(format!("Content-Length is {lengths:?}: one number was expected"))),
    };
    Ok(Some((request, length, start)))
}

/// Appends what comes, `most` bytes at most and one at least.
fn receive(stream: &mut TcpStream, to: &mut Vec<u8>, most: usize, until: Instant) -> Result<(), Refusal> {
    let late = || {
        let seconds = SENDING.as_secs();
        Refusal::new(408, "request_timeout", format!("the request was not whole after {seconds} s"))
    };
    let left = until.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()).ok_or_else(late)?;
    stream.set_read_timeout(Some(left)).map_err(|e| gone(&e))?;
    let mut buffer = [0; 8 << 10];
    let most = most.min(buffer.len());
    match stream.read(&mut buffer[..most]) {
        Ok(0) => Err(Refusal::new(400, "bad_request", "the connection ended before the request did")),
        Ok(n) => {
            to.extend_from_slice(&buffer[..n]);
            Ok(())
        }
        Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
            Err(late())
        }
        Err(e) => Err(gone(&e)),
    }
}

fn gone(e: &std::io::Error) -> Refusal {
    Refusal::new(400, "bad_request", format!("the connection failed: {e}"))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Internal Server Error",
    }
}

/// The head of a reply whose body ends with the connection, or has `length` bytes.
fn reply_head(status: u16, kind: &str, length: Option<usize>) -> String {
    let length = length.map(|n| format!("Content-Length: {n}\r\n")).unwrap_or_default();
    let again = if matches!(status, 429 | 503) { "Retry-After: 1\r\n" } else { "" };
    format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\n{length}{again}Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
        reason(status)
    )
}

/// Sends a whole reply.
pub(super) fn reply(stream: &mut TcpStream, status: u16, kind: &str, body: &[u8]) -> std::io::Result<()> {
    let mut all = reply_head(status, kind, Some(body.len())).into_bytes();
    all.extend_from_slice(body);
    stream.write_all(&all)
}

/// Begins a reply of server-sent events.
pub(super) fn begin_events(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(reply_head(200, "text/event-stream; charset=utf-8", None).as_bytes())
}

/// Sends one event.
pub(super) fn event(stream: &mut TcpStream, data: &str) -> std::io::Result<()> {
    stream.write_all(format!("data: {data}\n\n").as_bytes())
}

/// Whether the client has closed its connection.
pub(super) fn is_gone(stream: &TcpStream) -> bool {
    let quick = stream.set_read_timeout(Some(Duration::from_millis(1)));
    quick.is_err() || matches!(stream.peek(&mut [0]), Ok(0))
}

/// Ends the connection; what the client still sends is thrown away for a while, since a connection that is closed with unread bytes takes the reply with it.
pub(super) fn end(mut stream: TcpStream) {
    let until = Instant::now() + DRAINED.1;
    let _ = stream.shutdown(Shutdown::Write);
    let (mut buffer, mut left) = (vec![0; 64 << 10], DRAINED.0);
    while left > 0 && Instant::now() < until {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => left = left.saturating_sub(n as u64),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heads_are_read_and_others_are_refused_by_name() {
        let whole = b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
        let (request, length, start) = head(whole).unwrap().unwrap();
        assert_eq!((request.path.as_str(), length, &whole[start..]), ("/v1/x", 3, &b"abc"[..]));
        assert!((0..start - 1).all(|n| head(&whole[..n]).unwrap().is_none()));
        for (text, code) in [
            ("\u{1}\r\n\r\n", "bad_request"),
            ("GET / HTTP/1.1\r\nbad header\r\n\r\n", "bad_request"),
            ("POST / HTTP/1.1\r\n\r\n", "length_required"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "length_required"),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", "bad_request"),
            ("POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n", "bad_request"),
        ] {
            assert_eq!(head(text.as_bytes()).unwrap_err().code, code, "{text:?}");
        }
        // More than any number is more than any limit.
        let long = "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n";
        assert_eq!(head(long.as_bytes()).unwrap().unwrap().1, usize::MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head_a_part_of_one_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = head(&bytes);
        }
    }
}
