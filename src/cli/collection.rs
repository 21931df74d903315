//! `statehouse collection`: create, list, describe, update, drop.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value as Json, json};
use statehouse_client::v1;

use super::output::print_json;
use super::text::show_bytes;
use super::{Remote, text};

/// What `collection` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create a collection.
    Create {
        /// [a-z0-9-_.], starting with a letter or digit.
        name: String,
        /// The largest state, such as 16MiB; the default is 1GiB.
        #[arg(long, value_parser = text::bytes)]
        state_max: Option<u64>,
        /// Warn of writes that leave a larger state, such as 64MiB; the default is never.
        #[arg(long, value_parser = text::bytes)]
        warn_bytes: Option<u64>,
        /// States up to this size lie in one row; the default is 16KiB.
        #[arg(long, value_parser = text::bytes)]
        inline_max: Option<u64>,
        /// Expiry of states that are put or created without one, such as 30d; the default is never.
        #[arg(long, value_parser = text::duration)]
        ttl: Option<Duration>,
        /// A missing state reads as an empty one instead of an error.
        #[arg(long)]
        missing_is_empty: bool,
        /// Keep its states in memory where other collections never evict them.
        #[arg(long)]
        pinned: bool,
        /// Succeed if it exists with the same settings.
        #[arg(long)]
        if_not_exists: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// List all collections.
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Describe a collection.
    Describe {
        /// Which.
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Change settings of a collection, for what is written from then on.
    Update(UpdateArgs),
    /// Drop a collection and every state in it.
    Drop {
        /// Which.
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
}

/// What `update` takes. What is not given stays as it is.
#[derive(Debug, clap::Args)]
struct UpdateArgs {
    /// Which.
    name: String,
    /// The largest state, such as 16MiB.
    #[arg(long, value_parser = text::bytes)]
    state_max: Option<u64>,
    /// States up to this size lie in one row, once they are written again.
    #[arg(long, value_parser = text::bytes)]
    inline_max: Option<u64>,
    /// Expiry of states that are put or created without one, such as 30d, or `never`.
    #[arg(long, value_parser = ttl_or_never)]
    ttl: Option<u64>,
    /// Whether its states have a part of the memory that other collections never evict them from.
    #[arg(long)]
    pinned: Option<bool>,
    /// Writes that leave a larger state are warned of; 0 for none.
    #[arg(long, value_parser = text::bytes)]
    warn_bytes: Option<u64>,
    #[command(flatten)]
    remote: Remote,
}

fn ttl_ms(ttl: Duration) -> u64 {
    (ttl.as_millis() as u64).max(1)
}

/// Milliseconds; 0: never.
fn ttl_or_never(text: &str) -> Result<u64, String> {
    match text {
        "never" => Ok(0),
        _ => text::duration(text).map(ttl_ms),
    }
}

async fn update(args: UpdateArgs) -> anyhow::Result<()> {
    let inline_bytes_max = args.inline_max.map(|max| u32::try_from(max).unwrap_or(u32::MAX));
    let request = v1::UpdateCollectionRequest {
        name: args.name,
        state_bytes_max: args.state_max,
        inline_bytes_max,
        default_ttl_ms: args.ttl,
        pinned: args.pinned,
        state_bytes_warn: args.warn_bytes,
    };
    let updated = args.remote.connect().await?.update_collection(request).await?;
    print(&args.remote, &updated);
    Ok(())
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    match args.action {
        Action::Create {
            name,
            state_max,
            warn_bytes,
            inline_max,
            ttl,
            missing_is_empty,
            pinned,
            if_not_exists,
            remote,
        } => {
            let missing =
                if missing_is_empty { v1::MissingState::Empty } else { v1::MissingState::Error };
            let settings = v1::CollectionSettings {
                state_bytes_max: state_max.unwrap_or(0),
                inline_bytes_max: u32::try_from(inline_max.unwrap_or(0)).unwrap_or(u32::MAX),
                default_ttl_ms: ttl.map_or(0, ttl_ms),
                missing: missing as i32,
                pinned,
                state_bytes_warn: warn_bytes.unwrap_or(0),
            };
            let settings = Some(settings);
            let request = v1::CreateCollectionRequest { name, settings, if_not_exists };
            let created = remote.connect().await?.create_collection(request).await?;
            print(&remote, &created);
        }
        Action::List { remote } => {
            let client = remote.connect().await?;
            let listed = client.list_collections().await?;
            if remote.json {
                print_json(&listed.iter().map(collection_json).collect());
            } else {
                listed.iter().for_each(print_line);
            }
        }
        Action::Describe { name, remote } => {
            let client = remote.connect().await?;
            print(&remote, &client.describe_collection(&name).await?);
        }
        Action::Update(args) => update(args).await?,
        Action::Drop { name, remote } => {
            let client = remote.connect().await?;
            client.drop_collection(&name).await?;
            if remote.json {
                print_json(&json!({ "dropped": name }));
            } else {
                println!("dropped {name}");
            }
        }
    }
    Ok(())
}

fn print(remote: &Remote, collection: &v1::Collection) {
    if remote.json {
        print_json(&collection_json(collection));
    } else {
        print_line(collection);
    }
}

fn print_line(collection: &v1::Collection) {
    let settings = collection.settings.unwrap_or_default();
    let ttl = match settings.default_ttl_ms {
        0 => "never expire".to_owned(),
        ttl_ms => format!("expire after {:?}", Duration::from_millis(ttl_ms)),
    };
    let warn = match settings.state_bytes_warn {
        0 => String::new(),
        bytes => format!(", a warning above {}", show_bytes(bytes)),
    };
    let pinned = if settings.pinned { ", pinned" } else { "" };
    println!(
        "{}  states up to {}{warn}, inline up to {}, {ttl}{pinned}",
        collection.name,
        show_bytes(settings.state_bytes_max),
        show_bytes(settings.inline_bytes_max.into()),
    );
}

fn collection_json(collection: &v1::Collection) -> Json {
    let settings = collection.settings.unwrap_or_default();
    json!({
        "name": collection.name,
        "id": collection.id,
        "created_at_ms": collection.created_at_ms,
        "state_bytes_max": settings.state_bytes_max,
        "state_bytes_warn": settings.state_bytes_warn,
        "inline_bytes_max": settings.inline_bytes_max,
        "default_ttl_ms": settings.default_ttl_ms,
        "pinned": settings.pinned,
        "missing_is_empty": settings.missing == v1::MissingState::Empty as i32,
    })
}
