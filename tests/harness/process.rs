//! One node's process: started, watched until it's ready, stopped in every way there is.
//!
//! What it logs goes to a file, so that a test that fails can show the end of it, and so that
//! nothing waits for a reader.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::oneshot;

/// Where a node that is ready listens.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub peer: SocketAddr,
}

/// A node's process.
pub struct Process {
    child: Child,
    ready: Option<oneshot::Receiver<Ready>>,
    log: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    /// Starts a `serve` that logs JSON to standard error; appends all it logs to a file.
    pub fn spawn(mut command: Command, log: &Path) -> Process {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut file = File::options().create(true).append(true).open(log).unwrap();
        let (tell, ready) = oneshot::channel();
        let log = std::thread::spawn(move || {
            let mut tell = Some(tell);
            for line in lines.map_while(Result::ok) {
                writeln!(file, "{line}").unwrap();
                if tell.is_some()
                    && let Some(ready) = ready_of(&line)
                {
                    // Nobody may be waiting for it any more.
                    let _ = tell.take().unwrap().send(ready);
                }
            }
        });
        Process { child, ready: Some(ready), log: Some(log) }
    }

    /// Where it listens, once it's ready; `None`: it ended before.
    pub async fn ready(&mut self) -> Option<Ready> {
        self.ready.take().expect("asked once").await.ok()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// kill -9: nothing is flushed, nothing is said.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.end();
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.end()
    }

    /// Waits until it has ended by itself.
    pub fn ended(mut self) -> ExitStatus {
        self.end()
    }

    /// It stands still, with its connections open.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    fn end(&mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        if let Some(log) = self.log.take() {
            log.join().unwrap();
        }
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone if the test ended it itself. A process that stands still can be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ready_of(line: &str) -> Option<Ready> {
    let json: serde_json::Value = serde_json::from_str(line).ok()?;
    let fields = &json["fields"];
    let address = |name: &str| fields[name].as_str()?.parse().ok();
    (fields["message"] == "ready").then_some(())?;
    Some(Ready { grpc: address("grpc")?, http: address("http")?, peer: address("peer")? })
}

/// The last lines of a log file.
pub fn tail(log: &PathBuf, lines: usize) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
