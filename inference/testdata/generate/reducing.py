"""Reductions, softmax and argmax, in the forms their opsets gave them (axes as attribute, later
as input).
"""

import numpy as np

from .case import Const, integers, normal, one


def axes(*values):
    return Const(list(values), np.int64)


def cases():
    x = normal("reduce", 2, 3, 4)
    # The opset in which each reduction takes its axes as an input.
    moved = {"ReduceSum": 13, "ReduceMean": 18, "ReduceMax": 18, "ReduceMin": 18}
    for op, opset in moved.items():
        low = op.lower().replace("reduce", "reduce_")
        before = 11 if opset == 13 else 13
        yield one(f"{low}_all_attribute_form", op, [x], opset=before)
        yield one(f"{low}_axes_attribute", op, [x], opset=11, axes=[1])
        yield one(f"{low}_negative_attribute", op, [x], opset=before, axes=[-1], keepdims=0)
        yield one(f"{low}_two_attribute", op, [x], opset=before, axes=[0, 2], keepdims=0)
        yield one(f"{low}_all_input_form", op, [x], opset=opset, keepdims=0)
        yield one(f"{low}_axes_input", op, [x, axes(1)], opset=opset)
        yield one(f"{low}_negative_input", op, [x, axes(-1)], opset=max(opset, 18), keepdims=0)
        yield one(f"{low}_two_input", op, [x, axes(-3, 2)], opset=opset)
        yield one(f"{low}_noop_empty_axes", op, [x, axes()], opset=opset, noop_with_empty_axes=1)
        yield one(f"{low}_empty_axes_reduce_all", op, [x, axes()], opset=opset)
    yield one("reduce_sum_int64", "ReduceSum", [integers("reduce", 2, 3), axes(1)], opset=13)
    yield one("reduce_max_int64", "ReduceMax", [integers("reduce", 2, 3)], opset=13, axes=[0])
    yield one("reduce_min_int32", "ReduceMin", [integers("r", 4, dtype=np.int32)], opset=13)

    for op in ("Softmax", "LogSoftmax"):
        low = {"Softmax": "softmax", "LogSoftmax": "log_softmax"}[op]
        yield one(f"{low}_default_opset13", op, [x], opset=13)
        yield one(f"{low}_axis1_opset13", op, [x], opset=13, axis=1)
        yield one(f"{low}_axis0_opset17", op, [x], opset=17, axis=0)
        # Before opset 13 everything from `axis` on is one flattened row.
        yield one(f"{low}_default_flattens_opset11", op, [x], opset=11)
        yield one(f"{low}_axis2_opset11", op, [x], opset=11, axis=2)
        yield one(f"{low}_negative_axis_opset11", op, [x], opset=11, axis=-1)
        yield one(f"{low}_rank2_opset11", op, [x[0]], opset=11)
        yield one(
            f"{low}_large_values", op, [np.float32([[1000, 999, -1000], [0, 0, 0]])], opset=13
        )
    masked = np.float32([[0.5, -np.inf, 1.0], [-np.inf, 2.0, -np.inf]])
    yield one("softmax_masked", "Softmax", [masked], opset=13)

    ties = np.float32([[1, 3, 3, 0], [2, 2, 2, 2]])
    yield one("argmax_default", "ArgMax", [x], opset=13)
    yield one("argmax_axis1", "ArgMax", [x], opset=11, axis=1, keepdims=1)
    yield one("argmax_drop_axis", "ArgMax", [x], opset=13, axis=-1, keepdims=0)
    yield one("argmax_ties_first", "ArgMax", [ties], opset=13, axis=1)
    yield one("argmax_ties_last", "ArgMax", [ties], opset=12, axis=1, select_last_index=1)
    yield one(
        "argmax_int32", "ArgMax", [integers("argmax", 2, 4, dtype=np.int32)], opset=13, axis=1
    )
