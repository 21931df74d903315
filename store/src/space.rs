//! How much room the disk has, asked at most every few milliseconds.
//!
//! The caller asks before it admits a write. The commit path does not: an entry that a quorum
//! waits for must not be refused halfway.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::Error;

/// How long an answer of the system is good for.
const FRESH: Duration = Duration::from_millis(50);

/// The disk is short already when this part of the reserve is left above it.
const NEAR_DIVISOR: u64 = 2;

/// Watches the disk under a directory.
pub(crate) struct Space {
    dir: PathBuf,
    reserve: u64,
    last: Mutex<Option<(Instant, u64)>>,
}

impl Space {
    pub fn new(dir: &Path, reserve: u64) -> Self {
        Space { dir: dir.to_owned(), reserve, last: Mutex::new(None) }
    }

    /// Whether more than the reserve is free.
    pub fn check(&self) -> Result<(), Error> {
        let (free, reserve) = (self.free()?, self.reserve);
        if free < reserve {
            return Err(Error::DiskFull { free, reserve });
        }
        Ok(())
    }

    /// Whether what is free comes near the reserve: what was deleted should be given back before
    /// writes are refused, and go on coming back after they were.
    pub fn is_short(&self) -> bool {
        let near = self.reserve.saturating_add(self.reserve / NEAR_DIVISOR);
        match self.free() {
            Ok(free) => free < near,
            Err(_) => true,
        }
    }

    /// Bytes that we may still use.
    pub fn free(&self) -> Result<u64, Error> {
        let mut last = self.last.lock();
        if let Some((at, free)) = *last
            && at.elapsed() < FRESH
        {
            return Ok(free);
        }
        let disk = rustix::fs::statvfs(&self.dir)
            .map_err(|error| Error::io("ask for the disk's free space", error))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        *last = Some((Instant::now(), free));
        Ok(free)
    }
}
