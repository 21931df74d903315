//! Power losses: a node's data lies on a file system of its own, in an image on a loop device,
//! which can be shut down in the middle of whatever is written to it.
//!
//! What was not synced by then is gone, the file system's own journal included, and every write and
//! sync from then on fails: what a machine finds when its power comes back. Needs root and loop
//! devices; a test asks for them first, and says so if it is left out.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::PATIENCE;

/// `_IOR('X', 125, u32)`: shuts a file system down, as ext4 and XFS have it.
const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);

/// Nothing is written on the way down, not even the file system's journal.
const NO_LOG_FLUSH: u32 = 2;

/// A file system in an image, mounted through a loop device.
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes a file system of so many MiB beside `at`, and mounts it there. `Err`: why that is not
    /// possible here.
    pub fn mount(at: &Path, mib: u64) -> Result<Disk, String> {
        let image = at.with_extension("image");
        File::create(&image).and_then(|file| file.set_len(mib << 20)).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        std::fs::create_dir_all(at).unwrap();
        let disk = Disk { image, at: at.to_owned() };
        disk.attach()?;
        // A node wants its directory to itself.
        std::fs::remove_dir(disk.at.join("lost+found")).unwrap();
        Ok(disk)
    }

    /// Why power losses can't be tried here, if they can't.
    pub fn unavailable() -> Option<String> {
        let dir = tempfile::Builder::new().prefix("statehouse-disk-").tempdir().unwrap();
        let tried = Disk::mount(&dir.path().join("disk"), 16).and_then(|disk| disk.lose_power());
        tried.err()
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// From now on nothing reaches the disk.
    pub fn lose_power(&self) -> Result<(), String> {
        let root = File::open(&self.at).map_err(|error| error.to_string())?;
        // SAFETY: the opcode reads one u32, the kernel's GOING flags.
        let shut = unsafe {
            rustix::ioctl::ioctl(&root, rustix::ioctl::Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH))
        };
        shut.map_err(|error| format!("shut a file system down: {error}"))
    }

    /// The power is back: mounted again, without a check of the file system. Nobody may use it.
    pub fn return_power(&self) {
        let started = std::time::Instant::now();
        // The kernel may be at the files of a process that has just ended.
        while let Err(busy) = run(Command::new("umount").arg(&self.at)) {
            assert!(started.elapsed() < PATIENCE, "{busy}");
            std::thread::yield_now();
        }
        self.attach().unwrap();
    }

    fn attach(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).args([&self.image, &self.at]))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process may be on its way out. The directory goes with the test's.
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let out = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match out.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim())),
    }
}
