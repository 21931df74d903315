"""Whole models as PyTorch's two exporters write them: `dynamo` (torch.export) and `script`
(TorchScript).

Each has a free batch axis and is recorded at batch 5 and batch 1. What onnxruntime computes is
checked against PyTorch itself before it is written. Source paths, stack traces and other traces of
the machine are removed.
"""

import io
import logging
import math
import warnings

import numpy as np
import onnx
import torch
from torch import nn

from . import case

HIDDEN = 16
EXPORTERS = {"dynamo": 18, "dynamo_opset21": 21, "script": 17}


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 16),
            nn.ReLU(),
            nn.Linear(16, 8),
            nn.GELU(),
            nn.Linear(8, 8),
            nn.LeakyReLU(0.1),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        return torch.sigmoid(self.body(x))


class BatchNormMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.last, self.drop = nn.Linear(16, 3), nn.Dropout(0.3)
        # As after some training: statistics that matter.
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        hidden = self.drop(torch.tanh(self.norm(self.first(x))))
        return torch.log_softmax(self.last(hidden), dim=-1)


class GruCellStep(nn.Module):
    """State [batch, hidden] in and out; a cell is plain matrix products in ONNX."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, x, h_in):
        h_out = self.cell(x, h_in)
        return torch.sigmoid(self.head(h_out)).squeeze(-1), h_out


class GruStep(nn.Module):
    """PyTorch's own GRU over one step; its state has the batch on axis 1."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(6, HIDDEN, num_layers=2, batch_first=True), nn.Linear(
            HIDDEN, 1
        )

    def forward(self, x, h_in):
        y, h_out = self.gru(x.unsqueeze(1), h_in)
        return torch.sigmoid(self.head(y[:, -1])).squeeze(-1), h_out


class LstmStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 2)

    def forward(self, x, h_in, c_in):
        y, (h_out, c_out) = self.lstm(x.unsqueeze(1), (h_in, c_in))
        return torch.softmax(self.head(y.squeeze(1)), dim=1), h_out, c_out


class Attention(nn.Module):
    """Embedding, layer norm, two heads of attention with padding masked, feed-forward, pooling."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads, self.width = heads, width
        self.embed, self.norm1, self.norm2 = (
            nn.Embedding(12, width),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 32), nn.GELU(approximate="tanh"), nn.Linear(32, width)
        )
        self.last = nn.Linear(width, 3)

    def forward(self, tokens):
        keep = tokens != 0
        x = self.embed(tokens)
        batch, length = tokens.shape
        q, k, v = (
            part.reshape(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(self.width, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.width // self.heads)
        scores = scores.masked_fill(~keep[:, None, None, :], float("-inf"))
        mixed = (
            (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(batch, length, self.width)
        )
        x = x + self.out(mixed)
        x = x + self.feed(self.norm2(x))
        weight = keep.unsqueeze(-1).to(x.dtype)
        pooled = (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
        return self.last(pooled)


class WindowStep(nn.Module):
    """A window of the last events as state: shifted by one; scored by mean, spread and extremes."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4 * 3, 1)

    def forward(self, x, window_in):
        window_out = torch.cat([window_in[:, 1:], x.unsqueeze(1)], dim=1)
        mean = window_out.mean(dim=1)
        spread = (window_out - mean.unsqueeze(1)).pow(2).mean(dim=1).sqrt()
        seen = torch.cat([mean, spread, window_out.amax(dim=1), window_out.amin(dim=1)], dim=1)
        return self.head(seen).squeeze(1), window_out


def models():
    """name -> (module, inputs of a batch by name, the axis that is the batch in each, outputs)."""

    def state(name, layers, batch):
        return case.normal(name, layers, batch, HIDDEN)

    x = {"x": 0}
    return {
        "mlp": (Mlp, lambda n: {"x": case.normal(f"mlp{n}", n, 6)}, x, ["score"]),
        "batch_norm_mlp": (
            BatchNormMlp,
            lambda n: {"x": case.normal(f"bn{n}", n, 6)},
            x,
            ["score"],
        ),
        "gru_cell_step": (
            GruCellStep,
            lambda n: {"x": case.normal(f"cell{n}", n, 6), "h_in": state(f"cellh{n}", 1, n)[0]},
            {"x": 0, "h_in": 0},
            ["score", "h_out"],
        ),
        "gru_step": (
            GruStep,
            lambda n: {"x": case.normal(f"gru{n}", n, 6), "h_in": state(f"gruh{n}", 2, n)},
            {"x": 0, "h_in": 1},
            ["score", "h_out"],
        ),
        "lstm_step": (
            LstmStep,
            lambda n: {
                "x": case.normal(f"lstm{n}", n, 6),
                "h_in": state(f"lstmh{n}", 1, n),
                "c_in": state(f"lstmc{n}", 1, n),
            },
            {"x": 0, "h_in": 1, "c_in": 1},
            ["score", "h_out", "c_out"],
        ),
        "attention": (Attention, tokens, {"tokens": 0}, ["score"]),
        "window_step": (
            WindowStep,
            lambda n: {
                "x": case.normal(f"win{n}", n, 3),
                "window_in": case.normal(f"winw{n}", n, 8, 3),
            },
            {"x": 0, "window_in": 0},
            ["score", "window_out"],
        ),
    }


def tokens(batch):
    drawn = case.integers(f"tokens{batch}", batch, 7, low=1, high=12)
    for row in range(batch):
        drawn[row, 7 - row % 4 :] = 0
    return {"tokens": drawn}


def exported(module, inputs, axes, outputs, opset):
    batch = torch.export.Dim("batch")
    args = tuple(torch.from_numpy(a) for a in inputs.values())
    buffer = io.BytesIO()
    names = dict(input_names=list(inputs), output_names=outputs)
    if opset >= 18:
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            opset_version=opset,
            optimize=True,
            verbose=False,
            dynamic_shapes=tuple({axes[n]: batch} for n in inputs),
            **names,
        )
        program.save(buffer)
    else:
        dynamic = {n: {a: "batch"} for n, a in axes.items()}
        states = [a for n, a in axes.items() if n.endswith("_in")]
        dynamic |= {o: {a: "batch"} for o, a in zip(outputs, [0, *states])}
        torch.onnx.export(
            module,
            args,
            buffer,
            dynamo=False,
            opset_version=opset,
            dynamic_axes=dynamic,
            do_constant_folding=True,
            **names,
        )
    return stripped(onnx.load_from_string(buffer.getvalue()))


def stripped(model):
    """Without file names, stack traces and documentation of the exporting machine."""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], model.functions[:]
    model.doc_string = graph.doc_string = ""
    for part in (graph.node, graph.initializer, graph.input, graph.output, graph.value_info):
        for entry in part:
            entry.doc_string = ""
            del entry.metadata_props[:]
    del graph.value_info[:]
    return model


def write(folder):
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    count = 0
    for name, (kind, make, axes, outputs) in models().items():
        torch.manual_seed(7)
        module = kind().eval()
        for exporter, opset in EXPORTERS.items():
            model = exported(module, make(5), axes, outputs, opset)
            content = model.SerializeToString(deterministic=True)
            for batch in (1, 5):
                compare(name, module, case.run(content, make(batch)), make(batch))
            runs = {"": make(5), ".batch1": make(1)}
            case.write_model(folder, f"torch_{name}_{exporter}", model, runs)
            count += 1
    return count


def compare(name, module, found, inputs):
    with torch.no_grad():
        wanted = module(*(torch.from_numpy(a) for a in inputs.values()))
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for (output, value), own in zip(found.items(), wanted):
        assert value.shape == tuple(own.shape), f"{name}: {output}: {value.shape}, not {own.shape}"
        np.testing.assert_allclose(
            value, own.numpy(), atol=1e-5, rtol=1e-4, err_msg=f"{name}: {output}"
        )
