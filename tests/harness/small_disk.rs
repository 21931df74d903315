//! A small file system of memory, for nodes that run out of space; needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own, unmounted when it is dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of so many MiB at a directory, made if it is not there; `None` without root.
    pub fn mount(at: &Path, mib: u32) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={mib}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at);
        let mounted = mount.output().is_ok_and(|out| out.status.success());
        if !mounted {
            println!("skipped: mounting a small file system needs root");
        }
        mounted.then(|| SmallDisk(at.to_owned()))
    }

    /// Puts what a directory has on a file system of its own; `None` without root.
    pub fn under(dir: &Path, mib: u32) -> Option<Self> {
        let aside = dir.with_extension("aside");
        std::fs::rename(dir, &aside).unwrap();
        let Some(disk) = SmallDisk::mount(dir, mib) else {
            std::fs::remove_dir(dir).unwrap();
            std::fs::rename(&aside, dir).unwrap();
            return None;
        };
        let copied = Command::new("cp").arg("-a").arg(aside.join(".")).arg(dir).status().unwrap();
        assert!(copied.success());
        std::fs::remove_dir_all(aside).unwrap();
        Some(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns how many bytes are free.
    pub fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.0).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// Fills the disk with something else until so many bytes are free. Returns that file.
    pub fn fill(&self, free: u64) -> PathBuf {
        let ballast = self.0.join("ballast");
        let bytes = self.free().saturating_sub(free);
        std::fs::write(&ballast, vec![1; bytes as usize]).unwrap();
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, as the node may be on its way out.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
