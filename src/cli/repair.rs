//! `statehouse repair`: what is damaged in a data directory, and going on without what is lost.
//!
//! Works on a directory that no node has open. Without `--accept-loss` nothing is changed, but for
//! a damaged `CURRENT` of which there is no doubt what it named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use statehouse_cluster::catalog::{Names, names_on_disk};
use statehouse_store::{
    Accepted, CollectionId, Config, Damage, DamagePolicy, Loss, Lost, LostRows, Store, accept_loss,
    damage_policy, inspect_damage,
};

use super::output::print_json;

/// What `repair` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node's data directory. The node must not run.
    #[arg(long)]
    data: PathBuf,
    /// Keep what is whole, list what is lost, and let the node start again. For a node whose data
    /// no other node has: nothing brings back what is listed.
    #[arg(long)]
    accept_loss: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was found, and what was done.
struct Report {
    damages: Vec<Damage>,
    /// Other nodes hold the same data, and rebuild what is damaged here.
    rebuilt_elsewhere: bool,
    accepted: Option<Accepted>,
    /// Of the collections, as far as they are known.
    names: Names,
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let (data, as_json) = (args.data.clone(), args.json);
    let report = tokio::task::spawn_blocking(move || inspect(&args)).await??;
    match as_json {
        true => print_json(&report.json()),
        false => report.print(&data),
    }
    Ok(())
}

fn inspect(args: &Args) -> anyhow::Result<Report> {
    let damages = inspect_damage(&args.data)?;
    let rebuilt_elsewhere = damage_policy(&args.data)? == DamagePolicy::Quarantine;
    let accept = args.accept_loss && !damages.is_empty() && !rebuilt_elsewhere;
    let accepted = accept.then(|| accept_loss(&args.data)).transpose()?;
    let names = if accepted.is_some() { names_in(&args.data) } else { Names::new() };
    Ok(Report { damages, rebuilt_elsewhere, accepted, names })
}

/// The names of the collections in a directory that can be opened again. They are a convenience:
/// where they can't be read, ids have to do.
fn names_in(data: &Path) -> Names {
    let Ok(store) = Store::open(data, Config::default()) else { return Names::new() };
    let names = names_on_disk(&store).unwrap_or_default();
    if let Err(error) = store.close() {
        tracing::warn!(%error, "the store could not be closed in order");
    }
    names
}

impl Report {
    /// The entries of logs that were given up.
    fn entries(&self) -> impl Iterator<Item = &Loss> {
        self.accepted.iter().flat_map(|accepted| &accepted.entries)
    }

    /// The rows of tables and blob files that were given up.
    fn rows(&self) -> impl Iterator<Item = &Lost> {
        self.accepted.iter().flat_map(|accepted| &accepted.rows)
    }

    /// The collection's name in quotes, or its id where no name is known.
    fn name_of(&self, collection: CollectionId) -> String {
        match self.names.get(&collection) {
            Some(name) => format!("{name:?}"),
            None => collection.to_string(),
        }
    }

    fn json(&self) -> Json {
        let damage = |damage: &Damage| {
            json!({
                "replica": damage.replica.map(|id| id.0),
                "file": damage.file,
                "offset": damage.offset,
                "detail": damage.detail,
            })
        };
        let loss = |loss: &Loss| {
            let ranges: Vec<_> = ranges(loss)
                .into_iter()
                .map(|range| {
                    json!({
                        "collection": range.collection.0,
                        "name": self.names.get(&range.collection),
                        "keys": range.keys,
                        "first_key": range.first,
                        "last_key": range.last,
                    })
                })
                .collect();
            json!({
                "replica": loss.replica.0,
                "first_entry": loss.first,
                "last_entry": loss.last,
                "collections": ranges,
            })
        };
        json!({
            "damages": self.damages.iter().map(damage).collect::<Vec<_>>(),
            "rebuilt_from_other_nodes": self.rebuilt_elsewhere,
            "loss_accepted": self.accepted.is_some(),
            "lost": self.entries().map(loss).collect::<Vec<_>>(),
            "lost_rows": self.rows().map(|lost| rows_json(lost, &self.names)).collect::<Vec<_>>(),
        })
    }

    fn print(&self, data: &Path) {
        if self.damages.is_empty() {
            return println!("no damage found");
        }
        for damage in &self.damages {
            println!("{damage}");
        }
        if self.rebuilt_elsewhere {
            return println!(
                "other nodes hold the same data: start the node, and they rebuild these replicas"
            );
        }
        if self.accepted.is_none() {
            println!("nothing was changed; a copy of the directory, if there is one, has it all");
            return println!(
                "to go on without what is damaged: statehouse repair --data {} --accept-loss",
                data.display()
            );
        }
        println!("accepted: the node starts again without");
        if self.entries().next().is_none() && self.rows().next().is_none() {
            println!("  nothing: all entries and rows are whole");
        }
        for lost in self.rows() {
            println!("  {}", lost.describe(|collection| self.name_of(collection)));
        }
        for loss in self.entries() {
            println!("  entries {} to {} of replica {}", loss.first, loss.last, loss.replica);
            for range in ranges(loss) {
                let KeyRange { collection, keys, first, last } = range;
                let name = self.name_of(collection);
                println!("    collection {name}: {keys} keys from \"{first}\" to \"{last}\"");
            }
            if loss.keys.is_empty() {
                println!("    the damaged bytes do not say of which keys");
            }
        }
    }
}

fn rows_json(lost: &Lost, names: &Names) -> Json {
    let state = |collection: &CollectionId, key: &[u8]| {
        let (name, key) = (names.get(collection), String::from_utf8_lossy(key));
        json!({ "collection": collection.0, "name": name, "key": key })
    };
    let mut row = match &lost.rows {
        LostRows::State(collection, key) => json!({ "state": state(collection, key) }),
        LostRows::States { after, before } => {
            let after = after.as_ref().map(|(collection, key)| state(collection, key));
            let before = before.as_ref().map(|(collection, key)| state(collection, key));
            json!({ "states": { "after": after, "before": before } })
        }
        LostRows::Uploads => json!({ "uploads": true }),
        LostRows::Requests => json!({ "request_ids": true }),
        LostRows::EntriesFrom(first) => json!({ "entries_from": first }),
    };
    row["replica"] = lost.replica.0.into();
    row
}

/// The keys of one collection that a loss concerns.
struct KeyRange {
    collection: CollectionId,
    keys: usize,
    first: String,
    last: String,
}

fn ranges(loss: &Loss) -> Vec<KeyRange> {
    let mut keys: BTreeMap<CollectionId, Vec<&[u8]>> = BTreeMap::new();
    for (collection, key) in &loss.keys {
        keys.entry(*collection).or_default().push(key);
    }
    let text = |key: Option<&&[u8]>| {
        key.map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default()
    };
    keys.into_iter()
        .map(|(collection, mut keys)| {
            keys.sort_unstable();
            let (first, last) = (text(keys.first()), text(keys.last()));
            KeyRange { collection, keys: keys.len(), first, last }
        })
        .collect()
}
