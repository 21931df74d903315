//! How much room the disk has. That there is enough is asked at most every few milliseconds; that
//! there is not is asked anew each time, so that nobody is refused for what has come back.
//!
//! Two reserves: below the first, only what gives space back is admitted; below the second, nothing
//! is. The caller asks before it admits a write, and before it takes a leader's entries. The commit
//! path does not: an entry that a quorum waits for must not be refused halfway.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::Error;

/// How long an answer of the system is good for, if it says that there is enough.
const FRESH: Duration = Duration::from_millis(50);

/// The disk is short already when this part of the reserve is left above it.
const NEAR_DIVISOR: u64 = 2;

/// Below this part of the freeing reserve not even what gives space back is taken.
const SPENT_DIVISOR: u64 = 2;

/// How full the disk is, by its two reserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskLevel {
    /// Less than half of the freeing reserve is free: any write may be the one that fails.
    Spent,
    /// Less than the freeing reserve is free.
    Freeing,
    /// Less than the reserve is free.
    Reserved,
    /// At least the reserve is free.
    Ample,
}

/// Whether less than a reserve is free on a directory's disk. One that can't be asked has room:
/// what is done there next says what is wrong.
pub(crate) fn is_below(dir: &Path, reserve: u64) -> bool {
    // The directory may not be there yet, but its disk is.
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
    free_bytes(there).is_ok_and(|free| free < reserve)
}

fn free_bytes(dir: &Path) -> Result<u64, Error> {
    let disk = rustix::fs::statvfs(dir)
        .map_err(|error| Error::io("ask for the disk's free space", error))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Watches the disk under a directory.
pub(crate) struct Space {
    dir: PathBuf,
    reserve: u64,
    freeing_reserve: u64,
    last: Mutex<Option<(Instant, u64)>>,
}

impl Space {
    /// Watches a directory's disk. The second reserve is at most as large as the first.
    pub fn new(dir: &Path, reserve: u64, freeing_reserve: u64) -> Self {
        let freeing_reserve = freeing_reserve.min(reserve);
        Space { dir: dir.to_owned(), reserve, freeing_reserve, last: Mutex::new(None) }
    }

    /// Refuses if less than the reserve is free.
    pub fn check(&self) -> Result<(), Error> {
        self.at_least(self.reserve)
    }

    /// Refuses if less than the freeing reserve is free.
    pub fn check_freeing(&self) -> Result<(), Error> {
        self.at_least(self.freeing_reserve)
    }

    fn at_least(&self, reserve: u64) -> Result<(), Error> {
        let free = self.free_for(reserve)?;
        if free < reserve {
            return Err(Error::DiskFull { free, reserve });
        }
        Ok(())
    }

    /// Returns how full the disk is. A disk that can't be asked counts as spent.
    pub fn level(&self) -> DiskLevel {
        let Ok(free) = self.free_for(self.reserve) else { return DiskLevel::Spent };
        match free {
            free if free >= self.reserve => DiskLevel::Ample,
            free if free >= self.freeing_reserve => DiskLevel::Reserved,
            free if free >= self.freeing_reserve / SPENT_DIVISOR => DiskLevel::Freeing,
            _ => DiskLevel::Spent,
        }
    }

    /// Whether what is free comes near the reserve: what was deleted should be given back before
    /// writes are refused, and go on coming back after they were.
    pub fn is_short(&self) -> bool {
        let near = self.reserve.saturating_add(self.reserve / NEAR_DIVISOR);
        match self.free_for(near) {
            Ok(free) => free < near,
            Err(_) => true,
        }
    }

    /// Bytes that we may still use.
    pub fn free(&self) -> Result<u64, Error> {
        self.free_for(0)
    }

    /// Bytes that we may still use: what was found a moment ago will do if it is enough.
    fn free_for(&self, enough: u64) -> Result<u64, Error> {
        let mut last = self.last.lock();
        if let Some((at, free)) = *last
            && free >= enough
            && at.elapsed() < FRESH
        {
            return Ok(free);
        }
        let free = free_bytes(&self.dir)?;
        *last = Some((Instant::now(), free));
        Ok(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_there_is_enough_is_believed_for_a_moment_and_that_there_is_not_is_asked_anew() {
        let space = Space::new(&std::env::temp_dir(), 2, 1);
        let found = |free| *space.last.lock() = Some((Instant::now(), free));
        found(3);
        assert_eq!(space.free().unwrap(), 3);
        found(0);
        space.check().expect("two bytes are free by now");
        found(0);
        assert_eq!(space.level(), DiskLevel::Ample);
        found(0);
        assert!(!space.is_short());
    }
}
