"""Judges an exported model as it serves: onnxruntime, one step per transaction, the state
carried along.
"""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

import baseline
import surprise
import transactions

PLANTED_OF_EACH = 100
# Only in accounts with so many transactions before.
SEASONED_AFTER = 20
SURPRISING_SHOWN = 8


class Replay:
    """Every account's transactions, stepped in order; a run holds one of each account."""

    def __init__(self, path, events):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.events = events
        count = len(events.x)
        self.parts = np.zeros((count, 2), np.float32)
        self.expected = np.zeros(count, np.float32)
        # The states that each transaction met, zero for an account's first.
        self.states = {
            i.name: np.zeros((count, i.shape[1]), np.float32)
            for i in self.session.get_inputs()
            if i.name.endswith("_in")
        }
        accounts = events.by_account()
        for turn in range(max(len(rows) for rows in accounts)):
            self.step([rows for rows in accounts if len(rows) > turn], turn)

    def step(self, accounts, turn):
        now = np.array([rows[turn] for rows in accounts])
        _, self.parts[now], self.expected[now], *after = self.run(self.events.x[now], now)
        going_on = np.array([len(rows) > turn + 1 for rows in accounts])
        following = [rows[turn + 1] for rows in accounts if len(rows) > turn + 1]
        for state, new in zip(self.states.values(), after):
            state[following] = new[going_on]

    def run(self, x, rows):
        """Scores `x` against the states that the events `rows` met."""
        return self.session.run(None, {"x": x} | {n: s[rows] for n, s in self.states.items()})


def report(path, events, before_cut):
    """Prints the verdict; returns the model's surprise after the cut, in nats a transaction."""
    replay = Replay(path, events)
    late = ~before_cut
    table = read_table(path)
    everyone, own = baseline.surprises(events, table, before_cut)
    print("surprise after the cut, nats a transaction:   category   amount    total")
    for name, parts in (
        ("frequencies over everyone", everyone),
        ("the account's own frequencies and amounts", own),
        ("bank-gru, stepped with onnxruntime", replay.parts),
    ):
        category, amount = parts[late].mean(0)
        print(f"  {name:42} {category:10.3f} {amount:8.3f} {category + amount:8.3f}")
    planted(replay, table, late)
    surprising(replay, late)
    return replay.parts[late].sum(1).mean()


def read_table(path):
    weights = {w.name: w for w in onnx.load(path).graph.initializer}
    return numpy_helper.to_array(weights["table"])


def planted(replay, table, late):
    """Changes real transactions, scores each against the state that it met, and ranks it among all
    real ones after the cut."""
    events = replay.events
    category = table[surprise.codes(events.x)].argmax(1)
    generator = np.random.default_rng(1)
    following = np.full(len(events.x), -1)
    had = {}
    for rows in events.by_account():
        following[rows[SEASONED_AFTER:-1]] = rows[SEASONED_AFTER + 1 :]
        had[events.account[rows[0]]] = set(category[rows])
    eligible = np.flatnonzero(late & (following >= 0))

    def tenfold(rows):
        x = events.x[rows].copy()
        x[:, transactions.AMOUNT] *= 10
        return x, rows

    def twice(rows):
        return events.x[rows], following[rows]

    def new_category(rows):
        """The category of another account's transaction that this account never had."""
        x = events.x[rows].copy()
        for index, row in enumerate(rows):
            others = [c for c in eligible if category[c] not in had[events.account[row]]]
            x[index, 3:] = events.x[generator.choice(others), 3:]
        return x, rows

    def other_account(rows):
        """Another account's whole transaction, on this one's day."""
        x = events.x[generator.permutation(rows)]
        x[:, transactions.DAYS] = events.x[rows, transactions.DAYS]
        return x, rows

    real = np.sort(replay.parts[late].sum(1))
    print(f"planted, {PLANTED_OF_EACH} of each, ranked among the {len(real)} real ones:")
    print("                                              top 1 %  top 5 %  median rank    AUC")
    for name, plant in {
        "ten times the amount": tenfold,
        "a category that the account never had": new_category,
        "the same transaction twice": twice,
        "another account's transaction": other_account,
    }.items():
        rows = generator.choice(eligible, PLANTED_OF_EACH, replace=False)
        above = len(real) - np.searchsorted(real, replay.run(*plant(rows))[0])
        share = above / len(real)
        print(
            f"  {name:42} {np.mean(share < 0.01):8.0%} {np.mean(share < 0.05):8.0%}"
            f" {np.median(above):12.0f} {1 - share.mean():6.3f}"
        )


def surprising(replay, late):
    total = np.where(late, replay.parts.sum(1), -np.inf)
    print("the most surprising real ones after the cut:")
    for row in np.argsort(-total)[:SURPRISING_SHOWN]:
        label = " ".join(v for v in replay.events.labels[row].values() if v.strip())
        print(
            f"  {total[row]:6.1f} nats  account {replay.events.account[row]:5}  {label}"
            f"  (category {replay.parts[row, 0]:.1f}, amount {replay.parts[row, 1]:.1f},"
            f" expected {replay.expected[row]:.0f})"
        )
