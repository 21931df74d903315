//! `cluster/bootstrap.sh` forms a cluster, mends it when it's run again, and refuses what does
//! not fit with a code and a reason.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use tokio::sync::OwnedMutexGuard;

use crate::harness::addresses::free_addresses;
use crate::harness::cluster::turn;

struct Script {
    dir: TempDir,
    base_port: u16,
    _turn: OwnedMutexGuard<()>,
}

impl Script {
    fn new() -> Self {
        let turn = turn();
        // Up to five nodes of three ports each, ten apart.
        let base_port = std::iter::repeat_with(|| free_addresses()[0].port())
            .find(|port| {
                (0..50).all(|more| std::net::TcpListener::bind(("127.0.0.1", port + more)).is_ok())
            })
            .unwrap();
        Script { dir: tempfile::tempdir().unwrap(), base_port, _turn: turn }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("cluster")
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new("cluster/bootstrap.sh");
        command.arg("--dir").arg(self.path()).args(args);
        command.env("STATEHOUSE_BIN", env!("CARGO_BIN_EXE_statehouse"));
        command.output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{args:?}: {said}");
        String::from_utf8(out.stdout).unwrap()
    }

    fn refused(&self, args: &[&str], code: i32) -> String {
        let out = self.run(args);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
        said
    }

    fn pid_file(&self, node: u32) -> PathBuf {
        self.path().join(format!("node-{node}/pid"))
    }

    fn pid(&self, node: u32) -> String {
        std::fs::read_to_string(self.pid_file(node)).unwrap().trim().to_owned()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // Whatever happened, no process stays.
        let out = self.run(&["destroy", "--yes"]);
        if !out.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&out.stderr));
        }
    }
}

#[test]
fn a_cluster_is_formed_mended_grown_and_taken_away() {
    let script = Script::new();
    let base_port = script.base_port.to_string();
    let form = ["--nodes", "3", "--shards", "2", "--base-port", &base_port];
    let said = script.ok(&form);
    assert!(said.contains("started nodes 1 2 3") && said.contains("all is well"), "{said}");
    assert!(said.contains("export STATEHOUSE_ENDPOINT=127.0.0.1:"), "{said}");
    let before: Vec<String> = (1..=3).map(|node| script.pid(node)).collect();
    assert!(script.ok(&form).contains("all nodes run already"));
    assert!(script.ok(&["kill", "2"]).contains(&before[1]));
    assert!(script.ok(&["status"]).contains("node 2  is down"));
    // Run again, it starts what is down and touches nothing else.
    assert!(script.ok(&[]).contains("started nodes 2\n"));
    assert_eq!((script.pid(1), script.pid(3)), (before[0].clone(), before[2].clone()));
    assert_ne!(script.pid(2), before[1]);
    let grown = script.ok(&["add-node"]);
    assert!(grown.contains("started node 4") && grown.contains("4 of 4 alive"), "{grown}");

    // What does not fit is refused.
    assert!(script.refused(&["--nodes", "5"], 5).contains("has 4 nodes"));
    assert!(script.refused(&["--shards", "3"], 5).contains("formed with --shards 2"));
    assert!(script.refused(&["start", "9"], 2).contains("nodes 1 to 4"));
    script.ok(&["kill", "4"]);
    assert!(script.refused(&["kill", "4"], 1).contains("does not run"));
    std::fs::write(script.pid_file(4), std::process::id().to_string()).unwrap();
    let foreign = script.refused(&["stop"], 5);
    assert!(foreign.contains("which is not node 4"), "{foreign}");
    std::fs::remove_file(script.pid_file(4)).unwrap();
    let taken = std::net::TcpListener::bind(("127.0.0.1", script.base_port + 31)).unwrap();
    assert!(script.refused(&["start", "4"], 3).contains("is taken"));
    drop(taken);

    assert!(script.ok(&["stop"]).contains("stopped nodes 1 2 3"));
    assert!(script.ok(&["stop"]).contains("no node runs"));
    assert!(script.refused(&["destroy"], 2).contains("--yes"), "it asks, and nobody is there");
    script.ok(&["destroy", "--yes"]);
    assert!(!script.path().exists());
}

#[test]
fn what_is_missing_is_named() {
    let script = Script::new();
    assert!(script.refused(&["status"], 5).contains("there is no cluster in"));
    assert!(script.refused(&["--nodes", "none"], 2).contains("expected --nodes of at least 1"));
    assert!(script.refused(&["dance"], 2).contains("got 'dance'"));
    let mut command = Command::new("cluster/bootstrap.sh");
    command.args(["status", "--dir", "/nowhere"]).env("STATEHOUSE_BIN", "/nowhere/statehouse");
    assert_eq!(command.output().unwrap().status.code(), Some(4));
    let unit = script.ok(&["--print-systemd"]);
    assert!(unit.contains("ExecStart=/usr/local/bin/statehouse serve"));
    let service = unit.find("[Service]").unwrap();
    let limit = unit.find("StartLimitIntervalSec=0").expect("it is started again for ever");
    assert!(limit < service, "systemd reads it in [Unit]");
    assert!(unit[service..].contains("Restart=always\nRestartSec="));
    assert!(script.ok(&["--print-env"]).contains("STATEHOUSE_PEER_ADVERTISE="));
    let path = script.path();
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(Path::new(&path).join("letter"), "dear").unwrap();
    assert!(script.refused(&[], 5).contains("is not empty"));
}
