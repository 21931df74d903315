"""One fixture: an ONNX file beside a safetensors file that holds its inputs and expected outputs.

The expected values are onnxruntime's, with its graph optimisations off, so that each operator is
judged as the standard states it and not as a fusion rounds it. Writing is deterministic: a case
draws its numbers from a generator seeded by its own name, so that adding a case leaves all others
byte for byte alone.

This file does not know any operator; the other modules list the cases.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

ML = "ai.onnx.ml"

# What the interpreter promises to run; a fixture outside bad/ may use nothing else.
SUPPORTED = set(
    """Gemm MatMul Add Sub Mul Div Pow Sqrt Exp Log Neg Abs Relu Sigmoid Tanh Gelu Erf LeakyRelu
    Clip Min Max GRU LSTM LayerNormalization BatchNormalization Softmax LogSoftmax Concat Split
    Slice Gather Reshape Transpose Squeeze Unsqueeze Expand Shape Cast Constant ConstantOfShape
    Where Equal Less LessOrEqual Greater GreaterOrEqual Not And Or ReduceMean ReduceSum ReduceMax
    ReduceMin Identity Flatten Dropout ArgMax""".split()
)
SUPPORTED_ML = set(
    """TreeEnsembleClassifier TreeEnsembleRegressor LinearClassifier LinearRegressor Normalizer
    Scaler ArrayFeatureExtractor""".split()
)


class Const:
    """An argument that is an initializer of the graph rather than one of its inputs."""

    def __init__(self, value, dtype=None):
        self.array = np.asarray(value, dtype=dtype)


@dataclass
class Case:
    name: str
    nodes: list
    inputs: dict
    outputs: list
    consts: dict = field(default_factory=dict)
    opset: int = 17
    ml_opset: int = 3


def rng(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def normal(name, *shape, scale=1.0, dtype=np.float32):
    """Seeded by `name`: the same words give the same numbers."""
    return np.asarray(rng(name).standard_normal(shape) * scale, dtype=dtype)


def uniform(name, *shape, low=0.1, high=2.0, dtype=np.float32):
    return np.asarray(rng(name).uniform(low, high, shape), dtype=dtype)


def integers(name, *shape, low=-9, high=10, dtype=np.int64):
    return np.asarray(rng(name).integers(low, high, shape), dtype=dtype)


def one(name, op, args, *, outputs=("y",), opset=17, domain="", ml_opset=3, **attrs):
    """A graph of one node. An array is a graph input (a, b, c, ... by position), a `Const` an
    initializer, `None` an optional input left out; "" in `outputs` is an optional output left out.
    """
    inputs, consts, names = {}, {}, []
    for letter, value in zip("abcdefghij", args):
        if value is None:
            names.append("")
        elif isinstance(value, Const):
            consts[letter] = value.array
            names.append(letter)
        else:
            inputs[letter] = np.asarray(value)
            names.append(letter)
    node = helper.make_node(op, names, list(outputs), name=f"{op}_0", domain=domain, **attrs)
    return Case(name, [node], inputs, [o for o in outputs if o], consts, opset, ml_opset)


def build(case, output_types=None):
    """The ModelProto of a case; without `output_types` onnxruntime infers those of the outputs."""

    def value_info(name, array):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        return helper.make_tensor_value_info(name, kind, list(array.shape))

    outputs = [
        value_info(o, output_types[o]) if output_types else helper.make_empty_tensor_value_info(o)
        for o in case.outputs
    ]
    graph = helper.make_graph(
        case.nodes,
        case.name,
        [value_info(n, a) for n, a in case.inputs.items()],
        outputs,
        [numpy_helper.from_array(a, n) for n, a in case.consts.items()],
    )
    imports = [helper.make_opsetid("", case.opset)]
    if any(n.domain == ML for n in case.nodes):
        imports.append(helper.make_opsetid(ML, case.ml_opset))
    ir_version = helper.find_min_ir_version_for(imports)
    return helper.make_model(
        graph, opset_imports=imports, ir_version=ir_version, producer_name="make_fixtures"
    )


def session(model_bytes):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])


def run(model_bytes, inputs):
    """onnxruntime's outputs by name."""
    opened = session(model_bytes)
    names = [o.name for o in opened.get_outputs()]
    return {n: np.asarray(v) for n, v in zip(names, opened.run(names, inputs))}


def write(folder, case):
    """Writes a hand-made case; returns the operators in it."""
    outputs = run(build(case).SerializeToString(), case.inputs)
    model = build(case, outputs)
    onnx.checker.check_model(model, full_check=False)
    return write_model(folder, case.name, model, {"": case.inputs})


def write_model(folder, name, model, runs):
    """Writes `<name>.onnx` and `<name><suffix>.safetensors` for each run; returns the operators."""
    operators = {(n.domain, n.op_type) for n in model.graph.node}
    for domain, op in sorted(operators):
        allowed = SUPPORTED_ML if domain == ML else SUPPORTED if domain in ("", "ai.onnx") else ()
        assert op in allowed, f"{name}: {domain}:{op} is not on the interpreter's list"
    content = model.SerializeToString(deterministic=True)
    for suffix, inputs in runs.items():
        outputs = run(content, inputs)
        write_tensors(folder / f"{name}{suffix}.safetensors", inputs, outputs)
    (folder / f"{name}.onnx").write_bytes(content)
    return operators


def write_tensors(path: Path, inputs, outputs):
    tensors = {f"in.{n}": np.ascontiguousarray(a).reshape(a.shape) for n, a in inputs.items()}
    for name, array in outputs.items():
        assert array.dtype != object, f"{path.name}: output {name} holds strings"
        tensors[f"out.{name}"] = np.ascontiguousarray(array).reshape(array.shape)
    save_file(tensors, path)
    path.chmod(0o644)
