//! Setting a database aside that can't be opened any more, and removing it when it is not needed.
//!
//! Where other nodes hold the same rows ([`crate::DamagePolicy::Quarantine`]) and the copy of the
//! node's facts is whole (`facts.rs`), a node that lost its MANIFEST or its own rows begins with an
//! empty database and the facts. It never takes part under its replicas' old ids: the facts name
//! them, and whoever opens the store quarantines them. The old files are kept in `damaged/` until
//! the replicas are rebuilt: nothing is deleted while it may be the last copy.
//!
//! A crash at any step is made good by the next opening: the copy of the facts stays where it is,
//! and a database without facts takes them from there.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::directory::Directory;
use crate::error::Error;

/// Databases kept at most; what is beyond that is for a person to look at.
const KEPT_MAX: u32 = 100;

const DATABASE_PREFIX: &str = "db-";
const SYNCED_PREFIX: &str = "synced-";

/// The name of the fact that a database was set aside on this disk.
pub(crate) const FACT: &str = "set-aside";

/// Moves the database out of the way. The directory is then as one without a database.
pub(crate) fn set_aside(directory: &Directory) -> Result<PathBuf, Error> {
    let failed = |error| Error::io("set the damaged database aside", error);
    std::fs::create_dir_all(&directory.aside).map_err(failed)?;
    let number = (1..=KEPT_MAX).find(|number| !kept(&directory.aside, *number).exists());
    let number = number.ok_or_else(|| {
        let detail = format!("{} holds {KEPT_MAX} databases", directory.aside.display());
        Error::io("set the damaged database aside", detail)
    })?;
    // First: a database without it is known to be damaged, it without a database is not.
    let claims = directory.aside.join(format!("{SYNCED_PREFIX}{number}"));
    match std::fs::rename(&directory.synced, claims) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let parent = directory.database.parent().unwrap_or(Path::new("."));
    sync(parent).map_err(failed)?;
    let to = kept(&directory.aside, number);
    match std::fs::rename(&directory.database, &to) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    sync(&directory.aside).and_then(|()| sync(parent)).map_err(failed)?;
    Ok(to)
}

/// Removes the databases that were set aside. Returns how many there were.
pub(crate) fn remove(aside: &Path) -> std::io::Result<usize> {
    let mut removed = 0;
    for entry in entries(aside)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(DATABASE_PREFIX) {
            std::fs::remove_dir_all(&path)?;
            removed += 1;
        } else if name.starts_with(SYNCED_PREFIX) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(removed)
}

fn entries(aside: &Path) -> std::io::Result<Vec<std::io::Result<std::fs::DirEntry>>> {
    match std::fs::read_dir(aside) {
        Ok(entries) => Ok(entries.collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn kept(aside: &Path, number: u32) -> PathBuf {
    aside.join(format!("{DATABASE_PREFIX}{number}"))
}

fn sync(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}
