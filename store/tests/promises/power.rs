//! A power loss: what was not synced is gone, what was acknowledged is there, and nothing is called
//! damage.
//!
//! The store lies on a file system of its own, in a file. Its process is stopped, the file system
//! shut down without writing back anything, the process killed, and the file system mounted again.
//! Stopped first: the kernel acknowledges a sync that races with such a shutdown though its bytes
//! are lost (seen with a bare loop of `write` and `fdatasync`), which a power loss does not.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command as Process};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::crash::{index_of, model_hash, start};
use crate::support::{Node, pick, seed, until};

const LOSSES: usize = 6;
/// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, u32)`.
const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
/// Nothing is written back, the journal neither.
const WITHOUT_LOG_FLUSH: u32 = 2;

/// A file system in a file; `None` where we may not mount one.
struct LossyDisk {
    image: PathBuf,
    at: PathBuf,
    _dir: TempDir,
}

impl LossyDisk {
    fn new() -> Option<LossyDisk> {
        let dir = TempDir::new().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("mounted"));
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        std::fs::create_dir(&at).unwrap();
        let disk = LossyDisk { image, at, _dir: dir };
        let made = run("mkfs.ext4", &["-q", "-F", disk.image.to_str().unwrap()]);
        (made && disk.mount()).then_some(disk)
    }

    fn mount(&self) -> bool {
        run("mount", &["-o", "loop", self.image.to_str().unwrap(), self.at.to_str().unwrap()])
    }

    fn unmount(&self) -> bool {
        run("umount", &[self.at.to_str().unwrap()])
    }

    /// Takes the power away from under a process.
    fn lose_power(&self, child: &mut Child) {
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        until("the process stands still", || stands_still(child.id()));
        let root = File::open(&self.at).unwrap();
        // SAFETY: the call takes a pointer to a u32, which the setter passes.
        unsafe {
            let flags = rustix::ioctl::Setter::<SHUTDOWN, u32>::new(WITHOUT_LOG_FLUSH);
            rustix::ioctl::ioctl(&root, flags).unwrap();
        }
        drop(root);
        child.kill().unwrap();
        child.wait().unwrap();
        until("the file system is unmounted", || self.unmount());
        assert!(self.mount());
    }
}

impl Drop for LossyDisk {
    fn drop(&mut self) {
        let _ = self.unmount();
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    Process::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// Whether no thread of a process runs or waits for the disk.
fn stands_still(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}

#[test]
fn a_power_loss_loses_nothing_acknowledged_and_is_not_taken_for_damage() {
    let Some(disk) = LossyDisk::new() else {
        println!("skipped: this user may not mount an ext4 file system");
        return;
    };
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let dir = disk.at.join("store");
    let mut acknowledged = 0;
    for loss in 0..LOSSES {
        let mut child = start("crash::child", &dir, seed);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let enough = acknowledged + pick(&mut random, 1..150) as u64;
        while acknowledged < enough {
            let line = lines.next().expect("the child runs until it is killed").unwrap();
            acknowledged = acknowledged.max(index_of(&line).unwrap_or_default());
        }
        disk.lose_power(&mut child);
        // A last line may be cut short; its number then is too.
        let rest = lines.map_while(Result::ok).filter(|line| line.split(' ').count() == 3);
        acknowledged = rest.filter_map(|line| index_of(&line)).fold(acknowledged, u64::max);
        let node = Node::open(&dir);
        let applied = node.shard.applied().index;
        assert!(
            applied >= acknowledged,
            "loss {loss}: {acknowledged} acknowledged, {applied} there"
        );
        assert_eq!(node.store.damages(), []);
        if loss + 1 == LOSSES {
            assert_eq!(node.shard.state_hash().unwrap(), model_hash(seed, applied));
        }
        node.store.close().unwrap();
    }
    println!("{acknowledged} entries acknowledged over {LOSSES} power losses");
}
