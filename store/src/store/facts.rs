//! The node's own facts: small rows of whoever opens the store, such as which node it is.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::Store;
use crate::commit::{Callback, Job};
use crate::db::{Mutation, Walk};
use crate::error::Error;
use crate::{keys, set_aside};

impl Store {
    /// Returns a fact of the node, if it was put.
    pub fn meta_get(&self, name: &str) -> Result<Option<Bytes>, Error> {
        self.inner.disk.db.fetch(&self.inner.disk.meta, &keys::node(name))
    }

    /// Returns the names of the facts that begin with a prefix, in order.
    pub fn meta_names(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let (disk, prefix) = (&self.inner.disk, keys::node(prefix));
        let mut names = Vec::new();
        disk.db.walk(&disk.meta, keys::facts(), Walk::Few, &mut |row, _| {
            if row.starts_with(&prefix)
                && let Some(name) = keys::name_of_fact(row)
            {
                names.push(name.to_owned());
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(names)
    }

    /// Keeps a small fact of the node; `done` fires when it is synced.
    pub fn meta_put(&self, name: &str, value: Bytes, done: Callback) -> Result<(), Error> {
        let family = self.inner.disk.meta.clone();
        let mutations = vec![Mutation::Put { family, key: keys::node(name), value }];
        self.inner.disk.commit.push(Job::synced(mutations, done))
    }

    /// Copies the facts that are synced to a file outside the database, so that they outlive it.
    /// Durable when it returns. Blocks.
    pub fn copy_facts(&self) -> Result<(), Error> {
        self.inner.facts.copy(&self.inner.disk)
    }

    /// Returns whether a database was ever set aside on this disk. If so, replicas that the facts
    /// name and the store does not have are lost, with their votes: they must not be made again
    /// under the same ids.
    pub fn was_set_aside(&self) -> Result<bool, Error> {
        Ok(self.meta_get(set_aside::FACT)?.is_some())
    }

    /// Removes the files of databases that were set aside. Returns how many there were. Call it
    /// when other nodes have rebuilt what was in them. Blocks.
    pub fn remove_set_aside(&self) -> Result<usize, Error> {
        set_aside::remove(&self.inner.aside)
            .map_err(|error| Error::io("remove a database that was set aside", error))
    }
}
