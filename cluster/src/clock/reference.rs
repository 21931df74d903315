//! What of the node's time outlives its process: a small file, good until the machine restarts.
//!
//! `1 BOOT NAMESPACE ELAPSED_US TIME_US HASH`: at so many microseconds after the machine's start
//! the node's time was this one. A process that starts later on the same machine goes on from
//! there, whatever became of the wall clock meanwhile. After a restart of the machine nothing is
//! known of how long it was off, and the file says nothing.
//!
//! Not synced: a machine that lost power has started anew.

use std::fs;
use std::io;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

const FORMAT: &str = "1";

/// Where the kernel names the machine's start, and what its elapsed time counts from.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
const NAMESPACE: &str = "/proc/self/ns/time";

/// That the node's time was this at so much elapsed time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    pub elapsed_us: u64,
    pub time_us: u64,
}

impl Reference {
    /// The time that it comes to; `None` if it is of the future, and so not of this machine.
    pub fn time_us(self, elapsed_us: u64) -> Option<u64> {
        Some(self.time_us + elapsed_us.checked_sub(self.elapsed_us)?)
    }
}

/// Which run of which machine this is; `None` where the kernel does not say.
pub fn machine() -> Option<String> {
    let boot = fs::read_to_string(BOOT).ok()?;
    let namespace = fs::read_link(NAMESPACE).ok();
    let namespace = namespace.map_or("-".into(), |it| it.to_string_lossy().replace(' ', "_"));
    Some(format!("{} {namespace}", boot.trim()))
}

/// Reads a file; `None` if there is none, it is damaged, or of another run of the machine.
pub fn read(path: &Path, machine: &str) -> Option<Reference> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the clock's file can't be read");
            return None;
        }
    };
    let found = parse(&text);
    if found.is_none() {
        tracing::warn!(path = %path.display(), "the clock's file is damaged: not used");
    }
    found.filter(|(of, _)| of == machine).map(|(_, reference)| reference)
}

/// Writes a file in one step.
pub fn write(path: &Path, machine: &str, reference: Reference) -> io::Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, text(machine, reference))?;
    fs::rename(&part, path)
}

fn text(machine: &str, Reference { elapsed_us, time_us }: Reference) -> String {
    let said = format!("{FORMAT} {machine} {elapsed_us} {time_us}");
    let hash = xxh3_64(said.as_bytes());
    format!("{said} {hash:016x}\n")
}

fn parse(text: &str) -> Option<(String, Reference)> {
    let (said, hash) = text.strip_suffix('\n')?.rsplit_once(' ')?;
    if hash != format!("{:016x}", xxh3_64(said.as_bytes())) {
        return None;
    }
    let words: Vec<&str> = said.split(' ').collect();
    let [FORMAT, boot, namespace, elapsed_us, time_us] = words[..] else { return None };
    let reference =
        Reference { elapsed_us: elapsed_us.parse().ok()?, time_us: time_us.parse().ok()? };
    Some((format!("{boot} {namespace}"), reference))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "boot-1 time:[4026531834]";
    const REFERENCE: Reference = Reference { elapsed_us: 50, time_us: 1_000 };

    #[test]
    fn it_holds_on_the_machine_that_wrote_it_until_that_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        assert_eq!(read(&path, HERE), None);
        write(&path, HERE, REFERENCE).unwrap();
        assert_eq!(read(&path, HERE), Some(REFERENCE));
        assert_eq!(read(&path, "boot-2 time:[4026531834]"), None);
        assert_eq!(REFERENCE.time_us(70), Some(1_020));
        assert_eq!(REFERENCE.time_us(49), None, "elapsed time does not run backwards");
    }

    #[test]
    fn a_damaged_file_says_nothing() {
        let whole = text(HERE, REFERENCE);
        assert_eq!(parse(&whole), Some((HERE.to_owned(), REFERENCE)));
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), None, "{len}");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(flipped) = String::from_utf8(bytes) else { continue };
            assert_eq!(parse(&flipped), None, "{flipped:?}");
        }
    }

    #[test]
    fn this_machine_says_which_run_of_it_this_is() {
        let machine = machine().expect("Linux names its start");
        assert_eq!(machine.split(' ').count(), 2, "{machine}");
    }
}
