//! Reads and compactions that failed: what that means, and whom it concerns.
//!
//! Part of the door in `db.rs`. Rows that are lost are reported at once, with the replica that they
//! belong to, whoever asked for them; other failures are the caller's alone.

use std::ops::ControlFlow;
use std::sync::Arc;

use rocksdb::{BottommostLevelCompaction, CompactOptions, properties};

use super::{DATABASE, Db, Family, Walk, failed, message};
use crate::damage::Damage;
use crate::error::Error;
use crate::files::LiveFile;
use crate::ids::ReplicaId;
use crate::keys;

impl Db {
    /// Returns why a flush or a compaction has failed since the database was opened, if one has;
    /// one that met lost rows has not.
    pub fn background_failure(&self) -> Option<&str> {
        // In this order: a failure is forgiven before it is counted.
        let count = self.rocks.property_int_value(properties::BACKGROUND_ERRORS);
        let count = count.ok().flatten().unwrap_or_default();
        let unsaid = "RocksDB failed in the background; the file LOG in its directory says why";
        (count > self.heard.forgiven()).then(|| self.heard.failure().unwrap_or(unsaid))
    }

    /// Reports what compactions have met since the last call, and has those families compact no
    /// more: they would fail for ever.
    pub fn report_spoiled(self: &Arc<Self>) {
        for spoiled in self.heard.take_spoiled() {
            // First: until then tables pile up, and from some number on nobody may write.
            if let Some(family) = self.family(&spoiled.family) {
                let off = [("disable_auto_compactions", "true")];
                if let Err(error) = self.rocks.set_options_cf(&family.0.handle, &off) {
                    tracing::warn!(%error, family = spoiled.family, "compactions go on failing");
                }
            }
            match spoiled.family == keys::LOG_FAMILY {
                true => self.blame_for_log(&spoiled.lost),
                false => self.report(&spoiled.family, &[], &spoiled.lost),
            }
        }
    }

    /// Finds out whose entries can't be read any more: reading them reports it. Those that no
    /// replica has any more are nobody's loss; that the log is not compacted is the node's.
    fn blame_for_log(self: &Arc<Self>, lost: &message::Lost) {
        tracing::warn!(detail = lost.detail, "a compaction of the log met a damaged block");
        let whole = (Vec::new(), vec![u8::MAX]);
        match self.unreadable_logs(whole) {
            Ok(ids) if !ids.is_empty() => {
                tracing::warn!(?ids, "logs of these replicas can't be read to their ends");
            }
            Ok(_) | Err(_) => self.report(keys::META_FAMILY, &[], lost),
        }
    }

    /// Has the log's tables written anew if every row of a damaged one can be read; answers whether
    /// they can. The table stays if a compaction meets what is damaged: rows that nobody has.
    pub fn rewrite_log_if_whole(self: &Arc<Self>, live: &LiveFile) -> bool {
        let Some((first, last)) = live.keys.clone() else { return false };
        if self.unreadable_logs((first.clone(), last.clone())).is_ok_and(|ids| ids.is_empty())
            && let Some(log) = self.family(keys::LOG_FAMILY)
        {
            let mut options = CompactOptions::default();
            options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
            let range = (Some(first), Some(last));
            self.rocks.compact_range_cf_opt(&log.0.handle, range.0, range.1, &options);
            return true;
        }
        false
    }

    /// The replicas some of whose entries in a range of log rows can't be read.
    fn unreadable_logs(
        self: &Arc<Self>,
        (first, last): (Vec<u8>, Vec<u8>),
    ) -> Result<Vec<ReplicaId>, Error> {
        let missing = || Error::corrupt(DATABASE, "a family is missing");
        let log = self.family(keys::LOG_FAMILY).ok_or_else(missing)?;
        let meta = self.family(keys::META_FAMILY).ok_or_else(missing)?;
        let mut ids = Vec::new();
        self.walk(&meta, keys::descriptors(), Walk::Few, &mut |row, _| {
            ids.extend(keys::replica_of_descriptor(row));
            Ok(ControlFlow::Continue(()))
        })?;
        ids.retain(|id| {
            let (start, end) = (keys::entry(*id, 0), keys::entry(*id, u64::MAX));
            let all = Walk::Ahead { keep: false };
            end >= first
                && start <= last
                && self
                    .walk(&log, (start, end), all, &mut |_, _| Ok(ControlFlow::Continue(())))
                    .is_err()
        });
        Ok(ids)
    }

    /// What a read that failed comes to. Lost rows are reported with the replica they belong to.
    pub(super) fn unread(
        &self,
        what: &'static str,
        family: &Family,
        key: &[u8],
        error: rocksdb::Error,
    ) -> Error {
        let Some(lost) = message::lost(error.as_ref()) else { return Error::io(what, error) };
        self.report(&family.0.name, key, &lost);
        Error::corrupt(DATABASE, error)
    }

    fn report(&self, family: &str, key: &[u8], lost: &message::Lost) {
        self.damage.report(&Damage {
            replica: keys::replica_of_row(family, key),
            file: lost.file.clone(),
            offset: lost.offset,
            detail: lost.detail.clone(),
        });
    }
}

/// What an opening that failed comes to.
pub(super) fn unopened(error: rocksdb::Error) -> Error {
    let Some(lost) = message::lost(error.as_ref()) else { return failed("open", error) };
    let message::Lost { file, offset, detail } = lost;
    Error::Damaged { damages: [Damage { replica: None, file, offset, detail }].into() }
}
