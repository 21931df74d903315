//! `statehouse repair`: what is damaged in a data directory, and going on without what is lost.
//!
//! Works on a directory that no node has open. Without `--accept-loss` nothing is changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use statehouse_cluster::catalog::{Names, names_on_disk};
use statehouse_store::{
    CollectionId, Config, Damage, DamagePolicy, Loss, Store, accept_loss, damage_policy,
    inspect_damage,
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
    losses: Option<Vec<Loss>>,
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
    let losses = accept.then(|| accept_loss(&args.data)).transpose()?;
    let has_keys = losses.iter().flatten().any(|loss| !loss.keys.is_empty());
    let names = if has_keys { names_in(&args.data) } else { Names::new() };
    Ok(Report { damages, rebuilt_elsewhere, losses, names })
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
            "loss_accepted": self.losses.is_some(),
            "lost": self.losses.iter().flatten().map(loss).collect::<Vec<_>>(),
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
        let Some(losses) = &self.losses else {
            println!("nothing was changed; a copy of the directory, if there is one, has it all");
            return println!(
                "to go on without what is damaged: statehouse repair --data {} --accept-loss",
                data.display()
            );
        };
        println!("accepted: the node starts again without");
        if losses.is_empty() {
            println!("  nothing: all entries are whole");
        }
        for loss in losses {
            println!("  entries {} to {} of replica {}", loss.first, loss.last, loss.replica);
            for range in ranges(loss) {
                let KeyRange { collection, keys, first, last } = range;
                let name = match self.names.get(&collection) {
                    Some(name) => format!("{name:?}"),
                    None => collection.to_string(),
                };
                println!("    collection {name}: {keys} keys from \"{first}\" to \"{last}\"");
            }
            if loss.keys.is_empty() {
                println!("    the damaged bytes do not say of which keys");
            }
        }
    }
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
