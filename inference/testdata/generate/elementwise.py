"""Element-wise operators: arithmetic, comparisons, logic, activations, casts, with ONNX's
broadcasting.
"""

import numpy as np
from onnx import TensorProto

from .case import Const, integers, normal, one, uniform


def cases():
    yield from arithmetic()
    yield from extremes()
    yield from activations()
    yield from comparisons()
    yield from casts()


def arithmetic():
    shapes = {
        "same": ((2, 3), (2, 3)),
        "rank3_rank1": ((2, 3, 4), (4,)),
        "rank1_rank3": ((4,), (2, 3, 4)),
        "scalar": ((2, 3), ()),
        "both_broadcast": ((3, 1), (1, 4)),
        "middle_axis": ((2, 1, 4), (3, 1)),
        "one_row": ((1, 5), (4, 5)),
    }
    for index, op in enumerate(["Add", "Sub", "Mul", "Div"]):
        for variant, (left, right) in shapes.items():
            name = f"{op.lower()}_{variant}"
            opset = [13, 14, 17, 21, 11, 18, 20][(index + len(variant)) % 7]
            yield one(name, op, [normal(name, *left), uniform(name + "b", *right)], opset=opset)
        name = f"{op.lower()}_int64"
        divisor = integers(name + "b", 4, low=1, high=5)
        yield one(name, op, [integers(name, 3, 4), divisor], opset=14)
        name = f"{op.lower()}_int32_constant"
        yield one(name, op, [integers(name, 3, 2, dtype=np.int32), Const(3, np.int32)], opset=13)
        name = f"{op.lower()}_constant_left"
        yield one(name, op, [Const(1.0, np.float32), uniform(name, 2, 3)], opset=17)
    yield one("div_by_zero", "Div", [np.float32([1, -1, 2]), np.float32([0, 0, 4])], opset=14)

    base = uniform("pow", 2, 3)
    yield one("pow_float", "Pow", [base, normal("powb", 2, 3)], opset=15)
    yield one("pow_broadcast", "Pow", [base, normal("powc", 3)], opset=13)
    yield one(
        "pow_square_constant", "Pow", [normal("pow2", 2, 3), Const(2.0, np.float32)], opset=12
    )
    yield one(
        "pow_cube_negative_base", "Pow", [normal("pow3", 5), Const(3.0, np.float32)], opset=17
    )
    yield one("pow_integer_exponent", "Pow", [normal("pow4", 5), Const(2, np.int64)], opset=15)
    yield one("pow_half_constant", "Pow", [base, Const(0.5, np.float32)], opset=15)

    values = normal("unary", 2, 3, 2)
    positive = uniform("unary", 2, 3)
    yield one("sqrt", "Sqrt", [positive], opset=13)
    yield one("exp", "Exp", [values], opset=13)
    yield one("log", "Log", [positive], opset=13)
    yield one("neg", "Neg", [values], opset=13)
    yield one("neg_int64", "Neg", [integers("neg", 5)], opset=13)
    yield one("abs", "Abs", [values], opset=13)
    yield one("abs_int64", "Abs", [integers("abs", 5)], opset=13)
    yield one("abs_opset11_scalar", "Abs", [np.float32(-2.5)], opset=11)
    yield one("erf", "Erf", [normal("erf", 2, 9, scale=2.0)], opset=13)


def extremes():
    for op in ["Min", "Max"]:
        low = op.lower()
        a, b, c = normal(low, 2, 3), normal(low + "b", 3), normal(low + "c", 2, 1)
        yield one(f"{low}_one", op, [a], opset=13)
        yield one(f"{low}_two", op, [a, b], opset=13)
        yield one(f"{low}_three_broadcast", op, [a, b, c], opset=12)
        yield one(f"{low}_constant", op, [a, Const(0.25, np.float32)], opset=17)
        yield one(f"{low}_int64", op, [integers(low, 4), integers(low + "b", 4)], opset=12)

    x = normal("clip", 3, 4, scale=3.0)
    low, high = Const(-1.0, np.float32), Const(2.0, np.float32)
    yield one("clip_both", "Clip", [x, low, high], opset=13)
    yield one("clip_no_max", "Clip", [x, low], opset=11)
    yield one("clip_no_min", "Clip", [x, None, high], opset=12)
    yield one("clip_none", "Clip", [x], opset=17)
    yield one("clip_runtime_bounds", "Clip", [x, np.float32(-0.5), np.float32(0.5)], opset=13)
    bounds = [Const(-2, np.int64), Const(3, np.int64)]
    yield one("clip_int64", "Clip", [integers("clip", 7), *bounds], opset=12)


def activations():
    x = normal("activation", 3, 5, scale=2.0)
    wide = np.float32([-100, -20, -1, -0.0, 0, 1, 20, 100])
    yield one("relu", "Relu", [x], opset=14)
    yield one("relu_opset11", "Relu", [x], opset=11)
    yield one("sigmoid", "Sigmoid", [x], opset=13)
    yield one("sigmoid_wide", "Sigmoid", [wide], opset=13)
    yield one("tanh", "Tanh", [x], opset=13)
    yield one("tanh_wide", "Tanh", [wide], opset=13)
    yield one("gelu_exact", "Gelu", [x], opset=20)
    yield one("gelu_tanh", "Gelu", [x], opset=20, approximate="tanh")
    yield one("leaky_relu_default", "LeakyRelu", [x], opset=16)
    yield one("leaky_relu_alpha", "LeakyRelu", [x], opset=11, alpha=0.2)
    for opset in (11, 12, 13):
        yield one(f"dropout_inference_opset{opset}", "Dropout", [x], opset=opset)
    yield one("dropout_ratio_opset11", "Dropout", [x], opset=11, ratio=0.4)
    yield one("dropout_ratio_input", "Dropout", [x, Const(0.4, np.float32)], opset=13)
    off = [Const(0.4, np.float32), Const(False)]
    yield one("dropout_training_false_mask", "Dropout", [x, *off], outputs=("y", "mask"), opset=13)
    yield one("identity", "Identity", [x], opset=16)
    yield one("identity_int64", "Identity", [integers("identity", 2, 2)], opset=13)
    yield one("identity_bool", "Identity", [np.array([True, False])], opset=19)


def comparisons():
    ones = {"Equal": 13, "Less": 13, "Greater": 11, "LessOrEqual": 12, "GreaterOrEqual": 16}
    for op, opset in ones.items():
        low = {"LessOrEqual": "less_or_equal", "GreaterOrEqual": "greater_or_equal"}.get(
            op, op.lower()
        )
        a = integers(low, 3, 4, low=-2, high=3).astype(np.float32)
        b = integers(low + "b", 4, low=-2, high=3).astype(np.float32)
        yield one(f"{low}_float", op, [a, b], opset=opset)
        yield one(f"{low}_int64", op, [a.astype(np.int64), b.astype(np.int64)], opset=opset)
        yield one(
            f"{low}_int32_constant", op, [a.astype(np.int32), Const(0, np.int32)], opset=opset
        )
        yield one(
            f"{low}_nan", op, [np.float32([np.nan, 1.0]), np.float32([np.nan, 1.0])], opset=opset
        )
    p, q = np.array([[True, False], [False, True]]), np.array([True, False])
    yield one("equal_bool", "Equal", [p, q], opset=13)
    yield one("not", "Not", [p], opset=11)
    yield one("and_broadcast", "And", [p, q], opset=11)
    yield one("or_broadcast", "Or", [q, p], opset=17)
    yield one("and_scalar", "And", [p, np.array(True)], opset=17)

    test = np.array([[True], [False], [True]])
    a, b = normal("where", 3, 4), normal("whereb", 4)
    yield one("where_broadcast", "Where", [test, a, b], opset=16)
    yield one("where_scalar_else", "Where", [a > 0, a, Const(-1.0, np.float32)], opset=11)
    yield one("where_minus_infinity", "Where", [a > 0, a, Const(-np.inf, np.float32)], opset=16)
    yield one("where_int64", "Where", [test, integers("where", 3, 1), Const([7, 8])], opset=16)


def casts():
    floats = np.float32([-2.7, -1.0, -0.4, 0.0, 0.6, 1.0, 3.9])
    whole = integers("cast", 6, low=-3, high=4)
    flags = np.array([True, False, True])
    kinds = {
        "bool": TensorProto.BOOL,
        "uint8": TensorProto.UINT8,
        "int32": TensorProto.INT32,
        "int64": TensorProto.INT64,
        "float16": TensorProto.FLOAT16,
        "float": TensorProto.FLOAT,
        "double": TensorProto.DOUBLE,
    }
    for target in ("bool", "int32", "int64", "float", "double", "float16"):
        yield one(f"cast_float_to_{target}", "Cast", [floats], opset=13, to=kinds[target])
    yield one("cast_float_to_uint8", "Cast", [np.abs(floats)], opset=13, to=kinds["uint8"])
    for target in ("bool", "int32", "float", "double"):
        yield one(f"cast_int64_to_{target}", "Cast", [whole], opset=19, to=kinds[target])
    for target in ("int32", "int64", "float"):
        yield one(f"cast_bool_to_{target}", "Cast", [flags], opset=11, to=kinds[target])
    for source in (np.int32, np.uint8, np.float64, np.float16):
        name = f"cast_{np.dtype(source).name}_to_float"
        values = np.abs(whole).astype(source) if source == np.uint8 else floats.astype(source)
        yield one(name, "Cast", [values], opset=21, to=kinds["float"])
