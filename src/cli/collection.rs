//! `statehouse collection`: create, list, describe, drop.

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
        /// Expiry of a write that names none, such as 30d; the default is never.
        #[arg(long, value_parser = text::duration)]
        ttl: Option<Duration>,
        /// A missing state reads as an empty one instead of an error.
        #[arg(long)]
        missing_is_empty: bool,
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
    /// Drop a collection and every state in it.
    Drop {
        /// Which.
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
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
            if_not_exists,
            remote,
        } => {
            let missing =
                if missing_is_empty { v1::MissingState::Empty } else { v1::MissingState::Error };
            let settings = v1::CollectionSettings {
                state_bytes_max: state_max.unwrap_or(0),
                inline_bytes_max: u32::try_from(inline_max.unwrap_or(0)).unwrap_or(u32::MAX),
                default_ttl_ms: ttl.map_or(0, |ttl| (ttl.as_millis() as u64).max(1)),
                missing: missing as i32,
                state_bytes_warn: warn_bytes.unwrap_or(0),
            };
            let settings = Some(settings);
            let request = v1::CreateCollectionRequest { name, settings, if_not_exists };
            let created = remote.connect().await?.create_collection(request).await?;
            print(&remote, &created);
        }
        Action::List { remote } => {
            let client = remote.connect().await?;
            let listed = client.state().list_collections(v1::ListCollectionsRequest {}).await;
            let listed = listed.map_err(|status| client.error(&status))?.into_inner().collections;
            if remote.json {
                print_json(&listed.iter().map(collection_json).collect());
            } else {
                listed.iter().for_each(print_line);
            }
        }
        Action::Describe { name, remote } => {
            let client = remote.connect().await?;
            let request = v1::DescribeCollectionRequest { name };
            let found = client.state().describe_collection(request).await;
            let found = found.map_err(|status| client.error(&status))?;
            print(&remote, found.get_ref());
        }
        Action::Drop { name, remote } => {
            let client = remote.connect().await?;
            let request = v1::DropCollectionRequest { name: name.clone() };
            client
                .state()
                .drop_collection(request)
                .await
                .map_err(|status| client.error(&status))?;
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
    println!(
        "{}  states up to {}{warn}, inline up to {}, {ttl}",
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
        "missing_is_empty": settings.missing == v1::MissingState::Empty as i32,
    })
}
