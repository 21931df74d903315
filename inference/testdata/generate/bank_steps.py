"""The example model stepped many times: the state carried from step to step, as a node does it.

The rows are made up (seeded), not the bank's. Remake this whenever `examples/bank/model.onnx`
changes.
"""

from pathlib import Path

import numpy as np

from . import case

MODEL = Path(__file__).resolve().parents[3] / "examples/bank/model.onnx"
STEPS, ACCOUNTS = 40, 5


def rows():
    """x [steps, accounts, 6]: amount, balance, day, codes of type, operation and k_symbol."""
    draw = case.rng("bank")
    shape = (STEPS, ACCOUNTS)
    amount = draw.lognormal(7, 1.5, shape)
    balance = draw.normal(20_000, 15_000, shape)
    day = 8500 + np.cumsum(draw.integers(0, 12, shape), axis=0)
    codes = np.stack([draw.integers(0, below, shape) for below in (4, 6, 8)], axis=-1)
    # Three in four are combinations that the bank knows: deposits, withdrawals, household payments.
    usual = np.array([(0, 0, 7), (1, 2, 7), (1, 3, 4)])
    kind = draw.integers(0, len(usual) + 1, shape)
    known = kind < len(usual)
    codes[known] = usual[kind[known]]
    return np.concatenate([np.stack([amount, balance, day], axis=-1), codes], axis=-1).astype(
        np.float32
    )


def write(folder):
    opened = case.session(MODEL.read_bytes())
    names = [o.name for o in opened.get_outputs()]
    x = rows()
    state = {
        i.name: np.zeros((ACCOUNTS, i.shape[1]), np.float32)
        for i in opened.get_inputs()
        if i.name != "x"
    }
    found = {name: [] for name in names}
    for step in x:
        after = dict(zip(names, opened.run(names, {"x": step} | state)))
        state = {name: after[name.replace("_in", "_out")] for name in state}
        for name, value in after.items():
            found[name].append(value)
    outputs = {name: np.stack(values) for name, values in found.items()}
    case.write_tensors(folder / "steps.safetensors", {"x": x}, outputs)
    return 1
