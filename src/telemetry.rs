//! Logs: lines to standard error, as text for people or JSON for programs.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// openraft tells of every message and every try: what matters of it we tell ourselves.
const QUIET: &str = "openraft=error";

/// Starts logging. `filter` is a `tracing` filter such as "info" or "statehouse=debug".
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = match filter.contains("openraft") {
        true => EnvFilter::try_new(filter)?,
        false => EnvFilter::try_new(format!("{filter},{QUIET}"))?,
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("start logging: {error}"))
}
