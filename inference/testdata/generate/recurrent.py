"""GRU and LSTM: every direction, with and without bias, initial state and sequence lengths."""

import numpy as np

from .case import Const, normal, one

SEQUENCE, BATCH, INPUT, HIDDEN = 3, 2, 4, 5


def cases():
    for op, gates in (("GRU", 3), ("LSTM", 4)):
        yield from of(op, gates)
    yield from gru_only()


def arguments(
    op, gates, name, directions, bias=True, initial=True, lengths=None, sequence=SEQUENCE
):
    """X, W, R, B, sequence_lens, initial_h (and initial_c): weights constant, the rest fed."""
    args = [
        normal(name + "x", sequence, BATCH, INPUT),
        Const(normal(name + "w", directions, gates * HIDDEN, INPUT, scale=0.5)),
        Const(normal(name + "r", directions, gates * HIDDEN, HIDDEN, scale=0.5)),
        Const(normal(name + "b", directions, 2 * gates * HIDDEN, scale=0.5)) if bias else None,
        lengths,
    ]
    states = 2 if op == "LSTM" else 1
    for index in range(states):
        args.append(normal(f"{name}h{index}", directions, BATCH, HIDDEN) if initial else None)
    while args[-1] is None:
        args.pop()
    return args


def of(op, gates):
    low = op.lower()
    states = ("y_h", "y_c") if op == "LSTM" else ("y_h",)
    everything = ("y", *states)

    def case(variant, directions=1, outputs=everything, opset=14, direction=None, lbr=None, **kw):
        attributes = {"hidden_size": HIDDEN}
        if direction:
            attributes["direction"] = direction
        if lbr is not None:
            attributes["linear_before_reset"] = lbr
        args = arguments(op, gates, f"{low}_{variant}", directions, **kw)
        return one(f"{low}_{variant}", op, args, outputs=outputs, opset=opset, **attributes)

    resets = (0, 1) if op == "GRU" else (None,)
    for lbr in resets:
        tag = "" if lbr is None else f"_reset{lbr}"
        yield case(f"forward{tag}", lbr=lbr)
        yield case(f"forward_opset11{tag}", lbr=lbr, opset=11)
        yield case(f"reverse{tag}", direction="reverse", lbr=lbr)
        yield case(f"bidirectional{tag}", 2, direction="bidirectional", lbr=lbr)
        yield case(f"no_bias{tag}", lbr=lbr, bias=False)
        yield case(f"no_initial{tag}", lbr=lbr, initial=False)
        yield case(f"bare{tag}", lbr=lbr, bias=False, initial=False)
        bare = dict(bias=False, initial=False, lbr=lbr, direction="bidirectional")
        yield case(f"bidirectional_bare{tag}", 2, **bare)
        yield case(f"one_step{tag}", lbr=lbr, sequence=1, opset=21)
    full = Const(np.full(BATCH, SEQUENCE, np.int32))
    yield case("full_lengths", lengths=full)
    yield case("full_lengths_no_initial", lengths=full, initial=False, direction="reverse")
    yield case("sequence_only", outputs=("y",))
    yield case("last_state_only", outputs=("", *states))
    if op == "LSTM":
        yield case("cell_state_only", outputs=("", "", "y_c"))


def gru_only():
    args = arguments("GRU", 3, "gru_named_activations", 1)
    named = dict(hidden_size=HIDDEN, activations=["Sigmoid", "Tanh"], linear_before_reset=1)
    yield one("gru_named_activations", "GRU", args, outputs=("y", "y_h"), opset=14, **named)
