//! The store's directory: whose it is, and that no one else has it open.
//!
//! ```text
//! STATEHOUSE   text: format and id, written once, atomically
//! LOCK         locked as long as the store is open
//! db/          RocksDB's files
//! synced       what was synced, said outside RocksDB (`witness.rs`)
//! damage-policy  text: what a start does with replicas that have lost rows
//! facts        a copy of the node's own facts, outside RocksDB (`facts.rs`)
//! damaged/     log files that were not whole, kept when the whole records were taken out of them,
//!              and databases that were set aside (`set_aside.rs`)
//! incoming/    parts of views that are being received; emptied by each start
//! ```
//!
//! A directory that holds anything else and no marker is refused untouched: a wrong path must
//! never cost somebody their files.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::error::Error;
use crate::keys::STORE_FORMAT;

const MARKER: &str = "STATEHOUSE";
const MARKER_UNFINISHED: &str = "STATEHOUSE.new";
const LOCK: &str = "LOCK";
const DATABASE: &str = "db";
const INCOMING: &str = "incoming";
const SYNCED: &str = "synced";
const ASIDE: &str = "damaged";
const POLICY: &str = "damage-policy";
const FACTS: &str = "facts";

/// Time that an opening waits for the lock of a directory that somebody else holds. A process that
/// was killed holds it until its memory is given back, and a child that a process has begun holds
/// it until it runs its own program.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

/// Time between two attempts to take the lock.
const LOCK_RETRY_WAIT: Duration = Duration::from_millis(10);

/// A directory that is ours and that we hold.
pub(crate) struct Directory {
    /// Where RocksDB's files are.
    pub database: PathBuf,
    /// Where views that come in are kept; empty.
    pub incoming: PathBuf,
    /// The file that claims what was synced.
    pub synced: PathBuf,
    /// Where damaged files are kept.
    pub aside: PathBuf,
    /// The file that says what to do with replicas that have lost rows.
    pub policy: PathBuf,
    /// The file with a copy of the node's facts.
    pub facts: PathBuf,
    /// Which store this is.
    pub store_id: [u8; 16],
    /// Held as long as this file is open.
    pub lock: File,
    /// Whether files may be read and written past the page cache.
    pub direct_io: bool,
}

impl Directory {
    /// Takes a directory that is a store's already.
    pub fn existing(dir: &Path) -> Result<Directory, Error> {
        match dir.join(MARKER).exists() {
            true => Directory::open(dir),
            false => Err(Error::corrupt("store", format!("{} holds none", dir.display()))),
        }
    }

    /// Takes a directory, making it a store's if it is empty or missing.
    pub fn open(dir: &Path) -> Result<Directory, Error> {
        std::fs::create_dir_all(dir).map_err(|error| Error::io("create the directory", error))?;
        let ours = dir.join(MARKER).exists();
        if !ours && holds_other_files(dir)? {
            return Err(Error::NotOurs { dir: dir.to_owned() });
        }
        let lock = lock(dir)?;
        let store_id = match dir.join(MARKER).exists() {
            true => read_marker(dir)?,
            false => write_marker(dir)?,
        };
        let direct_io = takes_direct_io(dir);
        let (database, incoming) = (dir.join(DATABASE), dir.join(INCOMING));
        match std::fs::remove_dir_all(&incoming) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io("empty the directory of incoming views", error));
            }
            Ok(()) | Err(_) => {}
        }
        Ok(Directory {
            database,
            incoming,
            synced: dir.join(SYNCED),
            aside: dir.join(ASIDE),
            policy: dir.join(POLICY),
            facts: dir.join(FACTS),
            store_id,
            lock,
            direct_io,
        })
    }
}

/// Replaces a small file's content as a whole, durably: after a crash it holds the old bytes or the
/// new ones.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = File::create(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn holds_other_files(dir: &Path) -> Result<bool, Error> {
    let files = std::fs::read_dir(dir).map_err(|error| Error::io("read the directory", error))?;
    for file in files {
        let file = file.map_err(|error| Error::io("read the directory", error))?;
        let name = file.file_name();
        // What a first start leaves when it is interrupted, and what a new disk brings along.
        if name != LOCK && name != MARKER_UNFINISHED && name != "lost+found" {
            return Ok(true);
        }
    }
    Ok(false)
}

fn lock(dir: &Path) -> Result<File, Error> {
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(LOCK))
        .map_err(|error| Error::io("open the lock file", error))?;
    let give_up = Instant::now() + LOCK_WAIT_MAX;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < give_up => {
                std::thread::sleep(LOCK_RETRY_WAIT);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::InUse { dir: dir.to_owned() });
            }
            Err(error) => return Err(Error::io("lock the directory", error)),
        }
    }
}

fn read_marker(dir: &Path) -> Result<[u8; 16], Error> {
    let text =
        std::fs::read(dir.join(MARKER)).map_err(|error| Error::io("read the marker", error))?;
    let text =
        String::from_utf8(text).map_err(|_| Error::corrupt("marker", "expected UTF-8 text"))?;
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .ok_or_else(|| Error::corrupt("marker", format!("it has no line {name:?}")))
    };
    let found: u32 =
        value("format")?.parse().map_err(|error| Error::corrupt("marker's format", error))?;
    let supported = u32::from(STORE_FORMAT);
    if found > supported {
        return Err(Error::NewerFormat { found, supported });
    }
    let id = value("id")?;
    let parsed = u128::from_str_radix(id, 16).ok().filter(|_| id.len() == 32);
    parsed
        .map(u128::to_be_bytes)
        .ok_or_else(|| Error::corrupt("marker", "its id is not 32 hexadecimal digits"))
}

fn write_marker(dir: &Path) -> Result<[u8; 16], Error> {
    let failed = |error| Error::io("write the marker", error);
    let mut id = [0; 16];
    let mut random = File::open("/dev/urandom").map_err(failed)?;
    random.read_exact(&mut id).map_err(failed)?;
    let hex = format!("{:032x}", u128::from_be_bytes(id));
    let mut file = File::create(dir.join(MARKER_UNFINISHED)).map_err(failed)?;
    writeln!(file, "statehouse store\nformat {STORE_FORMAT}\nid {hex}").map_err(failed)?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(dir.join(MARKER_UNFINISHED), dir.join(MARKER)).map_err(failed)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    Ok(id)
}

/// Not every file system does direct I/O; RocksDB would refuse to open on one that does not.
fn takes_direct_io(dir: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(dir.join(MARKER), flags, Mode::empty()).is_ok()
}
