//! `statehouse admin tasks`, `task`, `cancel`: changes that are under way, and those that are over.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::bail;
use serde_json::{Value as Json, json};
use statehouse_proto::v1;

use super::super::text::show_bytes;
use super::remote::Remote;
use super::table::{Side, Table};
use super::wait::{Progress, Wait};
use super::watch::{View, watch};
use crate::clock::unix_now_ms;

/// What `tasks` takes.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Those that are over too.
    #[arg(long)]
    all: bool,
    /// Show them again and again.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    remote: Remote,
}

/// What `task` takes.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// Which.
    id: u64,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    remote: Remote,
}

/// What `cancel` takes.
#[derive(Debug, clap::Args)]
pub struct CancelArgs {
    /// Which.
    id: u64,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `tasks`.
pub async fn list(args: ListArgs) -> anyhow::Result<()> {
    let request = v1::ListTasksRequest { all: args.all };
    let look = async || {
        let listed = args.remote.ask(async |mut admin| admin.list_tasks(request).await).await?;
        Ok(view(&listed.tasks, unix_now_ms()))
    };
    if args.watch {
        return watch(args.remote.json, look).await;
    }
    look().await.map(|view| view.print(args.remote.json))
}

/// Runs `task`.
pub async fn show(args: ShowArgs) -> anyhow::Result<()> {
    if args.wait.wanted() {
        return follow(&args.remote, args.wait, &[args.id]).await;
    }
    print(&fetch(&args.remote, args.id).await?, &args.remote);
    Ok(())
}

/// Runs `cancel`.
pub async fn cancel(args: CancelArgs) -> anyhow::Result<()> {
    let request = v1::CancelTaskRequest { id: args.id };
    let task = args.remote.ask(async |mut admin| admin.cancel_task(request).await).await?;
    if !args.wait.wanted() {
        print(&task, &args.remote);
        return Ok(());
    }
    let look = async || Ok(progress(&[fetch(&args.remote, args.id).await?]));
    args.wait.until_over(look).await?;
    let task = fetch(&args.remote, args.id).await?;
    print(&task, &args.remote);
    match v1::TaskState::try_from(task.state) {
        Ok(v1::TaskState::Canceled) => Ok(()),
        _ => bail!("task {} is {} and not canceled", task.id, state_name(&task)),
    }
}

/// Waits for the end of tasks, prints them, and fails if one of them did not do what it was for.
pub async fn follow(remote: &Remote, wait: Wait, ids: &[u64]) -> anyhow::Result<()> {
    let all = async || {
        let mut tasks = Vec::with_capacity(ids.len());
        for id in ids {
            tasks.push(fetch(remote, *id).await?);
        }
        anyhow::Ok(tasks)
    };
    wait.until_over(async || Ok(progress(&all().await?))).await?;
    let tasks = all().await?;
    match &tasks[..] {
        [task] => print(task, remote),
        tasks => view(tasks, unix_now_ms()).print(remote.json),
    }
    match tasks.iter().find(|task| task.state != v1::TaskState::Done as i32) {
        Some(task) if task.error.is_empty() => bail!("task {} is {}", task.id, state_name(task)),
        Some(task) => bail!("task {} is {}: {}", task.id, state_name(task), task.error),
        None => Ok(()),
    }
}

async fn fetch(remote: &Remote, id: u64) -> anyhow::Result<v1::Task> {
    let request = v1::GetTaskRequest { id };
    Ok(remote.ask(async |mut admin| admin.get_task(request).await).await?)
}

fn is_over(task: &v1::Task) -> bool {
    !matches!(
        v1::TaskState::try_from(task.state),
        Ok(v1::TaskState::Running | v1::TaskState::Undoing)
    )
}

fn progress(tasks: &[v1::Task]) -> Progress {
    let going: Vec<&v1::Task> = tasks.iter().filter(|task| !is_over(task)).collect();
    let Some(first) = going.first() else { return Progress::Over };
    let now = match tasks.len() {
        1 => doing(first),
        all => format!("{} of {all} tasks to go; task {}: {}", going.len(), first.id, doing(first)),
    };
    let shares: f64 = going.iter().map(|task| share(task)).sum();
    let over = (tasks.len() - going.len()) as f64;
    Progress::Going { now, share: Some((over + shares) / tasks.len() as f64) }
}

/// The step and how far it is, in a few words.
fn doing(task: &v1::Task) -> String {
    let mut words = task.step.replace('_', " ");
    if v1::TaskState::try_from(task.state) == Ok(v1::TaskState::Undoing) {
        words = "undo".to_owned();
    }
    let moved = moved(task);
    if !moved.is_empty() {
        words = format!("{words}, {moved}");
    }
    if let Some(eta_ms) = task.eta_ms {
        words = format!("{words}, about {} left", show_ms(eta_ms));
    }
    if !task.error.is_empty() {
        words = format!("{words}; {} (try {})", task.error, task.tries);
    }
    words
}

/// What has come of what there is.
fn moved(task: &v1::Task) -> String {
    let is_over = is_over(task);
    if task.bytes_moved > 0 && !is_over {
        format!("{} of {}", show_bytes(task.bytes_moved), show_bytes(task.bytes))
    } else if task.entries_all > 0 && !is_over {
        format!("{} of {} entries", task.entries_have, task.entries_all)
    } else {
        String::new()
    }
}

/// Steps of a change, in order.
const STEPS: [&str; 7] = ["create", "learn", "catch_up", "join", "record", "destroy", "end"];

fn share(task: &v1::Task) -> f64 {
    let step = STEPS.iter().position(|step| *step == task.step).unwrap_or(0) as f64;
    let within = if task.step == "catch_up" && task.entries_all > 0 {
        task.entries_have as f64 / task.entries_all as f64
    } else {
        0.0
    };
    (step + within.min(1.0)) / (STEPS.len() - 1) as f64
}

fn state_name(task: &v1::Task) -> &'static str {
    match v1::TaskState::try_from(task.state) {
        Ok(v1::TaskState::Running) => "running",
        Ok(v1::TaskState::Undoing) => "undoing",
        Ok(v1::TaskState::Done) => "done",
        Ok(v1::TaskState::Canceled) => "canceled",
        Ok(v1::TaskState::Failed) => "failed",
        Ok(v1::TaskState::Unspecified) | Err(_) => "unknown",
    }
}

/// "node 1 to node 4", "to node 4", "from node 1".
fn way(task: &v1::Task) -> String {
    match (task.from, task.to) {
        (0, 0) => String::new(),
        (0, to) => format!("to node {to}"),
        (from, 0) => format!("from node {from}"),
        (from, to) => format!("node {from} to node {to}"),
    }
}

fn view(tasks: &[v1::Task], now_ms: u64) -> View {
    use Side::{Left, Right};
    let mut table = Table::new(&[
        ("task", Right),
        ("shard", Right),
        ("way", Left),
        ("for", Left),
        ("state", Left),
        ("step", Left),
        ("age", Right),
        ("about", Left),
    ]);
    let mut gist = String::new();
    for task in tasks {
        let (state, error) = (state_name(task), &task.error);
        gist.push_str(&format!("{} {state} {} {error}\n", task.id, task.step));
        let about = match task.eta_ms {
            _ if !error.is_empty() => format!("{error} (try {})", task.tries),
            Some(eta_ms) => format!("{}, {} left", moved(task), show_ms(eta_ms)),
            None => moved(task),
        };
        table.row([
            task.id.to_string(),
            task.shard.to_string(),
            way(task),
            task.purpose.clone(),
            state.to_owned(),
            task.step.replace('_', " "),
            show_ms(now_ms.saturating_sub(task.created_at_ms)),
            about,
        ]);
    }
    let text = if tasks.is_empty() { "no tasks\n".to_owned() } else { table.to_string() };
    View { text, json: tasks.iter().map(task_json).collect(), gist }
}

/// Prints one task.
pub fn print(task: &v1::Task, remote: &Remote) {
    if remote.json {
        super::super::output::print_json(&task_json(task));
        return;
    }
    let mut text = format!("task {}  shard {}  {}", task.id, task.shard, way(task));
    // Writing to a string can't fail.
    let _ = writeln!(text, "  ({})", task.purpose);
    let _ = write!(text, "  {}", state_name(task));
    if !is_over(task) {
        let _ = write!(text, ": {}", doing(task));
    } else if !task.error.is_empty() {
        let _ = write!(text, ": {}", task.error);
    }
    let took = task.changed_at_ms.saturating_sub(task.created_at_ms);
    println!("{text}  after {}, {}", show_ms(took), show_bytes(task.bytes));
}

/// Milliseconds for people: whole units are enough.
fn show_ms(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{:.1} s", Duration::from_millis(ms).as_secs_f64()),
        10_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

fn task_json(task: &v1::Task) -> Json {
    json!({
        "id": task.id,
        "shard": task.shard,
        "from": task.from,
        "to": task.to,
        "purpose": task.purpose,
        "step": task.step,
        "state": state_name(task),
        "created_at_ms": task.created_at_ms,
        "changed_at_ms": task.changed_at_ms,
        "entries_have": task.entries_have,
        "entries_all": task.entries_all,
        "bytes": task.bytes,
        "bytes_moved": task.bytes_moved,
        "eta_ms": task.eta_ms,
        "error": task.error,
        "tries": task.tries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> v1::Task {
        v1::Task {
            id: 7,
            shard: 3,
            from: 1,
            to: 4,
            purpose: "drain node 1".into(),
            step: "catch_up".into(),
            state: v1::TaskState::Running as i32,
            created_at_ms: 1_000,
            changed_at_ms: 4_000,
            entries_have: 500,
            entries_all: 1_000,
            bytes: 1 << 20,
            eta_ms: Some(3_000),
            ..Default::default()
        }
    }

    #[test]
    fn tasks_are_shown_with_step_and_time_left() {
        let text = view(&[task()], 5_000).text;
        let line = text.lines().nth(1).unwrap();
        for part in ["node 1 to node 4", "drain node 1", "running", "catch up", "4.0 s"] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(line.contains("500 of 1000 entries, 3.0 s left"), "{line}");
        let failing = v1::Task { error: "node 4 is silent".into(), tries: 3, ..task() };
        assert!(view(&[failing], 5_000).text.contains("node 4 is silent (try 3)"));
        assert_eq!(view(&[], 0).text, "no tasks\n");
        assert_eq!(way(&v1::Task { from: 0, ..task() }), "to node 4");
        assert_eq!(way(&v1::Task { to: 0, ..task() }), "from node 1");
    }

    #[test]
    fn waiting_ends_when_no_task_is_left() {
        let done = v1::Task { state: v1::TaskState::Done as i32, ..task() };
        assert!(matches!(progress(&[done.clone(), done.clone()]), Progress::Over));
        let Progress::Going { now, share } = progress(&[done, task()]) else {
            panic!("one is running")
        };
        assert!(now.starts_with("1 of 2 tasks to go; task 7: catch up, 500 of"), "{now}");
        let expected = f64::midpoint(1.0, 2.5 / 6.0);
        assert!((share.unwrap() - expected).abs() < 1e-9, "{share:?}");
        let undoing = v1::Task { state: v1::TaskState::Undoing as i32, ..task() };
        assert!(doing(&undoing).starts_with("undo"));
    }
}
