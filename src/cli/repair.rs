//! `statehouse repair`: what is damaged in a data directory, and going on without what is lost.
//!
//! Works on a directory that no node has open. Without `--accept-loss` nothing is changed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value as Json, json};
use statehouse_store::{
    CollectionId, Damage, DamagePolicy, Loss, accept_loss, damage_policy, inspect_damage,
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
    Ok(Report { damages, rebuilt_elsewhere, losses })
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

    fn print(&self, data: &std::path::Path) {
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
                println!(
                    "    collection {}: {} keys from \"{}\" to \"{}\"",
                    range.collection, range.keys, range.first, range.last
                );
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
