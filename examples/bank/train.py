#!/usr/bin/env python3
"""Trains the bank model and writes model.onnx: `train.py TRANSACTIONS.csv[.gz]`.

The accounts' histories are cut by date: weights are fitted to what happened before the cut, and
judged on what came after it, with the state carried through. Then the exported file is run with
onnxruntime, one step per transaction as in service, and its figures, a baseline's and planted
anomalies' ranks are printed.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import surprise
import transactions
import verdict

HERE = Path(__file__).resolve().parent
CUT = transactions.days(1994, 2, 1)
BATCH_ACCOUNTS = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", help="transactions.csv[.gz] of the bank")
    parser.add_argument("--out", type=Path, default=HERE / "model.onnx")
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)

    events = transactions.read(arguments.events, HERE / "map.toml")
    before_cut = events.x[:, transactions.DAYS] < CUT
    print(
        f"{len(events.x)} transactions of {len(events.by_account())} accounts;"
        f" {before_cut.sum()} to train on, before the cut, and {(~before_cut).sum()} to judge by"
    )
    table = surprise.category_table(events.x[before_cut])
    model = surprise.Surprise(table)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{model.table.shape[1]} categories, {parameters} parameters, seed {arguments.seed}")
    sequences = Sequences(events, table)
    fit(model, sequences, arguments.epochs, np.random.default_rng(arguments.seed))
    surprise.exported(model, arguments.out)
    print(f"wrote {arguments.out.name}: {arguments.out.stat().st_size} bytes")
    served = verdict.report(arguments.out, events, before_cut)
    trained = validation(model, sequences)
    assert abs(served - trained) < 1e-3, f"the export scores {served}, PyTorch {trained}"


class Sequences:
    """Each account's rows, and the `last_in` and `amounts_in` that each row meets."""

    def __init__(self, events, table):
        self.accounts = []
        for rows in events.by_account():
            x = torch.from_numpy(events.x[rows])
            last = torch.zeros(len(x), 3)
            last[1:, 0] = x[:-1, transactions.DAYS]
            last[1:, 1] = torch.log(x[:-1, transactions.BALANCE].relu() + 1.0)
            last[1:, 2] = 1.0
            amounts = torch.zeros(len(x), table.shape[1])
            category = table[surprise.codes(events.x[rows])].argmax(1)
            for row in range(1, len(x)):
                amounts[row] = amounts[row - 1]
                amounts[row, category[row - 1]] = torch.log(x[row - 1, transactions.AMOUNT] + 1.0)
            self.accounts.append((x, last, amounts))

    def batch(self, chosen):
        """x, last, amounts [steps, accounts, ..], and two masks: what trains, what judges."""
        columns = zip(*(self.accounts[i] for i in chosen))
        x, last, amounts = (torch.nn.utils.rnn.pad_sequence(column) for column in columns)
        lengths = torch.tensor([len(self.accounts[i][0]) for i in chosen])
        real = torch.arange(len(x))[:, None] < lengths
        early = x[..., transactions.DAYS] < CUT
        return (x, last, amounts), real & early, real & ~early


def fit(model, sequences, epochs, generator):
    """Adam over shuffled batches of whole accounts, the rate falling along a half cosine."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-3)
    count = len(sequences.accounts)
    steps = epochs * -(-count // BATCH_ACCOUNTS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    lengths = np.array([len(account[0]) for account in sequences.accounts])
    started = time.monotonic()
    for epoch in range(1, epochs + 1):
        model.train()
        total = rows = 0.0
        # Accounts of like length together, so that little is padding, but not always the same ones.
        by_length = np.argsort(lengths * generator.uniform(0.8, 1.25, count))
        firsts = generator.permutation(-(-count // BATCH_ACCOUNTS)) * BATCH_ACCOUNTS
        for first in firsts.tolist():
            chosen = by_length[first : first + BATCH_ACCOUNTS]
            inputs, early, _ = sequences.batch(chosen)
            if not early.any():
                continue
            loss = model.sequence(*inputs).sum(-1)[early].mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += loss.item() * early.sum().item()
            rows += early.sum().item()
        if epoch % 5 == 0 or epoch == 1:
            print(
                f"epoch {epoch:3}: train {total / rows:.3f}, validation"
                f" {validation(model, sequences):.3f} nats a transaction"
                f" ({time.monotonic() - started:.0f} s)",
                flush=True,
            )


@torch.no_grad()
def validation(model, sequences):
    model.eval()
    total, rows = 0.0, 0
    for first in range(0, len(sequences.accounts), 256):
        chosen = range(first, min(first + 256, len(sequences.accounts)))
        inputs, _, late = sequences.batch(chosen)
        total += model.sequence(*inputs).sum(-1)[late].sum().item()
        rows += late.sum().item()
    return total / rows


if __name__ == "__main__":
    main()
