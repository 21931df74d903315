//! `CURRENT`, the file that names the MANIFEST in force, and how it is made anew.
//!
//! It is 16 bytes long and nothing but the name. If it is damaged while exactly one MANIFEST is
//! there and whole, that one is meant: it is written again, and nothing is lost. Without it RocksDB
//! would take a directory full of data for an empty one.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use super::records::{self, Broken};
use crate::damage::Damage;
use crate::error::Error;

const CURRENT: &str = "CURRENT";
const CURRENT_UNFINISHED: &str = "CURRENT.restored";
const MANIFEST_PREFIX: &str = "MANIFEST-";

/// Reads what a database's directory says of its files; `None` if there is no database in it.
///
/// A `CURRENT` that is damaged is written again if there can be no doubt what it named. Call it
/// before the database is opened.
pub(crate) fn read_or_restore(dir: &Path) -> Result<Option<Manifest>, Error> {
    match read(dir) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(Unread::Failed(error)) => Err(error),
        Err(Unread::Damaged(damage)) => {
            let names = names(dir)?;
            if !names.iter().any(|name| holds_rows(name)) {
                // A first start that was interrupted leaves no more than this.
                return Ok(None);
            }
            let mut manifests = names.iter().filter(|name| name.starts_with(MANIFEST_PREFIX));
            let whole = match (manifests.next(), manifests.next()) {
                (Some(name), None) => manifest(&dir.join(name)).ok().map(|whole| (name, whole)),
                _ => None,
            };
            let Some((name, manifest)) = whole else {
                return Err(Error::Damaged { damages: [*damage].into() });
            };
            write(dir, name)?;
            tracing::warn!(target: "audit", %damage, manifest = name, "CURRENT was written again");
            Ok(Some(manifest))
        }
    }
}

/// Why there is no answer.
pub(crate) enum Unread {
    /// The files say nothing that can be true.
    Damaged(Box<Damage>),
    /// The system did not let them be read.
    Failed(Error),
}

/// Reads what an open database says of its files at this moment.
pub(crate) fn read(dir: &Path) -> Result<Manifest, Unread> {
    let current = dir.join(CURRENT);
    let text = match std::fs::read(&current) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(damaged(current, None, "is missing: expected the name of a MANIFEST"));
        }
        Err(error) => return Err(Unread::Failed(Error::io("read CURRENT", error))),
    };
    let name = std::str::from_utf8(&text).ok().and_then(|text| text.strip_suffix('\n'));
    let named = name.filter(|name| {
        let number = name.strip_prefix(MANIFEST_PREFIX);
        number.is_some_and(|it| it.len() >= 6 && it.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let Some(named) = named.map(|name| dir.join(name)).filter(|path| path.exists()) else {
        let detail = format!(
            "names {:?}: expected a MANIFEST beside it; if exactly one is there and whole, the \
             start after this restores it",
            String::from_utf8_lossy(&text)
        );
        return Err(damaged(current, None, &detail));
    };
    manifest(&named)
}

fn manifest(path: &Path) -> Result<Manifest, Unread> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return Err(Unread::Failed(Error::io("read the MANIFEST", error))),
    };
    let manifest = records::read(&bytes).and_then(|records| match records.is_empty() {
        true => Err(Broken::at(0, "it has no whole record")),
        false => Manifest::of(&records),
    });
    manifest.map_err(|Broken { offset, detail }| {
        damaged(path.to_owned(), Some(offset), &format!("the list of files is damaged: {detail}"))
    })
}

fn damaged(file: PathBuf, offset: Option<u64>, detail: &str) -> Unread {
    let damage = Damage { replica: None, file: Some(file), offset, detail: detail.to_owned() };
    Unread::Damaged(Box::new(damage))
}

fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let files = match std::fs::read_dir(dir) {
        Ok(files) => files,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read the database's directory", error)),
    };
    let name = |file: std::io::Result<std::fs::DirEntry>| {
        file.map(|file| file.file_name().to_string_lossy().into_owned())
    };
    let names: Result<Vec<_>, _> = files.map(name).collect();
    names.map_err(|error| Error::io("read the database's directory", error))
}

/// Tables and blob files that a flush under way when the power fails may leave unlisted.
const UNLISTED_MAX: usize = 2;

/// How many tables and blob files there are if the list has none of them, and that can't be what a
/// first flush has left.
pub(crate) fn unlisted(dir: &Path, manifest: &Manifest) -> Result<Option<usize>, Error> {
    if !manifest.files().is_empty() {
        return Ok(None);
    }
    let names = names(dir)?;
    let found = names.iter().filter(|name| holds_rows(name) && !name.ends_with(".log")).count();
    Ok(Some(found).filter(|found| *found > UNLISTED_MAX))
}

/// Whether a file of this name holds rows.
fn holds_rows(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    matches!(extension, Some("sst" | "blob" | "log"))
}

fn write(dir: &Path, manifest: &str) -> Result<(), Error> {
    let failed = |error| Error::io("write CURRENT again", error);
    let unfinished = dir.join(CURRENT_UNFINISHED);
    let mut file = File::create(&unfinished).map_err(failed)?;
    writeln!(file, "{manifest}").map_err(failed)?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&unfinished, dir.join(CURRENT)).map_err(failed)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}
