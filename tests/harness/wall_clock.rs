//! A wall clock of one process, which a test steps while the process runs and between its runs.
//!
//! A library that is preloaded (`wall_clock.c`) and a file that says how far the clock is ahead.
//! libfaketime would do as much, but hangs a program whose allocator is jemalloc.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::preload::Preload;

/// A process's wall clock.
pub struct WallClock {
    library: Preload,
    file: PathBuf,
}

impl WallClock {
    /// A clock that is right, kept in a directory.
    pub fn new(dir: &Path, name: &str) -> WallClock {
        let library = Preload::compile(dir, name, include_str!("wall_clock.c"));
        let file = dir.join(format!("{name}.ahead"));
        File::create(&file).unwrap();
        let clock = WallClock { library, file };
        clock.step_to(0);
        clock
    }

    /// The environment of the process whose clock it is.
    pub fn env(&self) -> Vec<(String, String)> {
        let file = self.file.to_str().unwrap().to_owned();
        vec![self.library.env(), ("WALL_CLOCK_FILE".into(), file)]
    }

    /// Steps the clock so many milliseconds ahead of the right time.
    pub fn step_to(&self, ahead_ms: i64) {
        let file = File::options().write(true).open(&self.file).unwrap();
        file.write_all_at(&ahead_ms.to_ne_bytes(), 0).unwrap();
    }
}
