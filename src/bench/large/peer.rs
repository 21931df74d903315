//! The same states in a Redis: one call at a time on each connection, answers read to their last
//! byte, refusals as Redis says them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use futures::future::try_join_all;
use parking_lot::Mutex;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::Options;
use super::content::{Noise, PIECE_BYTES};
use super::plan::{self, RANGE_BYTES};
use super::tally::Tally;

/// Bytes asked for at a time.
const READ_BYTES: usize = 256 << 10;

struct Redis {
    stream: BufReader<TcpStream>,
    scratch: Vec<u8>,
}

/// Bytes of the value that was answered, or what the refusal says.
type Reply = Result<u64, String>;

impl Redis {
    async fn connect(endpoint: &str) -> anyhow::Result<Self> {
        let address = endpoint.split_once("://").map_or(endpoint, |(_, address)| address);
        let stream =
            TcpStream::connect(address).await.with_context(|| format!("connect {address}"))?;
        stream.set_nodelay(true)?;
        let stream = BufReader::with_capacity(READ_BYTES, stream);
        Ok(Redis { stream, scratch: vec![0; READ_BYTES] })
    }

    async fn set(
        &mut self,
        key: &[u8],
        noise: &Noise,
        salt: u64,
        bytes: u64,
    ) -> anyhow::Result<Reply> {
        let mut head = format!("*3\r\n$3\r\nSET\r\n${}\r\n", key.len()).into_bytes();
        head.extend_from_slice(key);
        head.extend_from_slice(format!("\r\n${bytes}\r\n").as_bytes());
        self.stream.write_all(&head).await?;
        let mut sent = 0;
        while sent < bytes {
            let left = (bytes - sent).min(PIECE_BYTES as u64) as usize;
            let piece = noise.slice(salt, sent, left);
            self.stream.write_all(&piece).await?;
            sent += piece.len() as u64;
        }
        self.stream.write_all(b"\r\n").await?;
        self.reply().await
    }

    async fn ask(&mut self, words: &[&str]) -> anyhow::Result<Reply> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.stream.write_all(command.as_bytes()).await?;
        self.reply().await
    }

    async fn reply(&mut self) -> anyhow::Result<Reply> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line).await? > 0, "Redis closed the connection");
        let rest = line.get(1..).unwrap_or_default().trim_end();
        match line.as_bytes()[0] {
            b'+' | b':' => Ok(Ok(0)),
            b'-' => Ok(Err(rest.to_owned())),
            b'$' if rest == "-1" => Ok(Err("the key is missing".to_owned())),
            b'$' => {
                let bytes: u64 = rest.parse().context("a value's length")?;
                let mut left = bytes as usize + 2;
                while left > 0 {
                    let room = left.min(READ_BYTES);
                    let read = self.stream.read(&mut self.scratch[..room]).await?;
                    ensure!(read > 0, "Redis closed the connection");
                    left -= read;
                }
                Ok(Ok(bytes))
            }
            other => bail!("Redis answered with type {other}"),
        }
    }
}

/// The first refusal.
struct Refusal {
    message: String,
    /// Of values set before it.
    bytes: u64,
    seconds: f64,
    state_bytes: u64,
}

/// What all connections count.
#[derive(Default)]
struct Counted {
    next: AtomicUsize,
    set: AtomicU64,
    set_bytes: AtomicU64,
    refused: AtomicU64,
    first: Mutex<Option<Refusal>>,
}

/// Sets the states of a mixed load in its order until all were tried or the time is over.
pub async fn load(options: &Options) -> anyhow::Result<Json> {
    let classes = Arc::new(plan::classes(options.total_bytes));
    let calls = Arc::new(plan::calls(&classes, options.seed));
    let (noise, counted) = (Noise::new(options.seed), Arc::new(Counted::default()));
    let started = Instant::now();
    let until = started + options.duration;
    let workers = (0..options.workers).map(|_| {
        let (classes, calls) = (classes.clone(), calls.clone());
        let (noise, counted, endpoint) = (noise.clone(), counted.clone(), options.endpoint.clone());
        tokio::spawn(async move {
            let mut redis = Redis::connect(&endpoint).await?;
            while Instant::now() < until
                && let Some(ids) = calls.get(counted.next.fetch_add(1, Relaxed))
            {
                for id in ids {
                    let bytes = classes[usize::from(id.class)].bytes;
                    let reply = redis.set(&id.key(), &noise, id.salt(), bytes).await?;
                    counted.take(reply, bytes, started);
                }
            }
            anyhow::Ok(())
        })
    });
    for worker in try_join_all(workers).await? {
        worker?;
    }
    let states: u64 = classes.iter().map(|class| class.states).sum();
    let first = counted.first.lock().take().map(|refusal| {
        json!({
            "message": refusal.message, "after_bytes": refusal.bytes,
            "after_seconds": refusal.seconds, "state_bytes": refusal.state_bytes,
        })
    });
    Ok(json!({
        "seconds": started.elapsed().as_secs_f64(),
        "states": states,
        "set": counted.set.load(Relaxed),
        "set_bytes": counted.set_bytes.load(Relaxed),
        "refused": counted.refused.load(Relaxed),
        "first_refusal": first,
    }))
}

impl Counted {
    fn take(&self, reply: Reply, state_bytes: u64, started: Instant) {
        match reply {
            Ok(_) => {
                self.set.fetch_add(1, Relaxed);
                self.set_bytes.fetch_add(state_bytes, Relaxed);
            }
            Err(message) => {
                self.refused.fetch_add(1, Relaxed);
                let (bytes, seconds) =
                    (self.set_bytes.load(Relaxed), started.elapsed().as_secs_f64());
                let refusal = Refusal { message, bytes, seconds, state_bytes };
                self.first.lock().get_or_insert(refusal);
            }
        }
    }
}

/// Sets `keys` values and reads them whole to their last byte, and 4 KiB of each.
pub async fn whole(options: &Options) -> anyhow::Result<Json> {
    let mut redis = Redis::connect(&options.endpoint).await?;
    let noise = Noise::new(options.seed);
    let key = |rank: u64| format!("of-{}-{rank:07}", options.state_bytes);
    for rank in 0..options.keys {
        let reply = redis.set(key(rank).as_bytes(), &noise, rank, options.state_bytes).await?;
        if let Err(message) = reply {
            bail!("set: {message}");
        }
    }
    let started = Instant::now();
    let mut tally = Tally::default();
    for number in 0..options.count {
        if started.elapsed() > options.duration {
            break;
        }
        let key = key(number % options.keys);
        let since = Instant::now();
        match redis.ask(&["GET", &key]).await? {
            Ok(bytes) => tally.answered("whole", since, bytes),
            Err(message) => bail!("get: {message}"),
        }
        let (first, last) = (options.state_bytes / 2, options.state_bytes / 2 + RANGE_BYTES - 1);
        let since = Instant::now();
        match redis.ask(&["GETRANGE", &key, &first.to_string(), &last.to_string()]).await? {
            Ok(bytes) => tally.answered("range", since, bytes),
            Err(message) => bail!("getrange: {message}"),
        }
    }
    Ok(tally.json(started.elapsed()))
}
