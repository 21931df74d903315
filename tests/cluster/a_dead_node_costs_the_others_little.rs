//! A node that can't be reached is tried again, but not all the time: the others have better
//! things to do, and disks that their logs must not fill.

use std::time::Duration;

use crate::harness::cluster::Cluster;

/// Of processor time per second of a node that has nothing to do but to look for a dead one.
const SHARE_MAX: f64 = 0.25;

/// How long is measured.
const MEASURED: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_costs_the_others_little() {
    let mut cluster = Cluster::start(3).await;
    let dead = cluster.leader(1).await;
    cluster.kill(dead);
    let alive = cluster.leader(1).await;
    let before = processor_time(cluster.pid(alive));
    // Nothing is waited for: what is measured is what happens meanwhile.
    let nothing = std::future::pending::<()>();
    assert!(tokio::time::timeout(MEASURED, nothing).await.is_err());
    let share = (processor_time(cluster.pid(alive)) - before) / MEASURED.as_secs_f64();
    assert!(share < SHARE_MAX, "{:.0} % of a core", share * 100.0);
}

/// Seconds of processor time that a process has used, in all its threads.
fn processor_time(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}
