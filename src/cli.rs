//! The command line: one binary, one file per subcommand.
//!
//! Human output by default, `--json` for programs. Exit codes: 0 done, 1 failed, 2 wrong usage,
//! 3 no node answered, 4 not found, 5 a condition did not hold, 6 refused for now (retry later),
//! 7 acknowledged data is damaged.

mod admin;
mod bench;
mod collection;
mod demo;
mod expiry;
mod field;
mod init;
mod large;
mod model;
mod npy;
mod output;
mod prefetch;
mod repair;
mod replay;
mod score;
mod serve;
mod state;
pub mod text;

use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use statehouse_client::{Client, Config, Error};
use statehouse_store as store;
use tonic::Code;

/// The exit code of a node whose disk has lost acknowledged data: a restart does not help.
const DAMAGED: u8 = 7;

/// A stateful model-state store that scores where the state lies.
#[derive(Debug, Parser)]
#[command(name = "statehouse", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node.
    Serve(serve::Args),
    /// Found a cluster in a fresh directory.
    Init(init::InitArgs),
    /// Join a running cluster with a fresh directory.
    Join(init::JoinArgs),
    /// See what is damaged in a data directory, and go on without what is lost.
    Repair(repair::Args),
    /// Read a state.
    Get(state::GetArgs),
    /// Write a whole state.
    Put(state::PutArgs),
    /// Change parts of a state.
    Patch(state::PatchArgs),
    /// Delete a state.
    Delete(state::DeleteArgs),
    /// Write a state of any size from files, chunk by chunk.
    Write(large::WriteArgs),
    /// Read a state of any size into files, chunk by chunk.
    Read(large::ReadArgs),
    /// Bring states into memory before they are read.
    Prefetch(prefetch::Args),
    /// Score an event next to its state.
    Score(score::Args),
    /// Create, list, describe, update and drop collections.
    Collection(collection::Args),
    /// Push, list, describe, activate and delete models.
    Model(model::Args),
    /// Look after a cluster: nodes, shards, and how they move.
    Admin(admin::Args),
    /// Step through a file of events, in order per key.
    Replay(replay::Args),
    /// Generate load and measure it.
    Bench(Box<bench::Args>),
    /// See all of it work: a node, the example model, a stream of events.
    Demo(demo::Args),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Which node to speak to, and how to answer.
#[derive(Debug, Clone, clap::Args)]
struct Remote {
    /// A node's address, or those of some nodes with commas between: the first that answers
    /// names the others.
    #[arg(
        long,
        env = "STATEHOUSE_ENDPOINT",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7070"
    )]
    endpoint: Vec<String>,
    /// Give up after this long, such as 500ms or 5s.
    #[arg(long, value_parser = text::duration, default_value = "30s")]
    timeout: Duration,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Remote {
    async fn connect(&self) -> Result<Client, Error> {
        self.connect_wide(1).await
    }

    async fn connect_wide(&self, pipelines: usize) -> Result<Client, Error> {
        let timeout = Some(self.timeout);
        let endpoints = self.endpoint.iter().map(|endpoint| with_scheme(endpoint));
        let config = Config { pipelines, timeout, ..Config::any_of(endpoints) };
        Client::connect(config).await
    }
}

/// "host:port" is as good as "http://host:port".
fn with_scheme(endpoint: &str) -> String {
    let endpoint = endpoint.trim();
    if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") }
}

/// Runs the command line of this process, and ends it.
pub fn run() -> ! {
    crate::leave::now(run_to_end())
}

fn run_to_end() -> u8 {
    let cli = Cli::parse();
    if let Command::Serve(_) = cli.command {
        // Before there are threads that would not inherit it.
        crate::scheduling::gather();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::anyhow!("start the async runtime: {error}")),
    };
    match runtime.block_on(dispatch(cli.command)) {
        Ok(()) => 0,
        Err(error) => fail(&error),
    }
}

async fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Init(args) => init::init(args).await,
        Command::Join(args) => init::join(args).await,
        Command::Repair(args) => repair::run(args).await,
        Command::Get(args) => state::get(args).await,
        Command::Put(args) => state::put(args).await,
        Command::Patch(args) => state::patch(args).await,
        Command::Delete(args) => state::delete(args).await,
        Command::Write(args) => large::write(args).await,
        Command::Read(args) => large::read(args).await,
        Command::Prefetch(args) => prefetch::run(args).await,
        Command::Score(args) => score::run(args).await,
        Command::Collection(args) => collection::run(args).await,
        Command::Model(args) => model::run(args).await,
        Command::Admin(args) => admin::run(args).await,
        Command::Replay(args) => replay::run(args).await,
        Command::Bench(args) => bench::run(*args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "statehouse", &mut std::io::stdout());
            Ok(())
        }
    }
}

fn fail(error: &anyhow::Error) -> u8 {
    eprintln!("error: {error:#}");
    if let Some(store::Error::Damaged { .. }) = error.downcast_ref() {
        eprintln!("nothing was changed. To see all of it and how to go on:");
        eprintln!("  statehouse repair --data DIR");
        return DAMAGED;
    }
    error.downcast_ref::<Error>().map_or(1, |error| match error {
        Error::Unreachable { .. } => 3,
        Error::Refused { code, .. } => match code {
            Code::NotFound => 4,
            Code::Aborted | Code::FailedPrecondition | Code::AlreadyExists => 5,
            Code::ResourceExhausted | Code::Unavailable | Code::DeadlineExceeded => 6,
            _ => 1,
        },
        Error::Unexpected(_) => 1,
    })
}
