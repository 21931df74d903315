"""Operators that move numbers and compute none: reshapes, slices, joins, gathers, shape arithmetic.

The chains at the end are what exporters write for `x.view(x.shape[0], -1)` and its kin: shape
arithmetic that a planner folds on the host.
"""

import numpy as np
from onnx import helper, numpy_helper

from .case import Case, Const, integers, normal, one

END = np.iinfo(np.int64).max
START = np.iinfo(np.int64).min


def i64(*values):
    return Const(list(values), np.int64)


def cases():
    yield from joins()
    yield from slices()
    yield from gathers()
    yield from reshapes()
    yield from constants()
    yield from chains()


def joins():
    a, b, c = normal("cat", 2, 3), normal("catb", 2, 1), normal("catc", 2, 4)
    yield one("concat_axis1_three", "Concat", [a, b, c], opset=13, axis=1)
    yield one("concat_negative_axis", "Concat", [a, c], opset=11, axis=-1)
    yield one("concat_axis0", "Concat", [a, a + 1], opset=13, axis=0)
    yield one("concat_single", "Concat", [a], opset=13, axis=0)
    yield one("concat_int64", "Concat", [integers("cat", 2), integers("catb", 3)], opset=13, axis=0)
    yield one(
        "concat_constant", "Concat", [b, Const(np.zeros((2, 2), np.float32))], opset=17, axis=1
    )

    x, two, three = normal("split", 2, 6), ("p", "q"), ("p", "q", "r")
    yield one("split_equal_opset11", "Split", [x], outputs=three, opset=11, axis=1)
    yield one("split_attribute_opset11", "Split", [x], outputs=two, opset=11, axis=-1, split=[2, 4])
    yield one("split_equal_opset13", "Split", [x], outputs=two, opset=13, axis=1)
    yield one("split_input_opset13", "Split", [x, i64(1, 2, 3)], outputs=three, opset=13, axis=1)
    yield one("split_axis0_opset13", "Split", [x], outputs=two, opset=13)
    yield one(
        "split_num_outputs_opset18", "Split", [x], outputs=three, opset=18, axis=1, num_outputs=3
    )
    uneven = normal("uneven", 7, 2)
    yield one("split_uneven_opset18", "Split", [uneven], outputs=three, opset=18, num_outputs=3)
    yield one("split_input_opset18", "Split", [x, i64(5, 1)], outputs=two, opset=18, axis=-1)
    yield one("split_int64", "Split", [integers("split", 4)], outputs=two, opset=13)


def slices():
    x = normal("slice", 3, 4, 5)
    yield one("slice_axes_default", "Slice", [x, i64(1, 0), i64(3, 2)], opset=13)
    yield one("slice_axes", "Slice", [x, i64(1), i64(4), i64(2)], opset=11)
    yield one("slice_negative_axis", "Slice", [x, i64(0), i64(2), i64(-1)], opset=13)
    yield one("slice_negative_bounds", "Slice", [x, i64(-3), i64(-1), i64(1)], opset=13)
    yield one("slice_to_the_end", "Slice", [x, i64(2), i64(END), i64(2)], opset=13)
    yield one("slice_steps", "Slice", [x, i64(0, 0), i64(4, 5), i64(1, 2), i64(2, 3)], opset=13)
    yield one("slice_negative_step", "Slice", [x, i64(-1), i64(START), i64(2), i64(-1)], opset=13)
    yield one("slice_negative_step_two", "Slice", [x, i64(4), i64(0), i64(2), i64(-2)], opset=17)
    yield one("slice_beyond_the_end", "Slice", [x, i64(1), i64(100), i64(0)], opset=13)
    yield one("slice_empty", "Slice", [x, i64(2), i64(2), i64(0)], opset=13)
    yield one(
        "slice_int32_bounds", "Slice", [x, *(Const([v], np.int32) for v in (1, 3, 1))], opset=13
    )
    yield one("slice_int64_values", "Slice", [integers("slice", 6), i64(1), i64(5)], opset=13)


def gathers():
    table = normal("table", 6, 4)
    ids = np.array([[0, 5, 2], [3, 3, 1]])
    yield one("gather_embedding", "Gather", [Const(table), ids], opset=13)
    yield one("gather_axis1", "Gather", [table, np.array([3, 0])], opset=13, axis=1)
    yield one("gather_negative_axis", "Gather", [table, np.array([[0, 3]])], opset=13, axis=-1)
    yield one("gather_negative_index", "Gather", [table, np.array([-1, -6])], opset=11)
    yield one("gather_scalar_index", "Gather", [table, Const(2, np.int64)], opset=13, axis=0)
    yield one("gather_scalar_last", "Gather", [table, Const(-1, np.int64)], opset=13, axis=1)
    yield one("gather_int32_index", "Gather", [table, ids.astype(np.int32)], opset=13)
    yield one("gather_int64_table", "Gather", [Const(integers("table", 5)), ids % 5], opset=13)
    yield one("gather_rank3", "Gather", [normal("g3", 2, 3, 4), i64(2, 0)], opset=13, axis=1)


def reshapes():
    x = normal("reshape", 2, 3, 4)
    yield one("reshape", "Reshape", [x, i64(4, 6)], opset=13)
    yield one("reshape_minus_one", "Reshape", [x, i64(2, -1)], opset=14)
    yield one("reshape_copy_zero", "Reshape", [x, i64(0, -1)], opset=11)
    yield one("reshape_copy_middle", "Reshape", [x, i64(-1, 0, 2)], opset=13)
    yield one("reshape_to_vector", "Reshape", [x, i64(-1)], opset=19)
    yield one("reshape_to_scalar", "Reshape", [normal("r1", 1, 1), Const([], np.int64)], opset=14)
    yield one("reshape_allowzero", "Reshape", [x, i64(2, 12)], opset=14, allowzero=1)
    yield one("reshape_int64", "Reshape", [integers("reshape", 6), i64(3, 2)], opset=13)
    yield one("reshape_bool", "Reshape", [np.array([True, False]), i64(2, 1)], opset=13)

    yield one("transpose_default", "Transpose", [x], opset=13)
    yield one("transpose_021", "Transpose", [x], opset=13, perm=[0, 2, 1])
    yield one(
        "transpose_heads", "Transpose", [normal("heads", 2, 3, 2, 4)], opset=13, perm=[0, 2, 1, 3]
    )
    yield one("transpose_int64", "Transpose", [integers("transpose", 2, 3)], opset=11, perm=[1, 0])

    ones = normal("ones", 1, 3, 1, 2)
    yield one("squeeze_all_opset11", "Squeeze", [ones], opset=11)
    yield one("squeeze_attribute_opset11", "Squeeze", [ones], opset=11, axes=[0])
    yield one("squeeze_negative_attribute_opset11", "Squeeze", [ones], opset=11, axes=[-2])
    yield one("squeeze_all_opset13", "Squeeze", [ones], opset=13)
    yield one("squeeze_input_opset13", "Squeeze", [ones, i64(0, 2)], opset=13)
    yield one("squeeze_negative_input_opset21", "Squeeze", [ones, i64(-2)], opset=21)
    yield one("unsqueeze_attribute_opset11", "Unsqueeze", [x], opset=11, axes=[0, 2])
    yield one("unsqueeze_negative_attribute_opset11", "Unsqueeze", [x], opset=11, axes=[-1])
    yield one("unsqueeze_input_opset13", "Unsqueeze", [x, i64(1)], opset=13)
    yield one("unsqueeze_two_unsorted_opset13", "Unsqueeze", [x, i64(4, 0)], opset=13)
    yield one("unsqueeze_scalar", "Unsqueeze", [np.float32(3.5), i64(0)], opset=13)
    yield one("unsqueeze_int64", "Unsqueeze", [integers("unsqueeze", 3), i64(-1)], opset=21)

    yield one("flatten_default", "Flatten", [x], opset=13)
    yield one("flatten_axis0", "Flatten", [x], opset=11, axis=0)
    yield one("flatten_axis2", "Flatten", [x], opset=13, axis=2)
    yield one("flatten_axis3", "Flatten", [x], opset=13, axis=3)
    yield one("flatten_negative_axis", "Flatten", [x], opset=21, axis=-1)

    column = normal("expand", 3, 1)
    yield one("expand", "Expand", [column, i64(3, 4)], opset=13)
    yield one("expand_more_axes", "Expand", [column, i64(2, 1, 4)], opset=13)
    yield one("expand_shape_shorter", "Expand", [normal("expand3", 2, 3, 1), i64(5)], opset=11)
    yield one("expand_ones_keep", "Expand", [column, i64(1, 1)], opset=13)
    yield one("expand_scalar", "Expand", [np.float32(1.5), i64(2, 2)], opset=13)
    yield one("expand_int64", "Expand", [integers("expand", 1, 2), i64(3, 2)], opset=13)


def constants():
    x = normal("constant", 2, 3)
    yield one("shape", "Shape", [x], opset=13)
    yield one("shape_start", "Shape", [normal("s", 2, 3, 4)], opset=15, start=1)
    yield one("shape_start_end", "Shape", [normal("s", 2, 3, 4)], opset=19, start=0, end=-1)
    yield one("shape_scalar", "Shape", [np.float32(1)], opset=13)

    tensor = numpy_helper.from_array(np.float32([[1.5, -2.0, 0.25]]))
    values = {
        "tensor": {"value": tensor},
        "float": {"value_float": 0.5},
        "floats": {"value_floats": [1.0, 2.0, -3.0]},
        "int": {"value_int": 3},
        "ints": {"value_ints": [1, -2, 3]},
        "bool": {"value": numpy_helper.from_array(np.array([True, False, True]))},
    }
    for variant, attribute in values.items():
        nodes = [helper.make_node("Constant", [], ["k"], name="k", **attribute)]
        if variant in ("int", "ints"):
            x_used = integers("constant", 2, 3)
        else:
            x_used = x
        if variant == "bool":
            nodes.append(helper.make_node("Where", ["k", "x", "y0"], ["y"], name="use"))
            inputs = {"x": x_used, "y0": x_used * 2}
        else:
            nodes.append(helper.make_node("Add", ["x", "k"], ["y"], name="use"))
            inputs = {"x": x_used}
        yield Case(f"constant_{variant}", nodes, inputs, ["y"], opset=13)

    def filled(variant, **attributes):
        nodes = [
            helper.make_node("Shape", ["x"], ["dims"], name="dims"),
            helper.make_node("ConstantOfShape", ["dims"], ["y"], name="fill", **attributes),
        ]
        return Case(f"constant_of_shape_{variant}", nodes, {"x": x}, ["y"], opset=13)

    yield filled("default_zero")
    yield filled("float", value=numpy_helper.from_array(np.float32([1.25])))
    yield filled("int64", value=numpy_helper.from_array(np.int64([7])))
    yield filled("bool", value=numpy_helper.from_array(np.array([True])))
    yield one("constant_of_shape_initializer", "ConstantOfShape", [i64(2, 2)], opset=21)
    yield one("constant_of_shape_scalar", "ConstantOfShape", [Const([], np.int64)], opset=13)


def chains():
    """Shape arithmetic as exporters write it, with the batch taken from the input's own shape."""
    node = helper.make_node
    consts = {
        "zero": np.int64(0),
        "zeros": np.int64([0]),
        "rest": np.int64([-1]),
        "two": np.int64(2),
    }

    def chain(name, nodes, inputs, opset=13):
        named = [node(op, i, o, name=f"{op}_{n}", **kw) for n, (op, i, o, kw) in enumerate(nodes)]
        used = {i for n in named for i in n.input}
        return Case(
            name, named, inputs, ["y"], {k: v for k, v in consts.items() if k in used}, opset
        )

    x = normal("chain", 3, 2, 4)
    yield chain(
        "chain_view_batch_rest",
        [
            ("Shape", ["x"], ["dims"], {}),
            ("Gather", ["dims", "zero"], ["batch"], {"axis": 0}),
            ("Unsqueeze", ["batch", "zeros"], ["batch1"], {}),
            ("Concat", ["batch1", "rest"], ["target"], {"axis": 0}),
            ("Reshape", ["x", "target"], ["y"], {}),
        ],
        {"x": x},
    )
    yield chain(
        "chain_half_of_last_axis",
        [
            ("Shape", ["x"], ["dims"], {}),
            ("Gather", ["dims", "two"], ["last"], {"axis": 0}),
            ("Div", ["last", "two"], ["half"], {}),
            ("Unsqueeze", ["half", "zeros"], ["half1"], {}),
            ("Constant", [], ["axis"], {"value_ints": [2]}),
            ("Slice", ["x", "zeros", "half1", "axis"], ["y"], {}),
        ],
        {"x": x},
    )
    yield chain(
        "chain_expand_zeros_to_batch",
        [
            ("Shape", ["x"], ["dims"], {"start": 0, "end": 1}),
            ("Constant", [], ["width"], {"value_ints": [5]}),
            ("Concat", ["dims", "width"], ["target"], {"axis": 0}),
            ("ConstantOfShape", ["target"], ["h0"], {}),
            ("Constant", [], ["one"], {"value_float": 1.0}),
            ("Add", ["h0", "one"], ["y"], {}),
        ],
        {"x": x},
        opset=15,
    )
    yield chain(
        "chain_expand_where_minus_one",
        [
            ("Shape", ["x"], ["dims"], {}),
            ("Shape", ["dims"], ["dims_rank"], {}),
            (
                "ConstantOfShape",
                ["dims_rank"],
                ["ones"],
                {"value": numpy_helper.from_array(np.int64([1]))},
            ),
            ("Equal", ["ones", "rest"], ["unknown"], {}),
            ("Where", ["unknown", "ones", "dims"], ["target"], {}),
            ("Expand", ["row", "target"], ["y"], {}),
        ],
        {"x": x, "row": normal("row", 1, 4)},
    )
    yield chain(
        "chain_cast_shape_to_float",
        [
            ("Shape", ["x"], ["dims"], {}),
            ("Gather", ["dims", "two"], ["last"], {"axis": 0}),
            ("Cast", ["last"], ["width"], {"to": 1}),
            ("Sqrt", ["width"], ["root"], {}),
            ("Div", ["x", "root"], ["y"], {}),
        ],
        {"x": x},
    )
