//! A disk that takes long for every sync slows its own node down: the others go on, nothing is
//! answered wrong, and the slow one keeps up.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::harness::cluster::Cluster;
use crate::harness::preload::Preload;
use crate::harness::workload::{Load, Workload};
use crate::harness::{report, seed};

/// How long each sync of the slow disk takes more.
const DELAY_MS: u32 = 60;

/// Answers that must come while a disk is slow.
const ANSWERS: u64 = 1_500;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_is_slow_holds_up_nothing() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3).await;
    let library = slow_syncs(&cluster.dir());
    let load = Workload::start(&cluster, Load::default(), random.random()).await;
    load.answers(100).await;
    let slow = random.random_range(1..=3);
    cluster.stop(slow).await;
    cluster.set_env(slow, vec![library.env()]);
    cluster.start_node(slow).await;
    // It leads some shards again, or will.
    load.answers(ANSWERS).await;
    cluster.whole().await;
    let verdict = load.judge(&cluster.dir()).await;
    cluster.level().await;
    report("a slow disk", &format!("seed {seed}, node {slow} +{DELAY_MS} ms a sync, {verdict}"));
}

/// A library that makes the syncs of the program that loads it slow.
fn slow_syncs(dir: &Path) -> Preload {
    let code = format!(
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <unistd.h>\n\
         static int slowly(const char *name, int fd) {{\n\
           usleep({DELAY_MS} * 1000);\n\
           return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);\n}}\n\
         int fsync(int fd) {{ return slowly(\"fsync\", fd); }}\n\
         int fdatasync(int fd) {{ return slowly(\"fdatasync\", fd); }}\n"
    );
    Preload::compile(dir, "slow", &code)
}
