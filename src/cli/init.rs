//! `statehouse init` and `statehouse join`: prepare a fresh data directory, which `serve` runs.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde_json::json;
use statehouse_cluster::{ClusterId, Identity, NodeId};
use statehouse_proto::v1;
use statehouse_proto::v1::admin_client::AdminClient;
use statehouse_store::{Config, Store};
use tonic::transport::Endpoint;

use super::output::print_json;
use super::{text, with_scheme};

/// What `init` takes.
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// A fresh directory.
    #[arg(long)]
    data: PathBuf,
    /// Shards that hold states; fixed for ever.
    #[arg(long, default_value = "16")]
    shards: NonZeroU16,
    /// Replicas that each shard should have, once there are as many nodes.
    #[arg(long, default_value = "3")]
    replicas: NonZeroU16,
    /// A directory that is a node's already is fine.
    #[arg(long)]
    if_needed: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What `join` takes.
#[derive(Debug, clap::Args)]
pub struct JoinArgs {
    /// A fresh directory.
    #[arg(long)]
    data: PathBuf,
    /// Nodes of the cluster, as clients reach them; the first that answers is asked.
    #[arg(long = "seed", required = true, value_name = "HOST:PORT")]
    seeds: Vec<String>,
    /// Give up after this long, such as 500ms or 5s.
    #[arg(long, value_parser = text::duration, default_value = "30s")]
    timeout: std::time::Duration,
    /// A directory that is a node's already is fine.
    #[arg(long)]
    if_needed: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Founds a cluster.
pub async fn init(args: InitArgs) -> anyhow::Result<()> {
    let store = open(args.data.clone()).await?;
    let identity = match Identity::read(&store)? {
        Some(found) => known(found, args.if_needed)?,
        None => {
            let founder = Identity::founder(&store, args.shards, args.replicas);
            founder.write(&store).await?;
            founder
        }
    };
    close(store).await?;
    say(&identity, &args.data, args.json);
    Ok(())
}

/// Joins a cluster.
pub async fn join(args: JoinArgs) -> anyhow::Result<()> {
    let store = open(args.data.clone()).await?;
    let identity = match Identity::read(&store)? {
        Some(found) => known(found, args.if_needed)?,
        None => {
            let joined = ask(&args, store.id()).await?;
            let identity = identity(joined)?;
            identity.write(&store).await?;
            identity
        }
    };
    close(store).await?;
    say(&identity, &args.data, args.json);
    Ok(())
}

fn known(found: Identity, fine: bool) -> anyhow::Result<Identity> {
    if fine {
        return Ok(found);
    }
    bail!("the directory is already node {} of cluster {}", found.node, found.cluster)
}

/// The first answer of the seeds.
async fn ask(args: &JoinArgs, store: [u8; 16]) -> anyhow::Result<v1::JoinResponse> {
    let mut refused = Vec::new();
    for seed in &args.seeds {
        let asked = async {
            let endpoint = Endpoint::from_shared(with_scheme(seed))?.connect_timeout(args.timeout);
            let channel = endpoint.connect().await?;
            let mut request =
                tonic::Request::new(v1::JoinRequest { store_id: Bytes::copy_from_slice(&store) });
            request.set_timeout(args.timeout);
            Ok::<_, anyhow::Error>(AdminClient::new(channel).join(request).await?.into_inner())
        };
        match tokio::time::timeout(args.timeout, asked).await {
            Ok(Ok(joined)) => return Ok(joined),
            Ok(Err(error)) => refused.push(format!("{seed}: {}", reason(&error))),
            Err(_) => refused.push(format!("{seed}: no answer within {:?}", args.timeout)),
        }
    }
    bail!("no node let this one join: {}", refused.join("; "))
}

/// What a person wants to know of it.
fn reason(error: &anyhow::Error) -> String {
    match error.downcast_ref::<tonic::Status>() {
        Some(status) => status.message().to_owned(),
        None => format!("{error:#}"),
    }
}

fn identity(joined: v1::JoinResponse) -> anyhow::Result<Identity> {
    let cluster: [u8; 16] = joined.cluster_id[..].try_into().context("a cluster id of 16 bytes")?;
    let count = |number: u32| u16::try_from(number).ok().and_then(NonZeroU16::new);
    Ok(Identity {
        cluster: ClusterId(cluster),
        node: NodeId(joined.node),
        shards: count(joined.shards).context("a number of shards from 1 to 65,535")?,
        replicas: count(joined.replicas).context("a number of replicas from 1 to 65,535")?,
        founding: false,
        peers: joined
            .peers
            .into_iter()
            .map(|(id, at)| (NodeId(id), at))
            .collect::<BTreeMap<_, _>>(),
    })
}

async fn open(data: PathBuf) -> anyhow::Result<Store> {
    let open = move || Store::open(&data, Config::default()).map_err(anyhow::Error::from);
    tokio::task::spawn_blocking(open).await?
}

async fn close(store: Store) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || store.close()).await??;
    Ok(())
}

fn say(identity: &Identity, data: &std::path::Path, as_json: bool) {
    if as_json {
        return print_json(&json!({
            "cluster_id": identity.cluster.to_string(),
            "node": identity.node.0,
            "shards": identity.shards.get(),
            "replicas": identity.replicas.get(),
        }));
    }
    println!("node {} of cluster {}", identity.node, identity.cluster);
    println!("run it with: statehouse serve --data {}", data.display());
}
