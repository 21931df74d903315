//! What RocksDB's messages say of damage: whether there is any, in which file, and where.
//!
//! Part of the door in `db.rs`. RocksDB has no other way to tell; blob files it does not name at
//! all.

use std::path::PathBuf;

/// A failure that means: what was written is not there any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    pub file: Option<PathBuf>,
    pub offset: Option<u64>,
    pub detail: String,
}

/// What messages of lost rows begin with or hold: a checksum that does not match, a file that is
/// gone, a sector that the disk can't read. All else is a failure to read, and may pass.
const CORRUPTION: &str = "Corruption";
const GONE: &str = "No such file or directory";
const UNREADABLE: [&str; 2] = ["While pread", "Input/output error"];

/// Reads a message about a read that failed; `None` if it does not speak of lost rows.
pub(crate) fn lost(message: &str) -> Option<Lost> {
    let unreadable = UNREADABLE.iter().all(|part| message.contains(part));
    if !(message.starts_with(CORRUPTION) || message.contains(GONE) || unreadable) {
        return None;
    }
    let mut words = message.split(|c: char| c.is_whitespace() || c == ',' || c == ';');
    let file = words.by_ref().find_map(|word| {
        let word = word.trim_end_matches(':');
        (word.ends_with(".sst") || word.ends_with(".blob")).then(|| PathBuf::from(word))
    });
    let offset = message.split_once(" offset ").and_then(|(_, rest)| {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    });
    Some(Lost { file, offset, detail: message.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_does_not_match_names_its_file_and_offset() {
        let message = "Corruption: block checksum mismatch: stored(context removed) = 1, computed \
                       = 2, type = 4  in /d/db/000012.sst offset 8231 size 4096, block_type = data";
        let lost = lost(message).expect("it is damage");
        assert_eq!(lost.file, Some("/d/db/000012.sst".into()));
        assert_eq!(lost.offset, Some(8_231));
    }

    #[test]
    fn a_missing_file_is_damage_and_a_busy_system_is_not() {
        let gone = "IO error: No such file or directory: While open a file for random read: \
                    /d/db/000009.blob: No such file or directory";
        assert_eq!(lost(gone).expect("it is damage").file, Some("/d/db/000009.blob".into()));
        let sector =
            "IO error: While pread offset 0 len 4096: /d/db/000009.sst: Input/output error";
        assert!(lost(sector).is_some());
        assert_eq!(
            lost("IO error: While open a file: /d/db/000009.sst: Too many open files"),
            None
        );
    }

    #[test]
    fn a_message_without_a_file_is_damage_all_the_same() {
        let lost = lost("Corruption: Blob CRC mismatch").expect("it is damage");
        assert_eq!((lost.file, lost.offset), (None, None));
    }
}
