"""Files that must be refused with a typed error, and a few that look odd and are right.

A file here with a `.safetensors` beside it must load and run; one without must be refused, at the
point that README.md's table names. What onnxruntime thinks of the refused ones does not matter.
"""

import numpy as np
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from . import case

F32 = TensorProto.FLOAT


def model(name, nodes, consts=(), inputs=None, outputs=("y",), opset=17, domain=None):
    """Unchecked on purpose: most of these are wrong."""
    inputs = inputs or {"x": ["batch", 4]}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, F32, shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info(n, F32, None) for n in outputs],
        list(consts),
    )
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return helper.make_model(
        graph, opset_imports=imports, ir_version=8, producer_name="make_fixtures"
    )


def node(op, inputs, outputs, name, **attributes):
    return helper.make_node(op, inputs, outputs, name=name, **attributes)


def constant(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(value, dtype=dtype), name)


def refused():
    yield from outside_the_list()
    yield from broken_graphs()
    yield from broken_tensors()
    yield from not_a_number()


def outside_the_list():
    relu = node("Relu", ["x"], ["y"], "relu")
    einsum = node("Einsum", ["x", "x"], ["y"], "similarity", equation="bi,bj->bij")
    yield "unlisted_operator", model("unlisted_operator", [einsum])
    fused = node("FusedGemm", ["x", "x"], ["y"], "fused", domain="com.microsoft")
    yield "unlisted_domain", model("unlisted_domain", [fused], domain="com.microsoft")
    several = [
        node("Det", ["x"], ["d"], "det"),
        node("Hardmax", ["x"], ["h"], "hard"),
        node("Hardmax", ["h"], ["y"], "harder"),
        node("Softmax", ["d"], ["z"], "soft", axis="last"),
    ]
    yield "several_unlisted", model("several_unlisted", several, outputs=("y", "z"))
    yield "opset_and_operator", model("opset_and_operator", [einsum], opset=10)
    yield "tree_loop", tree_loop()
    yield "opset_10", model("opset_10", [relu], opset=10)
    yield "opset_99", model("opset_99", [relu], opset=99)
    yield "zipmap", zipmap()

    on = [constant("ratio", 0.5), constant("on", True, np.bool_)]
    dropout = node("Dropout", ["x", "ratio", "on"], ["y"], "drop")
    yield "dropout_training", model("dropout_training", [dropout], on)
    yield "gru_short_lengths", short_lengths()

    strings = model("string_input", [node("Identity", ["x"], ["y"], "same")])
    strings.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    strings.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    yield "string_input", strings
    branch = node("If", ["x"], ["y"], "branch")
    for arm in ("then_branch", "else_branch"):
        body = helper.make_graph([node("Identity", ["x"], [arm], arm)], arm, [], [])
        branch.attribute.append(AttributeProto(name=arm, type=AttributeProto.GRAPH, g=body))
    yield "subgraph", model("subgraph", [branch])


def zipmap():
    x = case.normal("zipmap", 40, 4)
    learned = LogisticRegression().fit(x, (x[:, 0] > 0).astype(np.int64))
    exported = to_onnx(learned, x, target_opset={"": 17, case.ML: 3})
    exported.graph.name = "zipmap"
    exported.opset_import.sort(key=lambda entry: entry.domain)
    return exported


def tree_loop():
    attributes = dict(
        nodes_treeids=[0] * 3,
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 1, 0],
        nodes_modes=["BRANCH_EQ", "BRANCH_EQ", "LEAF"],
        nodes_values=[0.0] * 3,
        nodes_truenodeids=[1, 1, 0],
        nodes_falsenodeids=[2, 2, 0],
        target_treeids=[0],
        target_nodeids=[2],
        target_ids=[0],
        target_weights=[1.0],
        n_targets=1,
    )
    tree = node("TreeEnsembleRegressor", ["x"], ["y"], "tree", domain=case.ML, **attributes)
    return model("tree_loop", [tree], domain=case.ML)


def short_lengths():
    weights = [
        constant("w", case.normal("w", 1, 6, 4)),
        constant("r", case.normal("r", 1, 6, 2)),
        constant("lengths", [3, 1], np.int32),
    ]
    gru = node("GRU", ["x", "w", "r", "", "lengths"], ["y"], "gru", hidden_size=2)
    return model("gru_short_lengths", [gru], weights, {"x": [3, 2, 4]})


def broken_graphs():
    yield "no_graph", ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    reads_nothing = node("Add", ["x", "nowhere"], ["y"], "sum")
    yield "undefined_value", model("undefined_value", [reads_nothing])
    yield "undefined_output", model("undefined_output", [node("Relu", ["x"], ["z"], "relu")])
    circle = [node("Add", ["x", "b"], ["a"], "first"), node("Relu", ["a"], ["b"], "second")]
    yield "cycle", model("cycle", [*circle, node("Relu", ["b"], ["y"], "last")])
    twice = [node("Relu", ["x"], ["y"], "first"), node("Tanh", ["x"], ["y"], "second")]
    yield "made_twice", model("made_twice", twice)
    yield "missing_argument", model("missing_argument", [node("Add", ["x"], ["y"], "sum")])
    wrong = node("Softmax", ["x"], ["y"], "soft", axis="last")
    yield "attribute_of_wrong_type", model("attribute_of_wrong_type", [wrong])
    yield "axis_out_of_range", model(
        "axis_out_of_range", [node("Concat", ["x", "x"], ["y"], "join", axis=7)]
    )
    mismatch = [constant("w", np.zeros((3, 2)))]
    yield "shapes_disagree", model(
        "shapes_disagree", [node("MatMul", ["x", "w"], ["y"], "mm")], mismatch
    )
    index = [constant("far", [99], np.int64)]
    yield "index_out_of_range", model(
        "index_out_of_range", [node("Gather", ["x", "far"], ["y"], "pick", axis=1)], index
    )


def broken_tensors():
    use = [node("Add", ["x", "w"], ["y"], "sum")]
    elsewhere = TensorProto(name="w", data_type=F32, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "../weights.bin"), ("offset", "0"), ("length", "16")):
        elsewhere.external_data.add(key=key, value=value)
    yield "external_data", model("external_data", use, [elsewhere])
    short = TensorProto(name="w", data_type=F32, dims=[4], raw_data=bytes(12))
    yield "tensor_too_short", model("tensor_too_short", use, [short])
    negative = TensorProto(name="w", data_type=F32, dims=[-4], raw_data=bytes(16))
    yield "tensor_negative_dims", model("tensor_negative_dims", use, [negative])
    overflow = TensorProto(name="w", data_type=F32, dims=[1 << 40, 1 << 40], raw_data=bytes(16))
    yield "tensor_dims_overflow", model("tensor_dims_overflow", use, [overflow])
    unknown = TensorProto(name="w", data_type=77, dims=[4], raw_data=bytes(16))
    yield "tensor_of_unknown_type", model("tensor_of_unknown_type", use, [unknown])
    vast = [constant("dims", [1 << 20, 1 << 20], np.int64)]
    fill = [node("ConstantOfShape", ["dims"], ["w"], "fill"), *use]
    yield "vast_constant", model("vast_constant", fill, vast)


def not_a_number():
    """Correct files whose numbers are not: for every input, zero and random alike."""
    minus_one = [constant("minus_one", -1.0)]
    below_zero = [
        node("Abs", ["x"], ["positive"], "positive"),
        node("Sub", ["minus_one", "positive"], ["negative"], "negative"),
    ]
    log = node("Log", ["negative"], ["y"], "log")
    yield "nan_output", model("nan_output", [*below_zero, log], minus_one)
    step = [
        node("Add", ["x", "h_in"], ["y"], "score"),
        node("Abs", ["h_in"], ["positive"], "positive"),
        node("Sub", ["minus_one", "positive"], ["negative"], "negative"),
        node("Sqrt", ["negative"], ["h_out"], "root"),
    ]
    inputs = {"x": ["batch", 4], "h_in": ["batch", 4]}
    yield "nan_state", model("nan_state", step, minus_one, inputs, ("y", "h_out"))


def odd_but_right():
    x, h = case.normal("odd", 1, 4), case.normal("oddh", 1, 3)
    weights = [constant("w", case.normal("oddw", 3, 4)), constant("r", case.normal("oddr", 3, 3))]
    step = [
        node("Gemm", ["x", "w"], ["from_x"], "from_x", transB=1),
        node("Gemm", ["h_in", "r"], ["from_h"], "from_h", transB=1),
        node("Add", ["from_x", "from_h"], ["sum"], "sum"),
        node("Tanh", ["sum"], ["h_out"], "tanh"),
        node("ReduceSum", ["h_out", "axes"], ["score"], "score", keepdims=0),
    ]
    weights.append(constant("axes", [1], np.int64))
    fixed = {"x": [1, 4], "h_in": [1, 3]}
    made = model("fixed_batch_one", step, weights, fixed, ("score", "h_out"))
    made.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    for value in (1, 3):
        made.graph.output[1].type.tensor_type.shape.dim.add().dim_value = value
    yield "fixed_batch_one", made, {"x": x, "h_in": h}

    # Files of IR version 3 list every initializer among the inputs too.
    listed = {"x": ["batch", 4], "w": [4, 2]}
    made = model(
        "weights_among_inputs",
        [node("MatMul", ["x", "w"], ["y"], "mm")],
        [constant("w", case.normal("listed", 4, 2))],
        listed,
    )
    yield "weights_among_inputs", made, {"x": case.normal("odd", 3, 4)}

    # The standard wants nodes in order of use; some exporters do not keep it.
    shuffled = [node("Relu", ["a"], ["y"], "last"), node("Neg", ["x"], ["a"], "first")]
    ordered = model("nodes_out_of_order", shuffled[::-1])
    made = model("nodes_out_of_order", shuffled)
    yield "nodes_out_of_order", made, {"x": case.normal("odd", 3, 4)}, ordered


def write(folder):
    count = 0
    for name, made in refused():
        (folder / f"{name}.onnx").write_bytes(made.SerializeToString(deterministic=True))
        count += 1
    for name, made, inputs, *runnable in odd_but_right():
        outputs = case.run((runnable or [made])[0].SerializeToString(), inputs)
        case.write_tensors(folder / f"{name}.safetensors", inputs, outputs)
        (folder / f"{name}.onnx").write_bytes(made.SerializeToString(deterministic=True))
        count += 1
    # Cut in the middle of a weight.
    whole = (folder / "fixed_batch_one.onnx").read_bytes()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    return count + 2
