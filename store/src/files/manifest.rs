//! The MANIFEST: RocksDB's list of its column families and their live files.
//!
//! A log of edits (RocksDB's `db/version_edit.cc`), from which this keeps what tells a damaged file
//! from a whole one: number, family, length, checksum, and the keys at a table's ends. RocksDB
//! begins a new one at each start, so that it stays short.

use std::collections::BTreeMap;

use super::records::{Broken, Record};

/// The tags of an edit's parts.
mod tag {
    pub const COMPARATOR: u64 = 1;
    pub const LOG_NUMBER: u64 = 2;
    pub const NEXT_FILE: u64 = 3;
    pub const LAST_SEQUENCE: u64 = 4;
    pub const COMPACT_CURSOR: u64 = 5;
    pub const DELETED_FILE: u64 = 6;
    pub const PREVIOUS_LOG: u64 = 9;
    pub const MIN_LOG: u64 = 10;
    pub const NEW_FILE: u64 = 103;
    pub const FAMILY: u64 = 200;
    pub const FAMILY_ADD: u64 = 201;
    pub const FAMILY_DROP: u64 = 202;
    pub const FAMILY_MAX: u64 = 203;
    pub const IN_GROUP: u64 = 300;
    pub const BLOB_FILE: u64 = 400;
    pub const BLOB_GARBAGE: u64 = 401;
    /// Tags with this bit are followed by their length, and may be skipped.
    pub const SKIPPED: u64 = 1 << 13;
    /// Tags of a table's own list.
    pub const TABLE_END: u64 = 1;
    pub const TABLE_OLDEST_BLOB: u64 = 4;
    pub const TABLE_CHECKSUM: u64 = 7;
    pub const TABLE_CHECKSUM_NAME: u64 = 8;
    pub const BLOB_END: u64 = 0;
}

/// The name of the checksum that RocksDB is told to keep for each file (`db/options.rs`).
const CHECKSUM_NAME: &[u8] = b"FileChecksumCrc32c";

/// Bytes in front of a blob file's records and behind them.
pub(super) const BLOB_HEADER_BYTES: u64 = 30;
pub(super) const BLOB_FOOTER_BYTES: u64 = 32;

/// Bytes that RocksDB puts behind a key.
const KEY_TRAILER_BYTES: usize = 8;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// A sorted table of rows.
    Table,
    /// Values too long for tables.
    Blob,
}

/// A file that RocksDB may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LiveFile {
    pub kind: FileKind,
    pub number: u64,
    /// The column family that it belongs to.
    pub family: String,
    pub bytes: u64,
    /// CRC-32C of the whole file; `None` if a version wrote it that kept none.
    pub checksum: Option<u32>,
    /// The first and the last key of a table.
    pub keys: Option<(Vec<u8>, Vec<u8>)>,
}

impl LiveFile {
    /// The file's name in the database's directory.
    pub fn name(&self) -> String {
        match self.kind {
            FileKind::Table => format!("{:06}.sst", self.number),
            FileKind::Blob => format!("{:06}.blob", self.number),
        }
    }
}

/// The column families and their files.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    families: BTreeMap<u64, Family>,
}

#[derive(Debug, Default)]
struct Family {
    name: String,
    tables: BTreeMap<u64, Table>,
    blobs: BTreeMap<u64, Blob>,
}

#[derive(Debug)]
struct Table {
    bytes: u64,
    checksum: Option<u32>,
    oldest_blob: Option<u64>,
    smallest: Vec<u8>,
    largest: Vec<u8>,
}

#[derive(Debug)]
struct Blob {
    count: u64,
    bytes: u64,
    checksum: Option<u32>,
    garbage: u64,
}

/// What one record changes.
#[derive(Default)]
struct Edit {
    family: u64,
    added: Option<String>,
    dropped: bool,
    deleted: Vec<u64>,
    tables: Vec<(u64, Table)>,
    blobs: Vec<(u64, Blob)>,
    garbage: Vec<(u64, u64)>,
    /// How many more edits must follow before any of them counts.
    remaining: u64,
}

impl Manifest {
    /// Reads the edits of a MANIFEST. A group of edits that is not finished changes nothing.
    pub fn of(records: &[Record]) -> Result<Manifest, Broken> {
        let mut manifest = Manifest::default();
        manifest.families.insert(0, Family { name: "default".into(), ..Family::default() });
        let mut group = Vec::new();
        for record in records {
            let edit = Edit::decode(&record.bytes).ok_or_else(|| {
                Broken::at(record.offset, "a record is not an edit that this version knows")
            })?;
            let last = edit.remaining == 0;
            group.push(edit);
            if last {
                group.drain(..).for_each(|edit| manifest.apply(edit));
            }
        }
        Ok(manifest)
    }

    fn apply(&mut self, edit: Edit) {
        if edit.dropped {
            self.families.remove(&edit.family);
            return;
        }
        if let Some(name) = edit.added {
            self.families.insert(edit.family, Family { name, ..Family::default() });
        }
        let Some(family) = self.families.get_mut(&edit.family) else { return };
        // In this order: a move between levels deletes a table and adds it again.
        for number in edit.deleted {
            family.tables.remove(&number);
        }
        family.tables.extend(edit.tables);
        family.blobs.extend(edit.blobs);
        for (number, count) in edit.garbage {
            if let Some(blob) = family.blobs.get_mut(&number) {
                blob.garbage += count;
            }
        }
    }

    /// Returns the names of the column families.
    pub fn families(&self) -> impl Iterator<Item = &str> {
        self.families.values().map(|family| family.name.as_str())
    }

    /// Returns the files that RocksDB may read, ordered by family, tables first.
    pub fn files(&self) -> Vec<LiveFile> {
        self.families.values().flat_map(Family::files).collect()
    }
}

impl Family {
    fn files(&self) -> Vec<LiveFile> {
        let linked = |number: &u64| self.tables.values().any(|t| t.oldest_blob == Some(*number));
        let tables = self.tables.iter().map(|(number, table)| LiveFile {
            kind: FileKind::Table,
            number: *number,
            family: self.name.clone(),
            bytes: table.bytes,
            checksum: table.checksum,
            keys: Some((table.smallest.clone(), table.largest.clone())),
        });
        // As RocksDB's `VersionBuilder`: what lies before the oldest linked file is gone, and so is
        // what is garbage altogether.
        let oldest = self.blobs.keys().find(|number| linked(number)).copied().unwrap_or(u64::MAX);
        let live = |(number, blob): &(&u64, &Blob)| {
            **number >= oldest && (linked(number) || blob.garbage < blob.count)
        };
        let blobs = self.blobs.iter().filter(live).map(|(number, blob)| LiveFile {
            kind: FileKind::Blob,
            number: *number,
            family: self.name.clone(),
            bytes: BLOB_HEADER_BYTES + blob.bytes + BLOB_FOOTER_BYTES,
            checksum: blob.checksum,
            keys: None,
        });
        tables.chain(blobs).collect()
    }
}

/// Takes values off the front of a record.
struct Scan<'a>(&'a [u8]);

impl<'a> Scan<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn slice(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.varint()?).ok()?;
        let (slice, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(slice)
    }

    /// A key without what RocksDB puts behind it.
    fn key(&mut self) -> Option<Vec<u8>> {
        let key = self.slice()?;
        Some(key.get(..key.len().checked_sub(KEY_TRAILER_BYTES)?)?.to_vec())
    }
}

impl Edit {
    fn decode(record: &[u8]) -> Option<Edit> {
        let (mut edit, mut scan) = (Edit::default(), Scan(record));
        while !scan.0.is_empty() {
            edit.part(&mut scan)?;
        }
        Some(edit)
    }

    fn part(&mut self, scan: &mut Scan<'_>) -> Option<()> {
        match scan.varint()? {
            tag::COMPARATOR => drop(scan.slice()?),
            tag::LOG_NUMBER
            | tag::NEXT_FILE
            | tag::LAST_SEQUENCE
            | tag::PREVIOUS_LOG
            | tag::MIN_LOG
            | tag::FAMILY_MAX => drop(scan.varint()?),
            tag::COMPACT_CURSOR => {
                scan.varint()?;
                scan.slice()?;
            }
            tag::DELETED_FILE => {
                scan.varint()?;
                self.deleted.push(scan.varint()?);
            }
            tag::NEW_FILE => self.tables.push(table(scan)?),
            tag::FAMILY => self.family = scan.varint()?,
            tag::FAMILY_ADD => {
                self.added = Some(String::from_utf8(scan.slice()?.to_vec()).ok()?);
            }
            tag::FAMILY_DROP => self.dropped = true,
            tag::IN_GROUP => self.remaining = scan.varint()?,
            tag::BLOB_FILE => self.blobs.push(blob(scan)?),
            tag::BLOB_GARBAGE => {
                let (number, count) = (scan.varint()?, scan.varint()?);
                scan.varint()?;
                skip_list(scan)?;
                self.garbage.push((number, count));
            }
            skipped if skipped & tag::SKIPPED != 0 => drop(scan.slice()?),
            _ => return None,
        }
        Some(())
    }
}

fn table(scan: &mut Scan<'_>) -> Option<(u64, Table)> {
    scan.varint()?;
    let (number, bytes) = (scan.varint()?, scan.varint()?);
    let (smallest, largest) = (scan.key()?, scan.key()?);
    scan.varint()?;
    scan.varint()?;
    let (mut checksum, mut named, mut oldest_blob) = (None, false, None);
    loop {
        let tag = scan.varint()?;
        if tag == tag::TABLE_END {
            break;
        }
        let value = scan.slice()?;
        match tag {
            tag::TABLE_CHECKSUM => checksum = <[u8; 4]>::try_from(value).ok(),
            tag::TABLE_CHECKSUM_NAME => named = value == CHECKSUM_NAME,
            tag::TABLE_OLDEST_BLOB => oldest_blob = Some(Scan(value).varint()?),
            _ => {}
        }
    }
    let checksum = checksum.filter(|_| named).map(u32::from_be_bytes);
    Some((number, Table { bytes, checksum, oldest_blob, smallest, largest }))
}

fn blob(scan: &mut Scan<'_>) -> Option<(u64, Blob)> {
    let (number, count, bytes) = (scan.varint()?, scan.varint()?, scan.varint()?);
    let named = scan.slice()? == CHECKSUM_NAME;
    let checksum = <[u8; 4]>::try_from(scan.slice()?).ok();
    skip_list(scan)?;
    let checksum = checksum.filter(|_| named).map(u32::from_be_bytes);
    Some((number, Blob { count, bytes, checksum, garbage: 0 }))
}

/// Skips what later versions may add behind a blob file.
fn skip_list(scan: &mut Scan<'_>) -> Option<()> {
    while scan.varint()? != tag::BLOB_END {
        scan.slice()?;
    }
    Some(())
}
