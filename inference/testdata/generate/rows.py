"""Models that load, and have no result for some rows: an index past its table by any way, a division
by zero, an empty sequence. A test sends such rows beside right ones. Also models that made-up trial
rows don't suit, or whose rows grow while they are scored.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from .case import ML

F32, F64, I64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64


def model(name, nodes, inputs, outputs, consts=None):
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, *spec) for n, spec in inputs.items()],
        [helper.make_tensor_value_info(n, *spec) for n, spec in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (consts or {}).items()],
    )
    imports = [helper.make_opsetid("", 17)]
    if any(n.domain == ML for n in nodes):
        imports.append(helper.make_opsetid(ML, 3))
    return helper.make_model(
        graph, opset_imports=imports, ir_version=8, producer_name="make_fixtures"
    )


def node(op, inputs, outputs, name, **attributes):
    return helper.make_node(op, inputs, outputs, name=name, **attributes)


def indexing():
    """A table of 10 rows of 2, and a row of ids that reaches it by a detour."""
    table = np.arange(20, dtype=np.float32).reshape(10, 2)
    ids, answer = {"cat": (I64, ["batch", 3])}, {"y": (F32, ["batch", 2])}
    look = node("Gather", ["table", "id"], ["y"], "look", axis=0)
    two = {"table": table, "two": np.int64(2)}
    select = node("Gather", ["cat", "two"], ["id"], "select", axis=1)
    yield model("id_selected", [select, look], ids, answer, two)
    cut = node("Slice", ["cat", "from", "to", "axis"], ["column"], "cut")
    squeeze = node("Squeeze", ["column", "axis"], ["id"], "squeeze")
    bounds = {"table": table, "from": [2], "to": [3], "axis": [1]}
    yield model("id_sliced", [cut, squeeze, look], ids, answer, bounds)
    first = node("Gather", ["cat", "two"], ["raw"], "select", axis=1)
    shift = node("Add", ["raw", "five"], ["id"], "shift")
    yield model("id_shifted", [first, shift, look], ids, answer, two | {"five": np.int64(5)})
    parts = node("Split", ["cat"], ["a", "b", "column"], "parts", axis=1)
    yield model("id_split", [parts, squeeze, look], ids, answer, {"table": table, "axis": [1]})
    narrow = node("Cast", ["raw"], ["narrow"], "narrow", to=TensorProto.INT32)
    wide = node("Cast", ["narrow"], ["id"], "wide", to=I64)
    yield model("id_cast", [first, narrow, wide, look], ids, answer, two)
    pick = node("ArrayFeatureExtractor", ["table", "id"], ["picked"], "pick", domain=ML)
    lay = node("Transpose", ["picked"], ["y"], "lay", perm=[1, 0])
    across = two | {"table": np.ascontiguousarray(table.T)}
    yield model("id_extracted", [select, pick, lay], ids, answer, across)

    look = node("Gather", ["table", "last"], ["y"], "look", axis=0)
    keep = node("Identity", ["item"], ["last_out"], "keep")
    yield model(
        "id_from_state",
        [look, keep],
        {"item": (I64, ["batch"]), "last": (I64, ["batch"])},
        answer | {"last_out": (I64, ["batch"])},
        {"table": table},
    )


def numbers():
    whole = {"x": (I64, ["batch", 2])}, {"y": (I64, ["batch", 2])}
    divide = node("Div", ["hundred", "x"], ["y"], "divide")
    yield model("hundred_by", [divide], *whole, {"hundred": np.int64(100)})
    real = {"x": (F32, ["batch", 2])}, {"y": (F32, ["batch", 2])}
    yield model("logarithm", [node("Log", ["x"], ["y"], "log")], *real)


def lengths():
    table = np.arange(40, dtype=np.float32).reshape(20, 2)
    ids, answer = {"ids": (I64, ["batch", "time"])}, {"y": (F32, ["batch", 2])}
    look = node("Gather", ["table", "ids"], ["bag"], "look", axis=0)
    for op in ("ReduceMean", "ReduceMax"):
        over = node(op, ["bag"], ["y"], "over", axes=[1], keepdims=0)
        name = op.lower().replace("reduce", "bag_")
        yield model(name, [look, over], ids, answer, {"table": table})
    over = node("ReduceSum", ["bag", "one"], ["y"], "over", keepdims=0)
    yield model("bag_sum", [look, over], ids, answer, {"table": table, "one": [1]})
    best = node("ArgMax", ["x"], ["y"], "best", axis=1, keepdims=0)
    yield model("best_of", [best], {"x": (F32, ["batch", "time"])}, {"y": (I64, ["batch"])})
    add = node("Add", ["a", "b"], ["y"], "add")
    two = {"a": (F32, ["batch", "left"]), "b": (F32, ["batch", "right"])}
    yield model("two_lengths", [add], two, {"y": (F32, ["batch", "both"])})
    shape = node("Shape", ["x"], ["all"], "shape")
    length = node("Slice", ["all", "one", "two"], ["length"], "length")
    start = node("Sub", ["length", "one"], ["place"], "start")
    place = node("Gather", ["places", "place"], ["own"], "place", axis=0)
    add = node("Add", ["x", "own"], ["y"], "add")
    seq = {"x": (F32, ["batch", "time"])}, {"y": (F32, ["batch", "time"])}
    places = {"places": np.arange(4, dtype=np.float32), "one": [1], "two": [2]}
    yield model("four_places", [shape, length, start, place, add], *seq, places)
    late = node("Slice", ["x", "one", "end", "one"], ["late"], "late")
    early = node("Slice", ["x", "zero", "last", "one"], ["early"], "early")
    differ = node("Sub", ["late", "early"], ["steps"], "differ")
    largest = node("ReduceMax", ["steps"], ["y"], "largest", axes=[1], keepdims=0)
    ends = {"one": [1], "zero": [0], "end": [1 << 40], "last": [-1]}
    nodes = [late, early, differ, largest]
    yield model("largest_step", nodes, {"x": (F32, ["batch", "time"])}, {"y": (F32, ["batch"])}, ends)
    down = node("Unsqueeze", ["x", "two"], ["down"], "down")
    across = node("Unsqueeze", ["x", "one"], ["across"], "across")
    pair = node("Mul", ["down", "across"], ["pairs"], "pair")
    largest = node("ReduceMax", ["pairs"], ["y"], "largest", axes=[1, 2], keepdims=0)
    nodes, axes = [down, across, pair, largest], {"one": [1], "two": [2]}
    yield model("pairs", nodes, {"x": (F32, ["batch", "time"])}, {"y": (F32, ["batch"])}, axes)


def states():
    """What a node and its tools do with: a state of so many MiB, the last item or time, odd names."""
    add = node("Add", ["h", "x"], ["h_out"], "add")
    largest = node("ReduceMax", ["h_out"], ["y"], "largest", axes=[1], keepdims=0)
    for mib in (4, 8, 16, 32):
        state = (F32, ["batch", mib << 18])
        outputs = {"y": (F32, ["batch"]), "h_out": state}
        inputs = {"x": (F32, ["batch", 1]), "h": state}
        yield model(f"state_of_{mib}_mib", [add, largest], inputs, outputs)
    keep = node("Identity", ["item"], ["last_out"], "keep")
    differ = node("Sub", ["item", "last"], ["gap"], "differ")
    real = node("Cast", ["gap"], ["score"], "real", to=F32)
    for name, kind, axes in (("i64", I64, []), ("i64_row", I64, [1]), ("f32_row", F32, [1])):
        shape = ["batch", *axes]
        inputs = {"item": (kind, shape), "last": (kind, shape)}
        outputs = {"score": (F32, shape), "last_out": (kind, shape)}
        yield model(f"since_last_{name}", [differ, real, keep], inputs, outputs)
    wide = (F64, ["batch", 1])
    differ = node("Sub", ["item", "last"], ["score"], "differ")
    inputs, outputs = {"item": wide, "last": wide}, {"score": wide, "last_out": wide}
    yield model("since_last_f64_row", [differ, keep], inputs, outputs)
    names = {"onnx::Flatten_0": (F32, ["batch", 2]), "x=y": (F32, ["batch", 2])}
    add = node("Add", list(names), ["out:0"], "add")
    yield model("odd_names", [add], names, {"out:0": (F32, ["batch", 2])})


def write(folder):
    count = 0
    for family in (indexing, numbers, lengths, states):
        for made in family():
            content = made.SerializeToString(deterministic=True)
            (folder / f"{made.graph.name}.onnx").write_bytes(content)
            count += 1
    return count
