//! Damage done to a node's files: a bit, a byte, an end or all of a file is gone.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rand::Rng as _;
use rand::rngs::StdRng;

/// Kinds of files that a node keeps, by how their names begin or end.
pub const KINDS: [&str; 7] = [".sst", ".blob", ".log", "MANIFEST", "CURRENT", "OPTIONS", "synced"];

/// Returns the files of one kind in a data directory, in order.
pub fn files(data: &Path, kind: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in [data.to_owned(), data.join("db")] {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_file() && (name.starts_with(kind) || name.ends_with(kind)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Damages one file of a kind at a random place. Returns what was done, `None` if there is no such
/// file or nothing changed.
pub fn harm(data: &Path, kind: &str, random: &mut StdRng) -> Option<String> {
    let candidates = files(data, kind);
    let path = candidates.get(random.random_range(0..candidates.len().max(1)))?.clone();
    let before = fs::read(&path).ok()?;
    let (length, how) = (before.len() as u64, random.random_range(0..6));
    let at = random.random_range(0..length.max(1));
    let file = OpenOptions::new().write(true).open(&path).ok()?;
    let done = match (how, before.get(at as usize)) {
        (0, _) => {
            fs::remove_file(&path).ok()?;
            "removed".to_owned()
        }
        (_, None) => return None,
        (1, _) => {
            file.set_len(at).unwrap();
            format!("cut at {at} of {length}")
        }
        (2, Some(0)) => return None,
        (2, _) => {
            file.write_all_at(&[0], at).unwrap();
            format!("zeroed at {at} of {length}")
        }
        (_, Some(byte)) => {
            file.write_all_at(&[byte ^ (1 << random.random_range(0..8))], at).unwrap();
            format!("a bit flipped at {at} of {length}")
        }
    };
    let name = path.file_name().unwrap().to_str().unwrap();
    Some(format!("{name}: {done}"))
}
