//! The machine that figures are taken on: what it is, and whether it's idle enough to compare.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value as Json, json};

/// Processor, cores and memory, as Linux tells them.
pub fn describe() -> Json {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    json!({
        "processor": field(&read("/proc/cpuinfo"), "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

/// The share of all cores that was busy over `window`, 0 to 1.
pub async fn busy_share(window: Duration) -> anyhow::Result<f64> {
    let (busy_before, all_before) = ticks()?;
    tokio::time::sleep(window).await;
    let (busy, all) = ticks()?;
    Ok((busy - busy_before) as f64 / (all - all_before).max(1) as f64)
}

/// Busy and all ticks of all cores since the machine started.
fn ticks() -> anyhow::Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).filter_map(|number| number.parse().ok()).collect();
    let all = ticks.iter().take(8).sum();
    // The fourth and fifth are idle and waiting for the disk.
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Ok((all - idle, all))
}
