"""Runs a node and its peers side by side and prints what they do, with ratios.

Peers take turns (A B C C B A), so that a drifting machine weighs on all alike. A loaded machine
is refused. Three classes are kept apart: memory, synced on one node, synced and replicated.
"""

import argparse
import datetime
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A share of the machine above which a comparison would be unfair.
BUSY_MAX = 0.2

# How long a quiet moment is waited for.
QUIET_WAIT_S = 120

KEYS = 10_000
STATE_BYTES = 4096

GROUPS = [
    # name, class, what is compared (first the peer), arguments of `statehouse bench`
    ("Get 1 KiB, 64 in flight", "memory", "get", [
        ("redis GET", "redis", ["--connections", "64"]),
        ("bare tonic echo, unary", "echo", []),
        ("statehouse, unary", "unary", []),
        ("statehouse, pipelined", "pipelined", []),
    ], ["--mix", "get", "--state-bytes", "1KiB"]),
    ("BatchGet 32 x 4 KiB, 16 in flight", "memory", "get4k", [
        ("redis MGET", "redis", ["--connections", "16"]),
        ("statehouse, unary", "unary", ["--connections", "4"]),
        ("statehouse, pipelined", "pipelined", ["--connections", "4"]),
    ], ["--mix", "batch-get", "--state-bytes", "4KiB", "--in-flight", "16"]),
    ("Put 1 KiB, 64 in flight", "synced on one node", "put", [
        ("redis SET, appendfsync always", "redis-aof", ["--connections", "64"]),
        ("statehouse, unary", "unary", []),
        ("statehouse, pipelined", "pipelined", []),
    ], ["--mix", "put", "--state-bytes", "1KiB"]),
    ("BatchPut 32 x 1 KiB, 16 in flight", "synced on one node", "put", [
        ("redis MSET, appendfsync always", "redis-aof", ["--connections", "16"]),
        ("statehouse, unary", "unary", ["--connections", "4"]),
        ("statehouse, pipelined", "pipelined", ["--connections", "4"]),
    ], ["--mix", "batch-put", "--state-bytes", "1KiB", "--in-flight", "16"]),
    ("Score PEEK, 4 KiB state, 64 callers", "memory", "score", [
        ("Python, Redis, onnxruntime", "service", []),
        ("statehouse, unary", "unary", []),
        ("statehouse, pipelined", "pipelined", []),
    ], ["--mix", "peek", "--state-bytes", "4KiB"]),
    ("Score STEP, 4 KiB state, 64 callers; the service's is neither synced nor ordered",
     "synced on one node", "score", [
        ("Python, Redis, onnxruntime", "service", []),
        ("statehouse, unary", "unary", []),
        ("statehouse, pipelined", "pipelined", []),
    ], ["--mix", "step", "--state-bytes", "4KiB"]),
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for_port(port, process):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"{process.args[0]} ended with {process.returncode} before it listened")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"{process.args[0]} does not listen on {port}")


class Machine:
    """The processes of one run."""

    def __init__(self, statehouse, directory):
        self.statehouse = statehouse
        self.directory = pathlib.Path(directory)
        self.processes = []
        self.ports = {}

    def start(self, name, port, *command):
        log = open(self.directory / f"{name}.log", "wb")
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, cwd=self.directory)
        self.processes.append(process)
        self.ports[name] = port
        wait_for_port(port, process)

    def start_all(self):
        port = free_port()
        self.start("node", port, self.statehouse, "serve", "--data", self.directory / "node",
                   "--listen", f"127.0.0.1:{port}", "--http-listen", f"127.0.0.1:{free_port()}")
        port = free_port()
        self.start("echo", port, self.statehouse, "bench", "--serve-echo", f"127.0.0.1:{port}")
        port = free_port()
        self.start("redis", port, "redis-server", "--port", port, "--save", "", "--appendonly", "no",
                   "--bind", "127.0.0.1")
        (self.directory / "aof").mkdir()
        port = free_port()
        self.start("redis-aof", port, "redis-server", "--port", port, "--save", "", "--appendonly", "yes",
                   "--appendfsync", "always", "--dir", self.directory / "aof", "--bind", "127.0.0.1",
                   # A rewrite in the middle of a run would weigh on one side alone.
                   "--auto-aof-rewrite-percentage", "0")
        port = free_port()
        self.start("redis-states", port, "redis-server", "--port", port, "--save", "", "--appendonly", "no",
                   "--bind", "127.0.0.1")
        load_zero_states(port)
        service = port
        port = free_port()
        self.start("service", port, sys.executable, ROOT / "benches/peers/score_service.py",
                   "--listen", f"127.0.0.1:{port}", "--redis", f"redis://127.0.0.1:{service}",
                   "--model", ROOT / "examples/bank", "--state-bytes", STATE_BYTES)
        subprocess.run([self.statehouse, "model", "push", ROOT / "examples/bank",
                        "--endpoint", f"127.0.0.1:{self.ports['node']}"], check=True,
                       stdout=subprocess.DEVNULL)

    def stop(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def bench(self, peer, arguments, seconds, load=False):
        node = f"127.0.0.1:{self.ports['node']}"
        target, server = {
            "unary": ("unary", "node"), "pipelined": ("pipelined", "node"),
            "echo": ("echo", "echo"), "redis": ("redis", "redis"),
            "redis-aof": ("redis", "redis-aof"), "service": ("unary", "service"),
        }[peer]
        command = [self.statehouse, "bench", "--json", "--target", target,
                   "--endpoint", f"127.0.0.1:{self.ports[server]}", "--keys", KEYS,
                   "--duration", f"{seconds}s", "--warmup", "1s", *arguments]
        if peer == "service":
            command += ["--setup-endpoint", node]
        if load and peer not in ("echo", "service"):
            command.append("--load")
        else:
            command += ["--busy-max", BUSY_MAX]
        deadline = time.monotonic() + QUIET_WAIT_S
        while True:
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            if done.returncode == 0:
                return json.loads(done.stdout)
            if "% busy" not in done.stderr or time.monotonic() > deadline:
                sys.exit(f"{peer}: {done.stderr.strip()}")


def load_zero_states(port):
    """A state of zeros under every key of the scoring service: 4 KiB of valid floats."""
    value = bytes(STATE_BYTES)
    with socket.create_connection(("127.0.0.1", port)) as redis:
        for first in range(1, KEYS + 1, 500):
            keys = [f"key-{rank:010}".encode() for rank in range(first, first + 500)]
            redis.sendall(b"".join(
                b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, len(value), value)
                for key in keys))
            answers = b""
            while len(answers) < 5 * len(keys):
                answers += redis.recv(65536)


def measure(machine, group, seconds):
    name, kind, _, peers, common = group
    for _, peer, extra in peers:
        machine.bench(peer, common + extra, 1, load=True)
    order = list(range(len(peers)))
    runs = [[] for _ in peers]
    for at in order + order[::-1]:
        _, peer, extra = peers[at]
        runs[at].append(machine.bench(peer, common + extra, seconds))
    rows = []
    for (title, _, _), taken in zip(peers, runs):
        mean = lambda pick: sum(map(pick, taken)) / len(taken)
        rows.append({
            "peer": title,
            "per_second": mean(lambda run: run["per_second"]),
            "bytes_per_second": mean(lambda run: run["bytes_per_second"]),
            "p50_ms": mean(lambda run: run["latency_us"]["p50"]) / 1e3,
            "p99_ms": mean(lambda run: run["latency_us"]["p99"]) / 1e3,
            "errors": sum(run["errors"] for run in taken),
            "runs": taken,
        })
    return {"name": name, "class": kind, "rows": rows}


def table(groups):
    lines = []
    for group in groups:
        first = group["rows"][0]["per_second"]
        lines += [f"### {group['name']} ({group['class']})", "",
                  "| | per second | MB/s | p50 ms | p99 ms | against the first |",
                  "|---|---|---|---|---|---|"]
        for row in group["rows"]:
            volume = f"{row['bytes_per_second'] / 1e6:,.0f}" if row["bytes_per_second"] else ""
            lines.append(f"| {row['peer']} | {row['per_second']:,.0f} | {volume} | {row['p50_ms']:.2f} "
                         f"| {row['p99_ms']:.2f} | {row['per_second'] / first:.2f} |")
            if row["errors"]:
                lines.append(f"| {row['errors']} calls failed | | | | | |")
        lines.append("")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--statehouse", required=True)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benches/results")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--only", help="groups whose name contains this")
    parser.add_argument("--quick", action="store_true", help="two seconds each, to see that it runs")
    arguments = parser.parse_args()
    seconds = 2 if arguments.quick else arguments.seconds
    directory = tempfile.mkdtemp(prefix="statehouse-peers-")
    machine = Machine(arguments.statehouse, directory)
    try:
        machine.start_all()
        groups = [measure(machine, group, seconds) for group in GROUPS
                  if not arguments.only or arguments.only.lower() in group[0].lower()]
    finally:
        machine.stop()
        shutil.rmtree(directory, ignore_errors=True)
    about = groups[0]["rows"][-1]["runs"][0]["machine"]
    text = (f"Taken on {datetime.date.today()}: {about['cores']} cores of {about['processor']}, "
            f"{about['memory']}, Linux {about['kernel']}; {seconds} s a run, two runs each in turn; "
            "the loader and all peers share the machine.\n\n" + table(groups))
    print(text)
    if not arguments.only:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "peers.md").write_text(text)
        (arguments.out / "peers.json").write_text(json.dumps(groups, indent=1) + "\n")


if __name__ == "__main__":
    main()
