#!/usr/bin/env python3
"""The system that Statehouse replaces, done well: a Python gRPC service that keeps model state in
Redis and scores with onnxruntime, answering `statehouse.v1.Score/Score` as a node does.

Rows that wait while a batch is under way form the next one, of at most `--batch-rows-max`; none
waits for company. A batch costs one MGET, one run of the graph on a thread beside the event loop,
and for STEP one MSET. `--batches-in-flight` lets one batch's Redis traffic overlap another's run.

What it deliberately lacks, as such services do: steps of one key are not ordered (two at once read
the same state, and the later write wins), nothing is synced to disk, request ids are ignored.
"""

import argparse
import asyncio
import gc
import importlib
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnxruntime as ort
import redis.asyncio
import uvloop

ROOT = Path(__file__).resolve().parents[2]
QUEUE_ROWS_MAX = 4096
MESSAGE_BYTES_MAX = 4 << 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--listen", default="127.0.0.1:50061", help="port 0 picks a free one")
    parser.add_argument("--redis", default="redis://127.0.0.1:6379", help="or unix:///path/to.sock")
    parser.add_argument("--model", type=Path, default=ROOT / "examples/bank")
    parser.add_argument("--state-bytes", type=int, default=4096, help="of a stored value, padded")
    parser.add_argument("--batch-rows-max", type=int, default=64)
    parser.add_argument("--batches-in-flight", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that share the port")
    arguments = parser.parse_args()
    if arguments.workers == 1:
        uvloop.run(serve(arguments))
    else:
        share_port(arguments)


def share_port(arguments):
    """Starts one process per worker on the same port (SO_REUSEPORT) and ends with them."""
    host, port = arguments.listen.rsplit(":", 1)
    with socket.socket() as chosen:
        # Holds the port, unlistened, so that "port 0" is one and the same for all.
        chosen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        chosen.bind((host, int(port)))
        flags = {
            "--listen": f"{host}:{chosen.getsockname()[1]}",
            "--redis": arguments.redis,
            "--model": arguments.model,
            "--state-bytes": arguments.state_bytes,
            "--batch-rows-max": arguments.batch_rows_max,
            "--batches-in-flight": arguments.batches_in_flight,
        }
        command = [sys.executable, __file__, *(str(a) for flag in flags.items() for a in flag)]
        workers = [subprocess.Popen(command) for _ in range(arguments.workers)]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: [worker.terminate() for worker in workers])
        sys.exit(max(abs(worker.wait()) for worker in workers))


async def serve(arguments):
    score_pb2, score_pb2_grpc, types_pb2 = stubs()
    model = Model(arguments.model, arguments.state_bytes)
    store = redis.asyncio.from_url(arguments.redis)
    await store.ping()
    batches = Batches(model, store, arguments.batch_rows_max, arguments.batches_in_flight)

    class Score(score_pb2_grpc.ScoreServicer):
        async def Score(self, request, context):
            row = await checked(model, request, context)
            if batches.full():
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue of rows is full")
            step = request.mode == score_pb2.SCORE_MODE_STEP
            outputs, from_initial_state = await batches.score(request.key, row, step)
            response = score_pb2.ScoreResponse(
                model_version=1, from_initial_state=from_initial_state
            )
            for name, data in outputs.items():
                if not request.outputs or name in request.outputs:
                    tensor = response.outputs.add(name=name).tensor
                    tensor.dtype = types_pb2.DATA_TYPE_F32
                    tensor.shape.extend(model.output_shapes[name])
                    tensor.data = data
            return response

    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_concurrent_streams", QUEUE_ROWS_MAX),
            ("grpc.so_reuseport", 1),
        ]
    )
    score_pb2_grpc.add_ScoreServicer_to_server(Score(), server)
    port = server.add_insecure_port(arguments.listen)
    await server.start()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    batching = asyncio.create_task(batches.run())
    # What is loaded by now lives as long as the process, and the collector's default rhythm costs a
    # quarter of the throughput here, measured.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    print(f"listening on port {port}", flush=True)
    await asyncio.wait(
        {asyncio.create_task(stopping.wait()), batching}, return_when="FIRST_COMPLETED"
    )
    await server.stop(grace=2)
    if batching.done():
        batching.result()
    batching.cancel()
    await store.aclose()


def stubs():
    """Generates Python from our .proto files and imports it."""
    from grpc_tools import protoc

    folder = tempfile.TemporaryDirectory(prefix="score-service-")
    source = ROOT / "proto"
    files = [str(source / "statehouse/v1" / f) for f in ("types.proto", "score.proto")]
    flags = [f"-I{source}", f"--python_out={folder.name}", f"--grpc_python_out={folder.name}"]
    if protoc.main(["protoc", *flags, *files]):
        sys.exit("the .proto files do not compile")
    sys.path.insert(0, folder.name)
    names = ("score_pb2", "score_pb2_grpc", "types_pb2")
    modules = [importlib.import_module(f"statehouse.v1.{name}") for name in names]
    folder.cleanup()
    return modules


async def checked(model, request, context):
    """The bytes of each input in the model's order, or an error to the caller."""
    if request.model != model.name:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"expected model {model.name}")
    found = {i.name: i.tensor.data for i in request.inputs}
    sizes = {name: len(data) for name, data in found.items()}
    if sizes != model.input_bytes:
        wanted = f"expected inputs of bytes {model.input_bytes}, got {sizes}"
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, wanted)
    return [found[name] for name in model.input_bytes]


class Model:
    """A model directory run by onnxruntime; everything is float32, the batch on axis 0."""

    def __init__(self, folder, state_bytes):
        manifest = tomllib.loads((folder / "model.toml").read_text())
        self.name = manifest["name"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        widths = {i.name: i.shape[1] for i in self.session.get_inputs()}
        states = manifest["state"]
        self.state_widths = {s["input"]: widths.pop(s["input"]) for s in states}
        self.input_widths = widths
        self.input_bytes = {name: 4 * width for name, width in widths.items()}
        written = [s["output"] for s in states]
        shapes = {o.name: o.shape[1:] for o in self.session.get_outputs()}
        self.output_shapes = {n: s for n, s in shapes.items() if n not in written}
        self.wanted = [*self.output_shapes, *written]
        # A stored value: the states one after the other, then padding.
        self.used_bytes = 4 * sum(self.state_widths.values())
        self.padding = bytes(state_bytes - self.used_bytes)

    def run(self, rows, values):
        """The outputs by name and all new states side by side, a row for each request."""
        count = len(rows)
        feed = {}
        for position, (name, width) in enumerate(self.input_widths.items()):
            joined = b"".join([row[position] for row in rows])
            feed[name] = np.frombuffer(joined, np.float32).reshape(count, width)
        initial = bytes(self.used_bytes)
        used = b"".join([initial if v is None else v[: self.used_bytes] for v in values])
        if len(used) != count * self.used_bytes:
            raise ValueError(f"expected stored values of at least {self.used_bytes} bytes")
        state = np.frombuffer(used, np.float32).reshape(count, -1)
        start = 0
        for name, width in self.state_widths.items():
            feed[name] = state[:, start : start + width]
            start += width
        found = self.session.run(self.wanted, feed)
        outputs, after = found[: len(self.output_shapes)], found[len(self.output_shapes) :]
        return dict(zip(self.output_shapes, outputs)), np.concatenate(after, axis=1)


class Batches:
    """The queue of rows and the loop that cuts it into batches."""

    def __init__(self, model, store, rows_max, in_flight_max):
        self.model, self.store, self.rows_max = model, store, rows_max
        self.queue = asyncio.Queue(QUEUE_ROWS_MAX)
        self.slots = asyncio.Semaphore(in_flight_max)
        self.thread = ThreadPoolExecutor(1)
        self.running = set()

    def full(self):
        return self.queue.full()

    async def score(self, key, row, step):
        answer = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((key, row, step, answer))
        return await answer

    async def run(self):
        while True:
            await self.slots.acquire()
            batch = [await self.queue.get()]
            while len(batch) < self.rows_max and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            task = asyncio.create_task(self.carry_out(batch))
            self.running.add(task)
            task.add_done_callback(self.finished)

    def finished(self, task):
        self.running.discard(task)
        self.slots.release()

    async def carry_out(self, batch):
        try:
            values = await self.store.mget([key for key, _, _, _ in batch])
            rows = [row for _, row, _, _ in batch]
            loop = asyncio.get_running_loop()
            outputs, after = await loop.run_in_executor(self.thread, self.model.run, rows, values)
            padding = self.model.padding
            steps = {
                key: after[i].tobytes() + padding
                for i, (key, _, step, _) in enumerate(batch)
                if step
            }
            if steps:
                await self.store.mset(steps)
            for index, (_, _, _, answer) in enumerate(batch):
                if not answer.done():
                    row = {name: value[index].tobytes() for name, value in outputs.items()}
                    answer.set_result((row, values[index] is None))
        except Exception as error:
            for _, _, _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)


if __name__ == "__main__":
    main()
