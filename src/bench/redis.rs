//! A lane to a Redis server: GET, SET, MGET and MSET as arrays of bulk strings, answers in order.
//!
//! Only what the load needs of the protocol; an answer counts once its last byte is read. A
//! replicated write is a SET and a WAITAOF behind it: it counts once the server and a replica have
//! synced it.

use std::collections::VecDeque;

use anyhow::{Context as _, bail};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::lane::Done;
use super::workload::{Call, Kind};

/// Waits until this server and one replica have synced what came before, without a limit.
const WAITAOF: &[u8] = b"*4\r\n$7\r\nWAITAOF\r\n$1\r\n1\r\n$1\r\n1\r\n$1\r\n0\r\n";

/// Bytes asked for at a time.
const READ_BYTES: usize = 64 << 10;

/// One connection.
pub struct RedisLane {
    stream: TcpStream,
    value: Bytes,
    /// Whether a write waits for a replica.
    replicated: bool,
    unsent: BytesMut,
    unread: BytesMut,
    /// By id, and whether a WAITAOF follows.
    under_way: VecDeque<(u64, bool)>,
}

impl RedisLane {
    /// Connects to `redis://host:port` or `host:port`.
    pub async fn connect(endpoint: &str, value: Bytes, replicated: bool) -> anyhow::Result<Self> {
        let address = endpoint.split_once("://").map_or(endpoint, |(_, address)| address);
        let stream =
            TcpStream::connect(address).await.with_context(|| format!("connect {address}"))?;
        stream.set_nodelay(true)?;
        Ok(RedisLane {
            stream,
            value,
            replicated,
            unsent: BytesMut::new(),
            unread: BytesMut::with_capacity(READ_BYTES),
            under_way: VecDeque::new(),
        })
    }

    /// Queues a call; it leaves with the next read.
    pub fn start(&mut self, id: u64, call: &Call) -> anyhow::Result<()> {
        let (name, with_values): (&[u8], bool) = match call.kind {
            Kind::Get => (b"GET", false),
            Kind::Put => (b"SET", true),
            Kind::BatchGet => (b"MGET", false),
            Kind::BatchPut => (b"MSET", true),
            Kind::Peek | Kind::Step => bail!("Redis keeps state, it does not score"),
        };
        let parts = 1 + call.keys.len() * if with_values { 2 } else { 1 };
        self.unsent.extend_from_slice(format!("*{parts}\r\n").as_bytes());
        bulk(&mut self.unsent, name);
        for key in &call.keys {
            bulk(&mut self.unsent, key);
            if with_values {
                bulk(&mut self.unsent, &self.value);
            }
        }
        if with_values && self.replicated {
            // The SET's own answer comes first and is read with this one's.
            self.unsent.extend_from_slice(WAITAOF);
        }
        self.under_way.push_back((id, with_values && self.replicated));
        Ok(())
    }

    /// The next answer.
    pub async fn next(&mut self) -> anyhow::Result<Done> {
        while self.unsent.has_remaining() {
            self.stream.write_buf(&mut self.unsent).await?;
        }
        loop {
            let (id, waited) = *self.under_way.front().context("no call is under way")?;
            let found = match waited {
                true => parse_synced(&self.unread)?,
                false => parse(&self.unread)?,
            };
            if let Some((length, answer)) = found {
                self.unread.advance(length);
                self.under_way.pop_front();
                return Ok((id, answer));
            }
            self.unread.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.unread).await? == 0 {
                bail!("Redis closed the connection");
            }
        }
    }
}

/// The answers of a SET and of the WAITAOF behind it.
fn parse_synced(bytes: &[u8]) -> anyhow::Result<Option<(usize, Result<u64, String>)>> {
    let Some((set, written)) = parse(bytes)? else { return Ok(None) };
    let rest = &bytes[set..];
    let Some((length, waited)) = (if rest.is_empty() { None } else { parse(rest)? }) else {
        return Ok(None);
    };
    let synced = rest.starts_with(b"*2\r\n:1\r\n:") && !rest.starts_with(b"*2\r\n:1\r\n:0");
    let answer = match (written, waited) {
        (Ok(bytes), Ok(_)) if synced => Ok(bytes),
        (Ok(_), Ok(_)) => Err("the write was not synced here and on a replica".to_owned()),
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    Ok(Some((set + length, answer)))
}

fn bulk(out: &mut BytesMut, part: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
    out.extend_from_slice(part);
    out.extend_from_slice(b"\r\n");
}

/// The length of a whole answer at the start of `bytes`, and the bytes of values in it.
fn parse(bytes: &[u8]) -> anyhow::Result<Option<(usize, Result<u64, String>)>> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let (line, start) = (std::str::from_utf8(&bytes[1..end])?, end + 2);
    match bytes[0] {
        b'+' | b':' => Ok(Some((start, Ok(0)))),
        b'-' => Ok(Some((start, Err(line.to_owned())))),
        b'$' => {
            let Ok(length) = line.parse::<usize>() else {
                return Ok(Some((start, Err("the key is missing".to_owned()))));
            };
            let whole = start + length + 2;
            Ok((bytes.len() >= whole).then_some((whole, Ok(length as u64))))
        }
        b'*' => {
            let (mut at, mut sum) = (start, Ok(0));
            for _ in 0..line.parse::<usize>().context("an array's length")? {
                let Some((length, item)) =
                    (if at < bytes.len() { parse(&bytes[at..])? } else { None })
                else {
                    return Ok(None);
                };
                at += length;
                sum = sum.and_then(|sum| item.map(|item| sum + item));
            }
            Ok(Some((at, sum)))
        }
        other => bail!("Redis answered with type {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_whole_or_awaited() {
        let array = b"*2\r\n$3\r\nabc\r\n$2\r\nde\r\n";
        for length in 0..array.len() {
            assert!(parse(&array[..length]).unwrap().is_none(), "{length}");
        }
        assert_eq!(parse(array).unwrap(), Some((array.len(), Ok(5))));
        assert_eq!(parse(b"+OK\r\n$1").unwrap(), Some((5, Ok(0))));
        assert_eq!(parse(b"-ERR no\r\n").unwrap(), Some((9, Err("ERR no".to_owned()))));
        assert!(parse(b"$-1\r\n").unwrap().unwrap().1.is_err());
    }

    #[test]
    fn a_replicated_write_counts_once_it_is_synced_twice() {
        let whole = b"+OK\r\n*2\r\n:1\r\n:2\r\n";
        for length in 0..whole.len() {
            assert!(parse_synced(&whole[..length]).unwrap().is_none(), "{length}");
        }
        assert_eq!(parse_synced(whole).unwrap(), Some((whole.len(), Ok(0))));
        for lacking in [&b"+OK\r\n*2\r\n:1\r\n:0\r\n"[..], b"+OK\r\n*2\r\n:0\r\n:1\r\n"] {
            assert!(parse_synced(lacking).unwrap().unwrap().1.is_err());
        }
        assert!(parse_synced(b"-OOM\r\n*2\r\n:1\r\n:1\r\n").unwrap().unwrap().1.is_err());
    }
}
