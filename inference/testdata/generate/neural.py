"""Matrix products and normalisations."""

import numpy as np

from .case import Const, integers, normal, one, uniform


def cases():
    yield from gemms()
    yield from matmuls()
    yield from normalisations()


def gemms():
    a, b = normal("gemm", 3, 4), normal("gemmb", 4, 5)
    for variant, bias in {
        "vector": normal("bias", 5),
        "row": normal("bias", 1, 5),
        "column": normal("bias", 3, 1),
        "full": normal("bias", 3, 5),
        "scalar": np.float32(0.5),
    }.items():
        yield one(f"gemm_bias_{variant}", "Gemm", [a, Const(b), Const(bias)], opset=13)
    yield one("gemm_no_bias", "Gemm", [a, b], opset=13)
    yield one("gemm_no_bias_opset11", "Gemm", [a, Const(b)], opset=11)
    yield one(
        "gemm_linear_layer", "Gemm", [a, Const(b.T), Const(normal("bias", 5))], opset=17, transB=1
    )
    yield one("gemm_trans_a", "Gemm", [a.T, b], opset=13, transA=1)
    both = dict(transA=1, transB=1, alpha=0.5, beta=-2.0)
    yield one("gemm_trans_both_alpha_beta", "Gemm", [a.T, b.T, normal("bias", 5)], opset=11, **both)
    yield one("gemm_beta_zero", "Gemm", [a, b, normal("bias", 3, 5)], opset=13, beta=0.0)
    yield one("gemm_runtime_bias", "Gemm", [a, b, normal("bias", 3, 5)], opset=13, alpha=1.5)
    yield one("gemm_one_row", "Gemm", [a[:1], Const(b), Const(normal("bias", 5))], opset=13)


def matmuls():
    shapes = {
        "rank2": ((3, 4), (4, 5)),
        "batched": ((2, 3, 4), (2, 4, 5)),
        "batched_by_matrix": ((2, 3, 4), (4, 5)),
        "matrix_by_batched": ((3, 4), (2, 4, 5)),
        "broadcast_batch": ((2, 1, 3, 4), (3, 4, 2)),
        "heads": ((2, 2, 3, 4), (2, 2, 4, 3)),
        "vector_left": ((4,), (4, 5)),
        "vector_right": ((3, 4), (4,)),
        "vector_right_batched": ((2, 3, 4), (4,)),
        "vector_left_batched": ((4,), (2, 4, 5)),
        "dot": ((4,), (4,)),
        "one_row": ((1, 8), (8, 3)),
    }
    for index, (variant, (left, right)) in enumerate(shapes.items()):
        opset = [11, 13, 17, 21][index % 4]
        a, b = normal("matmul", *left), normal("matmulb", *right)
        yield one(f"matmul_{variant}", "MatMul", [a, b], opset=opset)
    yield one(
        "matmul_weights", "MatMul", [normal("mw", 2, 4), Const(normal("mwb", 4, 3))], opset=13
    )
    whole = [integers("matmul", 2, 3, dtype=np.int32), integers("matmulb", 3, 2, dtype=np.int32)]
    yield one("matmul_int32", "MatMul", whole, opset=13)


def normalisations():
    x = normal("layernorm", 2, 3, 4, scale=3.0)
    scale, bias = Const(uniform("ln", 4)), Const(normal("lnb", 4))
    yield one("layer_normalization_last", "LayerNormalization", [x, scale, bias], opset=17)
    yield one(
        "layer_normalization_no_bias", "LayerNormalization", [x, scale], opset=17, epsilon=1e-3
    )
    two = [Const(uniform("ln2", 3, 4)), Const(normal("ln2b", 3, 4))]
    yield one("layer_normalization_axis1", "LayerNormalization", [x, *two], opset=17, axis=1)
    yield one("layer_normalization_axis_minus2", "LayerNormalization", [x, *two], opset=20, axis=-2)
    outs = ("y", "mean", "inv_std")
    yield one(
        "layer_normalization_statistics", "LayerNormalization", [x, scale, bias], outputs=outs
    )
    ramp = [np.float32([[1, 2, 3, 4], [2, 2, 2, 2]]), scale, bias]
    yield one("layer_normalization_constant_row", "LayerNormalization", ramp, opset=17)

    def batch_norm(variant, shape, opset, **attributes):
        channels = shape[1] if len(shape) > 1 else 1
        name = f"bn{variant}"
        weights = [
            Const(uniform(name + "scale", channels)),
            Const(normal(name + "bias", channels)),
            Const(normal(name + "mean", channels)),
            Const(uniform(name + "var", channels)),
        ]
        values = normal(name, *shape)
        name = f"batch_normalization_{variant}"
        return one(name, "BatchNormalization", [values, *weights], opset=opset, **attributes)

    yield batch_norm("rank2", (5, 3), 15)
    yield batch_norm("rank2_opset11", (5, 3), 11, epsilon=1e-3, momentum=0.8)
    yield batch_norm("rank3", (2, 3, 4), 14)
    yield batch_norm("rank4", (2, 3, 2, 2), 15, training_mode=0)
    yield batch_norm("one_row", (1, 6), 15)
