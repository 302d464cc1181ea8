//! What ranks say to each other beside NCCL: small messages of JSON, each behind its length.
use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What every message begins with, before its length: a stranger at the port is told from a rank.
const MAGIC: [u8; 4] = *b"sdrr";
/// Bytes of a message at most.
const MOST: usize = 1 << 20;

/// What a rank shows before training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Which rank it takes itself for, and of how many.
    pub rank: usize,
    /// Of how many.
    pub size: usize,
    /// Its machine.
    pub host: String,
    /// The name of its device, and what tells that from others on the machine.
    pub device: [String; 2],
    /// What it is about to train, from what: version, settings, hashes of data and model.
    pub work: Value,
    /// Why it cannot train.
    pub failed: Option<String>,
}

/// How a rank is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Doing {
    /// Computes.
    #[default]
    Computing,
    /// Waits for the others in a collective.
    Waiting,
    /// Does what the others wait for, however long it takes: evaluates, writes.
    Alone,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// A rank's first.
    Hello(Box<Hello>),
    /// Rank 0: begin. NCCL's id, and the machines of all ranks.
    Go {
        /// Its bytes.
        id: Vec<u8>,
        /// By rank.
        hosts: Vec<String>,
    },
    /// Rank 0: there is nothing to do.
    Nothing,
    /// Rank 0: end, somebody has failed; it has been said.
    End,
    /// A rank is alive.
    Beat {
        /// Steps done.
        step: u64,
        /// What it does.
        doing: Doing,
        /// Seconds since it began to.
        since: u64,
    },
    /// A rank has failed.
    Failed {
        /// Steps done.
        step: u64,
        /// Why.
        message: String,
    },
    /// A rank is done.
    Done,
}

/// Sends a message; the stream's own timeout bounds it.
pub fn send(mut stream: &TcpStream, message: &Message) -> Result<()> {
    let body = serde_json::to_vec(message)?;
    ensure!(body.len() <= MOST, "a message of {} bytes is too long", body.len());
    let mut frame = MAGIC.to_vec();
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(body);
    stream.write_all(&frame).context("send to another rank")
}

/// The next message; none where the other end has closed the connection.
///
/// # Errors
/// Nothing came within the stream's timeout; bytes that are no message.
pub fn receive(mut stream: &TcpStream) -> Result<Option<Message>> {
    let mut head = [0u8; 8];
    match stream.read_exact(&mut head) {
        Ok(()) => {}
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e).context("hear from another rank"),
    }
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    if head[..4] != MAGIC || length > MOST {
        bail!("what connected is no rank of this program");
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).context("hear from another rank")?;
    Ok(Some(serde_json::from_slice(&body).context("a message of another rank, of another version?")?))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::Duration};

    use super::*;

    #[test]
    fn messages_arrive_and_others_are_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let pair = || {
            let one = TcpStream::connect(address).unwrap();
            let (two, _) = listener.accept().unwrap();
            two.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            (one, two)
        };
        let (one, two) = pair();
        for message in [Message::Go { id: vec![1; 128], hosts: vec!["a".into()] }, Message::End] {
            send(&one, &message).unwrap();
            assert_eq!(receive(&two).unwrap(), Some(message));
        }
        assert!(receive(&two).is_err(), "silence ends at the timeout");
        drop(one);
        assert_eq!(receive(&two).unwrap(), None);
        for wrong in [&b"GET / HTTP/1.1\r\n"[..], b"sdrr\xff\xff\xff\xff", b"sdrr\x02\0\0\0{}"] {
            let (mut one, two) = pair();
            one.write_all(wrong).unwrap();
            assert!(receive(&two).is_err(), "{wrong:?}");
        }
    }
}
