#!/usr/bin/env python3
"""Measures large states, part by part: each starts the nodes it needs, with fixed memory where that
is the point, has `statehouse bench` load them, and Redis where there is something to compare, and
ends them. Then every goal is printed beside what was measured.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from cluster import Cluster, run
from compare import BUSY_MAX, QUIET_WAIT_S, ROOT, free_port, wait_for_port
from large_report import report

MIB = 1 << 20

# What the node may take of memory, and Redis; how far above it a node may be seen.
MEMORY_MAX = 512 * MIB
MEMORY_SLACK = 1.05

# How often a node's memory is looked at.
SAMPLE_S = 0.1

# How long a node may take to listen, to stop, and to have written what it still writes.
READY_MAX_S = 120
STOP_MAX_S = 60
SETTLE_MAX_S = 90

# How long one load may take.
PART_MAX_S = 1_800

# Bytes that the mixed work may take on the disk for each byte of its states, garbage included.
DISK_FACTOR = 3

WORKERS = 8
GET_RATE = 500

# Processes that only take processor time, as many as would be busy with streams.
BUSY_LOOPS = 4


class Node:
    """A node of its own."""

    def __init__(self, statehouse, directory, memory_max=MEMORY_MAX):
        self.statehouse, self.directory = statehouse, pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ}
        if memory_max:
            self.environment["STATEHOUSE_MEMORY_MAX"] = str(memory_max)
        self.start()

    def start(self):
        self.port, self.http_port = free_port(), free_port()
        self.log = self.directory / "log"
        command = [self.statehouse, "serve", "--data", self.directory / "data",
                   "--listen", f"127.0.0.1:{self.port}",
                   "--http-listen", f"127.0.0.1:{self.http_port}"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log,
                                            env=self.environment)
        wait_for_port(self.port, self.process)
        self.endpoint = f"127.0.0.1:{self.port}"
        deadline = time.monotonic() + READY_MAX_S
        while subprocess.run(["curl", "-sf", f"http://127.0.0.1:{self.http_port}/readyz"],
                             capture_output=True).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the node is not ready: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)

    def status(self, field):
        """Bytes, as /proc says."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{field}:\s+(\d+) kB", text, re.M)
        return int(found.group(1)) << 10 if found else 0

    def metrics(self):
        """Every line of /metrics, by name and labels."""
        page = run("curl", "-sf", f"http://127.0.0.1:{self.http_port}/metrics")
        lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def written(self):
        """Bytes that RocksDB wrote by what for, and those of fields that were applied."""
        found = self.metrics()
        kinds = ("wal", "flush", "compaction", "garbage_collection")
        written = {kind: found[f'statehouse_written_bytes_total{{kind="{kind}"}}'] for kind in kinds}
        written["payload"] = found["statehouse_payload_applied_bytes_total"]
        return written

    def settle(self):
        """Waits until nothing is written any more."""
        deadline, before = time.monotonic() + SETTLE_MAX_S, None
        while time.monotonic() < deadline:
            now = self.written()
            if now == before:
                return
            before = now
            time.sleep(5)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_MAX_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def restart(self):
        """Nothing is in memory afterwards."""
        self.stop()
        self.start()


class Watch:
    """Looks at a node's memory until the end of a `with`."""

    def __init__(self, node):
        self.node, self.resident_max, self.samples = node, 0, 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self):
        while not self.over.wait(SAMPLE_S):
            try:
                self.resident_max = max(self.resident_max, self.node.status("VmRSS"))
                self.samples += 1
            except OSError:
                return

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


class Bench:
    """What all parts are told."""

    def __init__(self, arguments, directory):
        self.statehouse, self.quick = arguments.statehouse, arguments.quick
        self.gib, self.seconds, self.seed = arguments.gib, arguments.seconds, arguments.seed
        self.directory = pathlib.Path(directory)

    def large(self, part, endpoint, *arguments):
        """The figures of one part of `statehouse bench large`."""
        command = [self.statehouse, "bench", "large", part, "--endpoint", endpoint,
                   "--seed", self.seed, "--json", *arguments]
        figures = json.loads(run(*command, timeout=PART_MAX_S))
        for failure in figures.get("failures", []):
            print(f"  {part}: {failure['count']} failed: {failure['first']}", file=sys.stderr)
        return figures

    @contextlib.contextmanager
    def node(self, name, **options):
        node = Node(self.statehouse, self.directory / name, **options)
        try:
            yield node
        finally:
            node.stop()
            shutil.rmtree(node.directory, ignore_errors=True)

    @contextlib.contextmanager
    def redis(self, *settings):
        port = free_port()
        log = open(self.directory / "redis.log", "wb")
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                   "--appendonly", "no", "--dir", str(self.directory), *settings]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for_port(port, process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(STOP_MAX_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def busy_share(seconds=2):
    """The share of all cores that is busy."""
    def ticks():
        fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        counts = list(map(int, fields))
        return sum(counts) - counts[3] - counts[4], sum(counts)
    busy, total = ticks()
    time.sleep(seconds)
    busy_after, total_after = ticks()
    return (busy_after - busy) / max(total_after - total, 1)


def wait_for_quiet():
    """A busy machine makes latencies that are not the node's."""
    deadline = time.monotonic() + QUIET_WAIT_S
    while (busy := busy_share()) > BUSY_MAX:
        if time.monotonic() > deadline:
            sys.exit(f"the machine is {busy:.0%} busy: nothing is measured")


def calls(figures):
    """Figures of each kind of call."""
    return {row["name"]: row for row in figures["calls"]}


def mixed(bench):
    """All kinds of calls on states of all sizes in fixed memory, and the same states in Redis."""
    total = f"{bench.gib}GiB"
    with bench.node("mixed") as node, Watch(node) as watch:
        run(bench.statehouse, "model", "push", ROOT / "examples/bank", "--endpoint", node.endpoint)
        load = bench.large("load", node.endpoint, "--total-bytes", total, "--workers", WORKERS)
        loaded_max = watch.resident_max
        work = bench.large("mixed", node.endpoint, "--total-bytes", total, "--workers", WORKERS,
                           "--duration", f"{bench.seconds}s")
        memory = {"max": MEMORY_MAX, "resident_max": watch.resident_max, "samples": watch.samples,
                  "resident_max_while_loading": loaded_max, "high_water": node.status("VmHWM")}
    with bench.redis("--maxmemory", str(MEMORY_MAX), "--maxmemory-policy", "noeviction") as endpoint:
        peer = bench.large("peer-load", endpoint, "--total-bytes", total, "--workers", WORKERS,
                           "--duration", f"{bench.seconds}s")
    seen = max(memory["resident_max"], memory["high_water"])
    failed = sum(failure["count"] for failure in work["failures"])
    return {"memory": memory, "load": load, "work": work, "peer": peer,
            "goals": [("memory of the node, of what it may take", seen / MEMORY_MAX, "<=",
                       MEMORY_SLACK, "x"),
                      ("calls that ended with anything but success or back-pressure", failed,
                       "<=", 0, "")]}


def ranges(bench):
    """4 KiB of a state of 64 MiB, and of one of 1 MiB, cold and hot; and a value of 16 MiB, whole."""
    keys = 8 if bench.quick else 32
    reads = 300 if bench.quick else 2_000
    whole = ["--state-bytes", "16MiB", "--keys", "4", "--count", 8 if bench.quick else 60]
    with bench.node("ranges") as node:
        for size, count in (("64MiB", keys), ("1MiB", 64 * keys), ("16MiB", 4)):
            bench.large("write", node.endpoint, "--state-bytes", size, "--keys", count,
                        "--count", count, "--workers", "4")
        node.settle()
        node.restart()
        found = bench.large("ranges", node.endpoint, "--keys", keys, "--count", reads,
                            "--duration", "120s")
        node_whole = bench.large("whole", node.endpoint, *whole)
    with bench.redis() as endpoint:
        redis_whole = bench.large("peer-whole", endpoint, *whole)
    of = calls(found)
    return {"ranges": found, "whole": node_whole, "redis": redis_whole,
            "data_bytes": 2 * keys * 64 * MIB, "memory_max": MEMORY_MAX,
            "goals": [("4 KiB of 64 MiB, cold, p50", of["large_cold"]["p50_ms"], "<=", 1.0, "ms"),
                      ("4 KiB of 64 MiB, hot, p50", of["large_hot"]["p50_ms"], "<=", 0.2, "ms"),
                      ("of 64 MiB against of 1 MiB, cold, p50",
                       of["large_cold"]["p50_ms"] / of["beside_cold"]["p50_ms"], "<=", 1.5, "x"),
                      ("of 64 MiB against of 1 MiB, hot, p50",
                       of["large_hot"]["p50_ms"] / of["beside_hot"]["p50_ms"], "<=", 1.5, "x")]}


def streams(bench):
    """States of 64 MiB written and read, one and four at a time, and what is written for a byte."""
    states = 8 if bench.quick else 48
    rows, goals = {}, []
    with bench.node("streams") as node:
        before = node.written()
        for workers in (1, 4):
            for part in ("write", "read"):
                figures = bench.large(part, node.endpoint, "--keys", 6, "--count", states,
                                      "--workers", workers, "--duration", "120s")
                rows[f"{part}, {workers} at a time"] = figures
                rate = sum(row["bytes"] for row in figures["calls"]) / 1e6 / figures["seconds"]
                goals.append((f"{part} of 64 MiB, {workers} at a time", rate, ">=", 300, "MB/s"))
        node.settle()
        after = node.written()
    written = {kind: after[kind] - before[kind] for kind in after}
    payload = written.pop("payload")
    factors = {kind: count / payload for kind, count in written.items()}
    goals.append(("bytes written for each byte of a state", sum(factors.values()), "<=", 2.6, "x"))
    return {"rows": rows, "written": factors, "payload": payload, "goals": goals}


def replicated(bench):
    """States of 16 MiB written to three nodes."""
    states = 20 if bench.quick else 200
    cluster = Cluster(bench.statehouse, bench.directory, 16)
    try:
        figures = bench.large("write", cluster.endpoints[0], "--state-bytes", "16MiB", "--keys", 16,
                              "--count", states, "--workers", 4, "--duration", "60s")
    finally:
        cluster.destroy()
    rate = figures["answers"] / figures["seconds"]
    return {"write": figures,
            "goals": [("states of 16 MiB written to three nodes", rate, ">=", 10, "/s")]}


@contextlib.contextmanager
def busy_loops(count):
    """Processes that take all the processor time that they get, and do nothing else."""
    loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def beside(bench):
    """Gets of 1 KiB alone, while eight clients write and read states of 64 MiB, and while others
    take as much processor time and leave the node alone."""
    seconds = 5 if bench.quick else 30
    gets = [bench.statehouse, "bench", "--json", "--target", "pipelined", "--mix", "get",
            "--state-bytes", "1KiB", "--rate", GET_RATE, "--connections", 1, "--in-flight", 512,
            "--duration", f"{seconds}s", "--warmup", "1s"]
    with bench.node("beside", memory_max=None) as node:
        bench.large("write", node.endpoint, "--keys", 8, "--count", 8, "--workers", 4)
        alone = json.loads(run(*gets, "--endpoint", node.endpoint, "--load"))
        churn = [bench.statehouse, "bench", "large", "churn", "--endpoint", node.endpoint,
                 "--keys", 8, "--workers", 8, "--duration", f"{seconds + 3}s", "--json"]
        with subprocess.Popen(list(map(str, churn)), stdout=subprocess.PIPE, text=True) as load:
            try:
                time.sleep(1)
                busy = json.loads(run(*gets, "--endpoint", node.endpoint))
                out, _ = load.communicate(timeout=120)
            finally:
                load.kill()
        churned = json.loads(out)
        node.settle()
        with busy_loops(BUSY_LOOPS):
            contended = json.loads(run(*gets, "--endpoint", node.endpoint))
    ratio = busy["latency_us"]["p99"] / alone["latency_us"]["p99"]
    return {"rate": GET_RATE, "alone": alone, "busy": busy, "churn": churned,
            "contended": contended, "loops": BUSY_LOOPS,
            "goals": [("get of 1 KiB beside streams against alone, p99", ratio, "<=", 3, "x")]}


def patches(bench):
    """A patch of 4 KiB in a state of 64 MiB beside a put of 4 KiB."""
    count = 200 if bench.quick else 2_000
    with bench.node("patches") as node:
        bench.large("write", node.endpoint, "--keys", 4, "--count", 4)
        found = bench.large("patches", node.endpoint, "--keys", 4, "--count", count,
                            "--duration", "120s")
    of = calls(found)
    ratio = of["patch"]["p50_ms"] / of["put"]["p50_ms"]
    return {"patches": found,
            "goals": [("patch of 4 KiB in 64 MiB against a put of 4 KiB, p50", ratio, "<=", 2, "x")]}


PARTS = {"mixed": mixed, "ranges": ranges, "streams": streams, "replicated": replicated,
         "beside": beside, "patches": patches}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--statehouse", required=True)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benches/results")
    parser.add_argument("--gib", type=int, help="of all states of the mixed work; 8")
    parser.add_argument("--seconds", type=int, help="of the mixed work; 600")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help=f"of {','.join(PARTS)}; nothing is written then")
    parser.add_argument("--quick", action="store_true", help="short, to see that it runs")
    arguments = parser.parse_args()
    arguments.gib = arguments.gib or (1 if arguments.quick else 8)
    arguments.seconds = arguments.seconds or (20 if arguments.quick else 600)
    wanted = arguments.only.split(",") if arguments.only else list(PARTS)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        parser.error(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
    # So that what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    directory = tempfile.mkdtemp(prefix="statehouse-large-")
    needed = DISK_FACTOR * (arguments.gib << 30)
    found = {}
    try:
        if shutil.disk_usage(directory).free < needed:
            sys.exit(f"{directory} needs {needed >> 30} GiB free: set TMPDIR")
        bench = Bench(arguments, directory)
        about = bench_machine(arguments.statehouse)
        for name in wanted:
            print(f"{name} ...", file=sys.stderr, flush=True)
            if not arguments.quick:
                wait_for_quiet()
            found[name] = PARTS[name](bench)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    when = datetime.date.today()
    text = report(found, about, when, arguments)
    print(text)
    if not arguments.only and not arguments.quick:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "large.md").write_text(text)
        found["machine"] = about
        (arguments.out / "large.json").write_text(json.dumps(found, indent=1) + "\n")


def bench_machine(statehouse):
    """The machine that all share."""
    return json.loads(run(statehouse, "bench", "large", "machine", "--json"))["machine"]


if __name__ == "__main__":
    main()
