//! The file `facts`: a copy of the node's own facts, kept outside the database.
//!
//! A node whose database can't be opened any more still knows by it which node of which cluster it
//! is, and which replicas it had. That is enough to begin with an empty database where other nodes
//! hold the same rows (`set_aside.rs`); without it the disk would be a stranger's.
//!
//! ```text
//! facts = "SHfacts1" | CRC-32C of what follows u32 | count u32 | (key u16+bytes, value u32+bytes)*
//! ```

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::codec::{Malformed, Scanner, Writer};
use crate::crc32c::crc32c;
use crate::db::Walk;
use crate::directory::replace_file;
use crate::disk::Disk;
use crate::error::Error;
use crate::keys;

const MAGIC: &[u8; 8] = b"SHfacts1";
const HEADER_BYTES: usize = MAGIC.len() + 4;

/// Facts by their rows' keys, in order.
pub(crate) type Facts = Vec<(Vec<u8>, Bytes)>;

/// The copy in a directory.
pub(crate) struct FactsFile {
    path: PathBuf,
    /// The bytes that are known to be in the file; held while it is written.
    written: Mutex<Option<Vec<u8>>>,
}

impl FactsFile {
    pub fn new(path: PathBuf) -> Self {
        FactsFile { path, written: Mutex::default() }
    }

    /// Reads the copy; `None` if there is none or it is not whole.
    pub fn read(&self) -> Result<Option<Facts>, Error> {
        read(&self.path)
    }

    /// Copies the facts that the database holds now. Durable when it returns. Blocks.
    pub fn copy(&self, disk: &Disk) -> Result<(), Error> {
        let mut written = self.written.lock();
        let mut facts = Facts::new();
        disk.db.walk(&disk.meta, keys::facts(), Walk::Few, &mut |key, value| {
            facts.push((key.to_vec(), Bytes::copy_from_slice(value)));
            Ok(ControlFlow::Continue(()))
        })?;
        let bytes = encode(&facts);
        // A copy without facts would say of nobody's disk that it is somebody's.
        if facts.is_empty() || written.as_ref() == Some(&bytes) {
            return Ok(());
        }
        replace_file(&self.path, &bytes)
            .map_err(|error| Error::io("copy the node's facts", error))?;
        *written = Some(bytes);
        Ok(())
    }
}

/// Reads the copy; `None` if there is none or it is not whole.
pub(crate) fn read(path: &Path) -> Result<Option<Facts>, Error> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read the copy of the node's facts", error)),
    };
    match decode(bytes) {
        Ok(facts) => Ok(Some(facts)),
        Err(error) => {
            tracing::warn!(target: "audit", file = %path.display(), %error, "the file is damaged");
            Ok(None)
        }
    }
}

fn encode(facts: &Facts) -> Vec<u8> {
    let mut body = Writer::default();
    body.u32(u32::try_from(facts.len()).expect("a node has thousands of facts, not billions"));
    for (key, value) in facts {
        body.medium(key);
        body.long(value);
    }
    let body = body.into_vec();
    let mut out = Writer::with_capacity(HEADER_BYTES + body.len());
    out.raw(MAGIC);
    out.u32(crc32c(&body));
    out.raw(&body);
    out.into_vec()
}

fn decode(bytes: Bytes) -> Result<Facts, Malformed> {
    let mut scanner = Scanner::new(bytes.clone());
    let magic = scanner.raw(MAGIC.len(), "a magic number")?;
    if magic != MAGIC.as_slice() {
        return Err(scanner.malformed("the magic number of a copy of facts"));
    }
    let crc = scanner.u32("a checksum")?;
    if crc32c(&bytes[HEADER_BYTES..]) != crc {
        return Err(scanner.malformed("bytes that match their checksum"));
    }
    let count = scanner.u32("a number of facts")?;
    let mut facts = Facts::new();
    for _ in 0..count {
        let key = scanner.medium("a fact's key")?.to_vec();
        facts.push((key, scanner.long("a fact's value")?));
    }
    scanner.finish()?;
    Ok(facts)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_read_as_it_was_written_or_not_at_all() {
        let facts = vec![(b"node/a".to_vec(), Bytes::from_static(b"1"))];
        let bytes = encode(&facts);
        assert_eq!(decode(bytes.clone().into()).unwrap(), facts);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(decode(flipped.into()).is_err(), "flipped at {at}");
            assert!(decode(bytes[..at].to_vec().into()).is_err(), "cut at {at}");
        }
    }
}
