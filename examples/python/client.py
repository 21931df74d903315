"""A first client: keep a state, read a refusal, push a model, score next to the state.

    python client.py [HOST:PORT]
"""

import sys
import uuid
import zlib
from pathlib import Path

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from statehouse.v1 import models_pb2, models_pb2_grpc, pipeline_pb2, pipeline_pb2_grpc
from statehouse.v1 import score_pb2, score_pb2_grpc, state_pb2, state_pb2_grpc
from statehouse.v1 import stream_pb2, types_pb2

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070"
BANK = Path(__file__).parent.parent / "bank"
COLLECTION = "python-example"
CALL_S, PUSH_S = 10, 60  # Without a deadline a call waits for a lost node for ever.


def tensor(values):
    array = np.asarray(values, dtype="<f4")
    return types_pb2.Tensor(dtype=types_pb2.DATA_TYPE_F32, shape=array.shape, data=array.tobytes())


def array(tensor):  # of f32, which is all that is kept here
    return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)


def show_refusal(call, request):
    """Makes a call that must be refused, and reads why; docs/ERRORS.md lists the reasons."""
    try:
        call(request, timeout=CALL_S)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        if status is None:
            raise  # The connection failed: no node said why.
        for detail in status.details:
            why, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(why):
                print(f"refused: {why.reason}, {dict(why.metadata)}: {error.details()}")
            elif detail.Unpack(retry):
                print("try again after", retry.retry_delay.ToTimedelta())
    else:
        raise AssertionError("expected a refusal")


def keep_a_state(states):
    embedding = types_pb2.Field(name="embedding", tensor=tensor([0.5, -1, 2]))
    fields = [embedding, types_pb2.Field(name="note", bytes=b"hello")]
    # A request id makes a retry safe: the same one again has one effect and one answer.
    once = types_pb2.WriteOptions(request_id=uuid.uuid4().bytes, ttl_ms=3_600_000)
    ada = {"collection": COLLECTION, "key": b"ada"}
    put = state_pb2.PutRequest(**ada, fields=fields, options=once)
    for _ in range(2):
        written = states.Put(put, timeout=CALL_S)
        print(f"put: version {written.version}, repeated {written.repeated_request}")
    absent = types_pb2.WriteOptions(if_absent=True)
    show_refusal(states.Put, state_pb2.PutRequest(**ada, fields=fields, options=absent))

    unchanged = types_pb2.WriteOptions(if_version=written.version)
    more = state_pb2.Edit(append={"field": "note", "data": b", world"})
    patch = state_pb2.PatchRequest(**ada, edits=[more], options=unchanged)
    print("patch: version", states.Patch(patch, timeout=CALL_S).version)
    show_refusal(states.Delete, state_pb2.DeleteRequest(**ada, options=unchanged))

    state = states.Get(state_pb2.GetRequest(**ada), timeout=CALL_S).state
    for field in state.fields:
        print(" ", field.name, array(field.tensor) if field.HasField("tensor") else field.bytes)
    many = state_pb2.BatchGetRequest(collection=COLLECTION, keys=[b"ada", b"nobody"])
    for key, item in zip(many.keys, states.BatchGet(many, timeout=CALL_S).items):
        print("get", key, item.error.reason or f"version {item.state.version}")
    print("delete: existed", states.Delete(state_pb2.DeleteRequest(**ada), timeout=CALL_S).existed)


def stream_a_state(states):
    """A state that is larger than a message: written and read in chunks of 1 MiB and less."""
    cache = np.arange(2_000_000, dtype="<f4").reshape(500, 4_000)
    data = memoryview(cache).cast("B")
    upload_id = uuid.uuid4().bytes
    header = stream_pb2.WriteHeader(collection=COLLECTION, key=b"ada", upload_id=upload_id)
    header.fields.add(name="cache", dtype=types_pb2.DATA_TYPE_F32, shape=cache.shape)

    def messages(first, last, end):
        header.offset = first
        yield stream_pb2.WriteStreamRequest(header=header)
        for at in range(first, last, 1 << 20):
            chunk = bytes(data[at : min(at + (1 << 20), last)])
            chunk = {"data": chunk, "crc32": zlib.crc32(chunk)}
            yield stream_pb2.WriteStreamRequest(chunk=chunk)
        if end:
            yield stream_pb2.WriteStreamRequest(end={"crc32": zlib.crc32(data)})

    # A stream that stops halfway, as one does whose connection breaks; another one goes on.
    states.Write(messages(0, 3 << 20, end=False), timeout=CALL_S)
    upload = {"collection": COLLECTION, "key": b"ada", "upload_id": upload_id}
    upload = states.GetUpload(stream_pb2.GetUploadRequest(**upload), timeout=CALL_S)
    rest = messages(upload.received_bytes, len(data), end=True)
    print(f"write: {upload.received_bytes} bytes, then version", end=" ")
    print(states.Write(rest, timeout=CALL_S).version)

    rows = state_pb2.GetRequest(collection=COLLECTION, key=b"ada")
    rows.fields.add(name="cache", first_row=100, rows=300)
    read = bytearray()
    for answer in states.Read(rows, timeout=CALL_S):
        if answer.HasField("header"):
            shape = answer.header.fields[0].shape
        read += answer.chunk.data
    assert answer.end.crc32 == zlib.crc32(read)
    found = np.frombuffer(read, "<f4").reshape(shape)
    assert np.array_equal(found, cache[100:400])
    print("read: rows", found.shape)


def push_request():
    """A header, then the files in parts: a message has at most 64 MiB."""
    yield models_pb2.PushModelRequest(header={"activate": True})
    for name in ["model.toml", "model.onnx"]:
        with open(BANK / name, "rb") as file:
            while part := file.read(1 << 20):
                yield models_pb2.PushModelRequest(file={"file": name, "data": part})


def transaction(key, amount, step=False):
    x = tensor([amount, 10_700, 8401, 0, 0, 7])  # one row, no batch dimension
    event = score_pb2.ScoreRequest(model="bank-gru", collection=COLLECTION, key=key)
    event.inputs.add(name="x", tensor=x)
    event.outputs.append("score")
    if step:
        event.mode, event.request_id = score_pb2.SCORE_MODE_STEP, uuid.uuid4().bytes
    return event


def nats(scored):
    return f"{array(scored.outputs[0].tensor):.2f} nats"


def score_events(scores):
    print("peek:", nats(scores.Score(transaction(b"bob", 700), timeout=CALL_S)))
    print("step:", nats(scores.Score(transaction(b"bob", 700, step=True), timeout=CALL_S)))
    batch = [transaction(b"bob", amount, step=True) for amount in (700, 9_000)]
    request = score_pb2.ScoreBatchRequest(scores=batch)
    for item in scores.ScoreBatch(request, timeout=CALL_S).items:
        print("step in a batch:", item.error.reason or nats(item.scored))


def run_a_pipeline(pipelines):
    """Many calls on one stream; answers come as they are ready, an id ties each to its call."""

    def calls():
        for n in range(1, 5):
            step = transaction(b"eve", 100 * n, step=True)
            yield pipeline_pb2.PipelineRequest(id=n, score=step)
        nobody = state_pb2.GetRequest(collection=COLLECTION, key=b"nobody")
        yield pipeline_pb2.PipelineRequest(id=5, get=nobody)

    for answer in pipelines.Run(calls(), timeout=CALL_S):
        failed = answer.WhichOneof("result") == "error"
        print(f"call {answer.id}:", answer.error.reason if failed else nats(answer.score))


with grpc.insecure_channel(ADDRESS) as channel:
    health = health_pb2_grpc.HealthStub(channel)
    print("node:", health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S))
    states = state_pb2_grpc.StateStub(channel)
    create = state_pb2.CreateCollectionRequest(name=COLLECTION, if_not_exists=True)
    states.CreateCollection(create, timeout=CALL_S)
    keep_a_state(states)
    stream_a_state(states)
    pushed = models_pb2_grpc.ModelsStub(channel).Push(push_request(), timeout=PUSH_S)
    print(f"pushed {pushed.model.name} version {pushed.version}")
    score_events(score_pb2_grpc.ScoreStub(channel))
    run_a_pipeline(pipeline_pb2_grpc.PipelineStub(channel))
    states.DropCollection(state_pb2.DropCollectionRequest(name=COLLECTION), timeout=CALL_S)
