#!/usr/bin/env python3
"""Holds score_service.py to its word: starts a Redis and the service, compares its answers with
onnxruntime run directly, and with `--seconds N` also measures it with closed-loop callers.

The callers are Python too and cost about as much CPU as the service: the figures are a floor. The
loader that compares the peers is the Rust one.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np
import redis
import uvloop

import score_service

HERE = Path(__file__).resolve().parent
KEYS = 10_000


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="also measure, this long per mode"
    )
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("service", nargs="*", help="flags for the service, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/redis.sock"
        flags = ["--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder]
        processes = [subprocess.Popen(["redis-server", *flags], stdout=subprocess.DEVNULL)]
        try:
            store = redis.Redis(unix_socket_path=socket)
            wait_for_redis(store, processes[0])
            url = f"unix://{socket}"
            command = [HERE / "score_service.py", "--listen", "127.0.0.1:0", "--redis", url]
            service = subprocess.Popen(
                [sys.executable, *command, *arguments.service], stdout=subprocess.PIPE, text=True
            )
            processes.append(service)
            line = service.stdout.readline()
            assert line.startswith("listening on port"), f"the service said {line!r}"
            uvloop.run(check(f"127.0.0.1:{line.split()[-1]}", store, arguments))
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()
    assert service.returncode == 0, f"the service ended with {service.returncode}"
    print("ok")


def wait_for_redis(store, process):
    deadline = time.monotonic() + 10
    while True:
        try:
            return store.ping()
        except redis.ConnectionError:
            assert process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)


async def check(address, store, arguments):
    model = score_service.Model(score_service.ROOT / "examples/bank", 4096)
    score_pb2, score_pb2_grpc, types_pb2 = score_service.stubs()
    # Own pools: channels to one address otherwise share a connection.
    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(arguments.channels)
    ]
    calls = [score_pb2_grpc.ScoreStub(channel).Score for channel in channels]

    def request(key, row, step=False, name="x", model_name=model.name):
        mode = score_pb2.SCORE_MODE_STEP if step else score_pb2.SCORE_MODE_PEEK
        made = score_pb2.ScoreRequest(model=model_name, collection="accounts", key=key, mode=mode)
        tensor = made.inputs.add(name=name).tensor
        tensor.dtype, tensor.data = types_pb2.DATA_TYPE_F32, row
        tensor.shape.append(len(row) // 4)
        return made

    await check_steps(calls[0], request, model, store)
    await check_many(calls, request, model)
    await check_refusals(calls[0], request)
    if arguments.seconds:
        fill(store)
        for step in (False, True):
            await measure(calls, request, step, arguments)
    for channel in channels:
        await channel.close()


def row_of(seed):
    """A plausible raw row: amount, balance, days, and three codes."""
    random = np.random.default_rng(seed)
    amount, balance = random.lognormal(7, 1), random.lognormal(9, 1)
    row = [amount, balance, 8500 + seed % 400, seed % 4, seed % 6, seed % 8]
    return np.array(row, np.float32).tobytes()


async def check_steps(score, request, model, store):
    """A PEEK changes nothing; STEPs carry the state as onnxruntime does."""
    value = None
    for turn in range(25):
        row = row_of(turn)
        wanted, after = model.run([[row]], [value])
        for step in (False, True):
            answer = await score(request(b"account", row, step))
            found = {o.name: np.frombuffer(o.tensor.data, np.float32) for o in answer.outputs}
            assert found.keys() == wanted.keys(), f"outputs {found.keys()}"
            for name, array in wanted.items():
                np.testing.assert_allclose(found[name], array.ravel(), atol=1e-5, err_msg=name)
            assert answer.from_initial_state == (turn == 0)
        value = after.tobytes() + model.padding
        stored = store.get(b"account")
        assert len(stored) == 4096, f"a stored value of {len(stored)} bytes"
        kept, wanted = (np.frombuffer(v, np.float32) for v in (stored, value))
        np.testing.assert_allclose(kept, wanted, atol=1e-5)


async def check_many(calls, request, model):
    """Rows that share batches get their own answers."""
    rows = [row_of(seed) for seed in range(500)]
    answers = await asyncio.gather(
        *(calls[i % len(calls)](request(b"new-%d" % i, row)) for i, row in enumerate(rows))
    )
    wanted = model.run([[row] for row in rows], [None] * len(rows))[0]["score"]
    found = [np.frombuffer(a.outputs[0].tensor.data, np.float32)[0] for a in answers]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


async def check_refusals(score, request):
    row = row_of(1)
    for bad, code in (
        (request(b"k", row, model_name="other"), grpc.StatusCode.NOT_FOUND),
        (request(b"k", row, name="y"), grpc.StatusCode.INVALID_ARGUMENT),
        (request(b"k", row[:-4]), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        try:
            await score(bad)
        except grpc.aio.AioRpcError as error:
            assert error.code() == code, f"{error.code()}, not {code}"
        else:
            raise AssertionError(f"{code} was expected")


def fill(store):
    random = np.random.default_rng(7)
    for first in range(0, KEYS, 500):
        values = {}
        for key in range(first, first + 500):
            state = random.standard_normal(1024).astype(np.float32)
            values[b"key-%d" % key] = state.tobytes()
        store.mset(values)


async def measure(calls, request, step, arguments):
    random = np.random.default_rng(1)
    requests = [
        request(b"key-%d" % random.integers(KEYS), row_of(seed), step) for seed in range(2000)
    ]
    times = []
    began = time.perf_counter()
    until = began + arguments.seconds

    async def caller(number):
        position = number * 31
        while (start := time.perf_counter()) < until:
            await calls[number % len(calls)](requests[position % len(requests)])
            times.append(time.perf_counter() - start)
            position += 1

    await asyncio.gather(*(caller(n) for n in range(arguments.callers)))
    took = time.perf_counter() - began
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    mode = "STEP" if step else "PEEK"
    print(f"{mode}: {len(times) / took:.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms")


if __name__ == "__main__":
    main()
