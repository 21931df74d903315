#!/usr/bin/env python3
"""Runs three nodes beside a three-member etcd and a Redis with two replicas, and measures what a
cluster is for: replicated writes, linearizable reads, what shards cost, what a move costs those who
write, and how long a dead leader is missed. Everything shares this machine; peers take turns in one
run (A B C C B A).

Redis needs WAITAOF, so 7.2 or newer: REDIS_SERVER names the program. An older one is left out.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from compare import ROOT, free_port, wait_for_port

SHARDS = [16, 64, 128]

# Writes per second at which syncs are counted, so that all shard counts do the same work.
STEADY_RATE = 1_500

IDLE_S = 10

# Of what callers who wait for their answers get done, so much is kept up while shards move.
MOVING_SHARE = 0.7
MOVING_S = 60
MOVED = 4

# An open loop: a call that is due while its leader is dead counts from when it was due.
FAILOVER_RATE = 500
FAILOVER_S = 5

# How long a node that came back may take to catch up.
EVEN_MAX_S = 30

WRITES = ("Replicated put of 4 KiB, 64 in flight", ["--mix", "put", "--state-bytes", "4KiB"], 64)
READS = ("Linearizable get of 4 KiB, 64 in flight", ["--mix", "get", "--state-bytes", "4KiB"], 64)


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def free_base(nodes):
    """The first of ten free ports for each node, below those that the system hands to connections."""
    for base in random.sample(range(20_000, 32_000, 100), 50):
        try:
            for port in range(base, base + 10 * nodes):
                with socket.socket() as listener:
                    listener.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
    sys.exit(f"no {10 * nodes} ports in a row are free from 20000 to 32000")


class Cluster:
    """Nodes by cluster/bootstrap.sh."""

    def __init__(self, statehouse, directory, shards, nodes=3):
        self.statehouse = statehouse
        self.directory = pathlib.Path(directory) / f"nodes-{nodes}-{shards}"
        self.base = free_base(nodes)
        self.environment = {**os.environ, "STATEHOUSE_BIN": str(statehouse)}
        try:
            self.script("--nodes", nodes, "--shards", shards, "--base-port", self.base)
        except SystemExit:
            self.destroy()
            raise
        self.endpoints = [f"http://127.0.0.1:{self.base + 10 * node}" for node in range(nodes)]

    def script(self, *arguments):
        return run(ROOT / "cluster/bootstrap.sh", *arguments, "--dir", self.directory,
                   env=self.environment)

    def pid(self, node):
        return int((self.directory / f"node-{node}/pid").read_text())

    def metric(self, name):
        """The sum of a counter over the nodes."""
        total = 0
        for node in range(3):
            page = run("curl", "-sf", f"http://127.0.0.1:{self.base + 10 * node + 1}/metrics")
            total += sum(float(value) for value in re.findall(rf"^{name} (\S+)$", page, re.M))
        return total

    def admin(self, *arguments):
        command = [self.statehouse, "admin", *arguments, "--json"]
        return json.loads(run(*command, "--endpoint", self.endpoints[0]))

    def processor_seconds(self, node):
        fields = pathlib.Path(f"/proc/{self.pid(node)}/stat").read_text().rsplit(")")[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def destroy(self):
        self.script("destroy", "--yes")


class Etcd:
    """Three members, as Debian has them; the quota is raised, since 2 GiB are soon full."""

    def __init__(self, directory):
        ports = [(free_port(), free_port()) for _ in range(3)]
        members = ",".join(f"e{at}=http://127.0.0.1:{peer}" for at, (_, peer) in enumerate(ports))
        self.endpoints = [f"http://127.0.0.1:{client}" for client, _ in ports]
        self.processes = []
        for at, (client, peer) in enumerate(ports):
            log = open(pathlib.Path(directory) / f"etcd-{at}.log", "wb")
            command = ["etcd", "--name", f"e{at}", "--data-dir", f"{directory}/etcd-{at}",
                       "--listen-client-urls", f"http://127.0.0.1:{client}",
                       "--advertise-client-urls", f"http://127.0.0.1:{client}",
                       "--listen-peer-urls", f"http://127.0.0.1:{peer}",
                       "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
                       "--initial-cluster", members, "--quota-backend-bytes", str(8 << 30)]
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        for (client, _), process in zip(ports, self.processes):
            wait_for_port(client, process)

    def stop(self):
        stop(self.processes)


class Redis:
    """A primary and two replicas, every write synced; a client waits for one replica's sync."""

    def __init__(self, program, directory):
        self.processes, ports = [], [free_port() for _ in range(3)]
        for at, port in enumerate(ports):
            folder = pathlib.Path(directory) / f"redis-{at}"
            folder.mkdir()
            log = open(pathlib.Path(directory) / f"redis-{at}.log", "wb")
            command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder),
                       "--save", "", "--appendonly", "yes", "--appendfsync", "always",
                       "--auto-aof-rewrite-percentage", "0", "--repl-diskless-sync-delay", "0"]
            if at > 0:
                command += ["--replicaof", "127.0.0.1", str(ports[0])]
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
            wait_for_port(port, self.processes[-1])
        self.endpoints = [f"127.0.0.1:{ports[0]}"]

    def stop(self):
        stop(self.processes)


def stop(processes):
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def redis_program():
    """A Redis that knows WAITAOF, or none."""
    program = os.environ.get("REDIS_SERVER", "redis-server")
    if not shutil.which(program):
        return None
    version = re.search(r"v=(\d+)\.(\d+)", run(program, "--version"))
    return program if version and tuple(map(int, version.groups())) >= (7, 2) else None


def loader(statehouse, target, endpoints, arguments, in_flight, seconds):
    """The command of one run of the loader."""
    connections = in_flight if target == "redis-replicated" else 4
    return [statehouse, "bench", "--json", "--target", target, "--endpoint", ",".join(endpoints),
            "--connections", connections, "--in-flight", in_flight,
            "--duration", f"{seconds}s", "--warmup", "1s", *arguments]


def bench(*what, load=False):
    """The figures of one run of the loader, over states that are put first if asked for."""
    return json.loads(run(*loader(*what), *(["--load"] if load else [])))


@contextlib.contextmanager
def loading(*what):
    """A run of the loader beside what is done meanwhile; ended with it if that fails."""
    load = subprocess.Popen(list(map(str, loader(*what))), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)
    try:
        yield load
    finally:
        load.kill()
        load.wait()


def figures_of(load):
    """Waits until a run of the loader is over."""
    out, error = load.communicate()
    if load.returncode != 0:
        sys.exit(error)
    return json.loads(out)


def row(name, runs):
    mean = lambda pick: sum(map(pick, runs)) / len(runs)
    return {"peer": name, "per_second": mean(lambda it: it["per_second"]),
            "p50_ms": mean(lambda it: it["latency_us"]["p50"]) / 1e3,
            "p99_ms": mean(lambda it: it["latency_us"]["p99"]) / 1e3,
            "errors": sum(it["errors"] for it in runs), "runs": runs}


def rates(statehouse, directory, seconds):
    """Writes and reads beside the peers."""
    with contextlib.ExitStack() as ends:
        cluster = Cluster(statehouse, directory, 16)
        ends.callback(cluster.destroy)
        etcd = Etcd(directory)
        ends.callback(etcd.stop)
        peers = [("etcd, three members", "etcd", etcd.endpoints),
                 ("statehouse, by its client", "client", cluster.endpoints),
                 ("statehouse, unary, any node", "unary", cluster.endpoints)]
        program = redis_program()
        if program:
            redis = Redis(program, directory)
            ends.callback(redis.stop)
            name = "Redis, two replicas, WAITAOF 1 1"
            peers.insert(1, (name, "redis-replicated", redis.endpoints))
        groups = []
        for name, arguments, in_flight in (WRITES, READS):
            # A read of Redis is of one server, whatever its replicas have.
            taking = [it for it in peers if name == WRITES[0] or it[1] != "redis-replicated"]
            for _, target, endpoints in taking:
                bench(statehouse, target, endpoints, arguments, in_flight, 1, load=True)
            runs = [[] for _ in taking]
            order = list(range(len(taking)))
            for at in order + order[::-1]:
                _, target, endpoints = taking[at]
                runs[at].append(bench(statehouse, target, endpoints, arguments, in_flight, seconds))
            groups.append({"name": name, "rows": [row(it[0], taken) for it, taken in zip(taking, runs)]})
        return groups


def shards(statehouse, directory, seconds):
    """What more shards cost: idle, at one rate of writes, and at the most there is."""
    rows = []
    for count in SHARDS:
        cluster = Cluster(statehouse, directory, count)
        try:
            before = [cluster.processor_seconds(node) for node in (1, 2, 3)]
            time.sleep(IDLE_S)
            idle = max(cluster.processor_seconds(node) - used
                       for node, used in zip((1, 2, 3), before)) / IDLE_S
            put = ["--mix", "put", "--state-bytes", "1KiB"]
            most = bench(statehouse, "client", cluster.endpoints, put, 256, seconds)
            syncs, started = cluster.metric("statehouse_syncs_total"), time.monotonic()
            steady = bench(statehouse, "client", cluster.endpoints, [*put, "--rate", STEADY_RATE],
                           256, seconds)
            syncs = (cluster.metric("statehouse_syncs_total") - syncs) / 3
            rows.append({"shards": count, "idle": idle, "puts_per_second": most["per_second"],
                         "p99_ms": most["latency_us"]["p99"] / 1e3,
                         "steady_per_second": steady["per_second"],
                         "syncs_per_second": syncs / (time.monotonic() - started),
                         "errors": most["errors"] + steady["errors"]})
        finally:
            cluster.destroy()
    return rows


def moves(statehouse, directory, seconds):
    """What callers notice while shards move and a node is emptied."""
    cluster = Cluster(statehouse, directory, 16, nodes=4)
    put = ["--mix", "put", "--state-bytes", "1KiB"]
    try:
        most = bench(statehouse, "client-ids", cluster.endpoints, put, 64, seconds, load=True)
        rate = most["per_second"] * MOVING_SHARE
        quiet = bench(statehouse, "client-ids", cluster.endpoints, [*put, "--rate", rate], 4096, seconds)
        with loading(statehouse, "client-ids", cluster.endpoints, [*put, "--rate", rate], 4096,
                     MOVING_S) as load:
            started = time.monotonic()
            for shard in range(1, MOVED + 1):
                replicas = {it["node"] for it in cluster.admin("shards")[shard]["replicas"]}
                away = next(node for node in range(1, 5) if node not in replicas)
                cluster.admin("move-shard", shard, "--from", min(replicas), "--to", away, "--wait")
            moved = time.monotonic() - started
            cluster.admin("drain", 4, "--wait")
            drained = time.monotonic() - started - moved
            if load.poll() is not None:
                sys.exit("the changes took longer than the load: raise MOVING_S")
            moving = figures_of(load)
        return {"most_per_second": most["per_second"], "rate": rate, "quiet": quiet,
                "moving": moving, "moves": MOVED, "moved_s": moved, "drained_s": drained}
    finally:
        cluster.destroy()


def failover(statehouse, directory, kills, stops):
    """The longest that any call took while a node was killed, or stopped in order."""
    cluster = Cluster(statehouse, directory, 16)
    longest = {"killed": [], "stopped": []}
    errors = 0
    try:
        turns = ["killed"] * kills + ["stopped"] * stops
        random.Random(0).shuffle(turns)
        for turn, kind in enumerate(turns):
            node = turn % 3 + 1
            # The loader starts at a node that lives.
            living = [it for at, it in enumerate(cluster.endpoints, 1) if at != node]
            put = ["--mix", "put", "--state-bytes", "1KiB", "--rate", FAILOVER_RATE]
            with loading(statehouse, "client-ids", living, put, 4096, FAILOVER_S) as load:
                time.sleep(2.5)
                os.kill(cluster.pid(node), signal.SIGKILL if kind == "killed" else signal.SIGTERM)
                figures = figures_of(load)
            longest[kind].append(figures["latency_us"]["max"] / 1e3)
            errors += figures["errors"]
            while pathlib.Path(f"/proc/{cluster.pid(node)}").exists():
                time.sleep(0.05)
            cluster.script("start", node)
            even_leads(statehouse, living[0])
            cluster.script()
        return {"kinds": {kind: sorted(taken) for kind, taken in longest.items()}, "errors": errors}
    finally:
        cluster.destroy()


def even_leads(statehouse, endpoint):
    """Leads go back to the node that came back, once it has caught up."""
    command = [statehouse, "admin", "rebalance", "--by", "leaders", "--endpoint", endpoint]
    deadline = time.monotonic() + EVEN_MAX_S
    while True:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            sys.exit(f"leads stay uneven: {done.stderr.strip()}")
        time.sleep(0.2)


def table_of_rates(groups):
    lines = []
    for group in groups:
        first = group["rows"][0]["per_second"]
        lines += [f"### {group['name']}", "", "| | per second | p50 ms | p99 ms | against the first |",
                  "|---|---|---|---|---|"]
        for it in group["rows"]:
            failed = f"; {it['errors']} calls failed" if it["errors"] else ""
            lines.append(f"| {it['peer']}{failed} | {it['per_second']:,.0f} | {it['p50_ms']:.1f} "
                         f"| {it['p99_ms']:.1f} | {it['per_second'] / first:.2f} |")
        lines.append("")
    return lines


def table_of_shards(rows):
    lines = ["### What shards cost", "",
             "Idle: of one core, the busiest node. Syncs: per node, at "
             f"{STEADY_RATE:,} puts/s of 1 KiB. Most: puts of 1 KiB, 256 in flight.", "",
             "| shards | idle | syncs/s | most, per second | p99 ms |", "|---|---|---|---|---|"]
    for it in rows:
        failed = f"; {it['errors']} calls failed" if it["errors"] else ""
        lines.append(f"| {it['shards']}{failed} | {it['idle']:.1%} | {it['syncs_per_second']:,.0f} "
                     f"| {it['puts_per_second']:,.0f} | {it['p99_ms']:.1f} |")
    return lines + [""]


def table_of_moves(result):
    lines = ["### Shards move", "",
             f"Four nodes, puts of 1 KiB at {result['rate']:,.0f}/s, {MOVING_SHARE:.0%} of the most. "
             f"{result['moves']} shards moved one after the other in {result['moved_s']:.1f} s, then a node "
             f"was emptied in {result['drained_s']:.1f} s.", "",
             "| | p50 ms | p99 ms | max ms | calls failed |", "|---|---|---|---|---|"]
    for name, it in (("nothing moves", result["quiet"]), ("shards move", result["moving"])):
        at = it["latency_us"]
        lines.append(f"| {name} | {at['p50'] / 1e3:.1f} | {at['p99'] / 1e3:.1f} | {at['max'] / 1e3:.0f} "
                     f"| {it['errors']} |")
    return lines + [""]


def table_of_failover(result):
    lines = ["### A node goes", "",
             f"The longest that any of {FAILOVER_RATE} puts per second took, over all shards, for "
             "each time a node went.", "", "| | times | p50 ms | p99 ms | max ms |", "|---|---|---|---|---|"]
    for kind, taken in result["kinds"].items():
        if taken:
            at = lambda share: taken[min(len(taken) - 1, int(share * len(taken)))]
            name = {"killed": "kill -9", "stopped": "stopped in order"}[kind]
            lines.append(f"| {name} | {len(taken)} | {at(0.5):,.0f} | {at(0.99):,.0f} | {taken[-1]:,.0f} |")
    return lines + ["", f"Calls failed: {result['errors']}.", ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--statehouse", required=True, type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benches/results")
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--only", choices=["rates", "shards", "moves", "failover"])
    arguments = parser.parse_args()
    # So that what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    directory = tempfile.mkdtemp(prefix="statehouse-cluster-bench-")
    lines, taken = [], {}
    try:
        if arguments.only in (None, "rates"):
            taken["rates"] = rates(arguments.statehouse, directory, arguments.seconds)
            lines += table_of_rates(taken["rates"])
        if arguments.only in (None, "shards"):
            taken["shards"] = shards(arguments.statehouse, directory, arguments.seconds)
            lines += table_of_shards(taken["shards"])
        if arguments.only in (None, "moves"):
            taken["moves"] = moves(arguments.statehouse, directory, arguments.seconds)
            lines += table_of_moves(taken["moves"])
        if arguments.only in (None, "failover"):
            taken["failover"] = failover(arguments.statehouse, directory,
                                         arguments.kills, arguments.stops)
            lines += table_of_failover(taken["failover"])
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    head = (f"Taken on {datetime.date.today()} on {os.cpu_count()} cores; three nodes, their peers and "
            f"the loader share the machine; {arguments.seconds} s a run, peers two runs each in turn.\n")
    text = "\n".join([head, *lines])
    print(text)
    if arguments.only is None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "cluster.md").write_text(text)
        (arguments.out / "cluster.json").write_text(json.dumps(taken, indent=1) + "\n")


if __name__ == "__main__":
    main()
