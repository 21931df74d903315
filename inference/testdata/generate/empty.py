"""Axes of length zero: a session without events, an empty basket. What onnxruntime answers, where it
does: its mean of nothing is 0, which would be a made-up answer, and recurrent nodes end the process.
"""

import numpy as np

from .case import ML, Const, normal, one, uniform


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def axes(*values):
    return Const(list(values), np.int64)


def cases():
    x = zeros(2, 0, 3)
    yield from reducing(x)
    yield from shaping(x)
    yield from products()
    for op in ("Add", "Mul", "Equal", "Max"):
        yield one(f"empty_{op.lower()}", op, [x, normal("empty", 3)])
    yield one("empty_add_broadcast", "Add", [x, normal("empty", 2, 1, 3)])
    yield one("empty_where", "Where", [zeros(2, 0, 3, dtype=np.bool_), x, np.float32(1)])
    yield one("empty_div_int64", "Div", [zeros(2, 0, dtype=np.int64), Const(2, np.int64)])
    yield one("empty_cast", "Cast", [x], to=7)
    yield one("empty_clip", "Clip", [x, np.float32(0), np.float32(1)])
    for op in "Sqrt Exp Log Neg Abs Relu Sigmoid Tanh Gelu Erf LeakyRelu Dropout".split():
        yield one(f"empty_{op.lower()}", op, [x], opset=20)
    for op in ("Softmax", "LogSoftmax"):
        yield one(f"empty_{op.lower()}", op, [x], opset=13, axis=1)
        yield one(f"empty_{op.lower()}_opset11", op, [x], opset=11, axis=1)
    scale, bias = normal("scale", 3), normal("bias", 3)
    yield one("empty_layer_norm", "LayerNormalization", [x, scale, bias], axis=-1)
    batch = [zeros(2, 3, 0), scale, bias, normal("mean", 3), uniform("variance", 3)]
    yield one("empty_batch_norm", "BatchNormalization", batch)


def reducing(x):
    for op in ("ReduceSum", "ReduceMax", "ReduceMin"):
        low = op.lower().replace("reduce", "empty_reduce_")
        opset = 13 if op == "ReduceSum" else 18
        yield one(f"{low}", op, [x, axes(1)], opset=opset, keepdims=0)
        yield one(f"{low}_kept", op, [x, axes(1)], opset=opset)
        yield one(f"{low}_all", op, [x], opset=opset, keepdims=0)
        yield one(f"{low}_other", op, [x, axes(2)], opset=opset, keepdims=0)
    yield one("empty_reduce_mean_other", "ReduceMean", [x, axes(2)], opset=18)
    counts = zeros(2, 0, dtype=np.int64)
    yield one("empty_reduce_sum_int64", "ReduceSum", [counts, axes(1)], opset=13)
    yield one("empty_argmax_other", "ArgMax", [x], opset=13, axis=2, keepdims=0)


def shaping(x):
    yield one("empty_concat", "Concat", [x, normal("empty", 2, 4, 3)], axis=1)
    yield one("empty_concat_empty", "Concat", [x, zeros(2, 0, 2)], axis=2)
    yield one("empty_slice", "Slice", [x, axes(-3), axes(1000), axes(1)])
    yield one("empty_slice_backwards", "Slice", [x, axes(-1), axes(-1000), axes(1), axes(-1)])
    split = dict(outputs=("y", "z"), opset=13)
    yield one("empty_split", "Split", [x, axes(1, 2)], axis=2, **split)
    yield one("empty_split_part", "Split", [normal("split", 2, 3), axes(0, 3)], axis=1, **split)
    for name, target in (("kept", (0, -1)), ("flat", (-1,)), ("open", (-1, 3)), ("six", (6, -1))):
        yield one(f"empty_reshape_{name}", "Reshape", [x, axes(*target)])
    yield one("empty_transpose", "Transpose", [x], perm=[1, 0, 2])
    yield one("empty_squeeze", "Squeeze", [zeros(2, 1, 0), axes(1)])
    yield one("empty_unsqueeze", "Unsqueeze", [x, axes(0)])
    yield one("empty_flatten", "Flatten", [x])
    yield one("empty_expand", "Expand", [zeros(2, 1, 3), axes(2, 0, 3)])
    yield one("empty_shape", "Shape", [x])
    none = zeros(2, 0, dtype=np.int64)
    yield one("empty_gather_rows", "Gather", [normal("table", 5, 3), none], axis=0)
    yield one("empty_gather_nothing", "Gather", [x, none], axis=1)
    yield one("empty_gather_other", "Gather", [x, np.int64([0, 2])], axis=2)
    columns = [zeros(0, 3), np.int64([1])]
    yield one("empty_array_feature_extractor", "ArrayFeatureExtractor", columns, domain=ML)


def products():
    weights = normal("weights", 4, 3)
    yield one("empty_matmul_inner", "MatMul", [zeros(2, 0), zeros(0, 3)])
    yield one("empty_matmul_rows", "MatMul", [zeros(0, 4), weights])
    yield one("empty_matmul_batch", "MatMul", [zeros(2, 0, 4), weights])
    yield one("empty_matmul_batch_inner", "MatMul", [zeros(2, 3, 0), zeros(2, 0, 4)])
    yield one("empty_matmul_vectors", "MatMul", [zeros(0), zeros(0)])
    bias = normal("gemm", 3)
    yield one("empty_gemm_inner", "Gemm", [zeros(2, 0), zeros(0, 3), bias])
    yield one("empty_gemm_rows", "Gemm", [zeros(0, 4), weights, bias])
    scaled = dict(offset=[1.0], scale=[2.0])
    yield one("empty_scaler", "Scaler", [zeros(0, 3)], domain=ML, ml_opset=1, **scaled)
