"""The model: a GRU that remembers an account, and a head that says how surprising its next
transaction is. All feature engineering is in here, and so in the exported graph: a client sends the
raw row `x` = amount, balance, days since 1970, and the codes of type, operation and k_symbol as
map.toml gives them.

The surprise is -log p(category) - log p(amount within 5 % | category), in nats and never below
zero, both given what the GRU remembers, the days since the last transaction, the balance it left
and the calendar. The amount's density is a mixture of Gaussians over log(1 + amount).
"""

import datetime
import math
import warnings

import numpy as np
import torch
from torch import nn

from transactions import EPOCH, days

HIDDEN = 64
COMPONENTS = 8
# The codes of type, operation and k_symbol are below these, and worth this in the combined code.
CODES = (4, 6, 8)
CODE_WORTH = (48, 8, 1)
# Known before the transaction: the gap, four numbers of the calendar, the balance, whether any was.
BEFORE = 7
GAP_MAX = 365.0
# A component's width in log units, from 2 % to a factor of 20. The narrowest density peaks at
# 1 / (SPREAD_MIN * sqrt(2 pi)), so times 5 % (SPREAD_MIN * sqrt(2 pi)) none exceeds 1.
SPREAD_LOG_MIN = math.log(0.02)
SPREAD_LOG_RANGE = math.log(3.0) - SPREAD_LOG_MIN
# Where log(1 + amount) lies, roughly.
LOG_CENTRE, LOG_SCALE = 7.5, 2.0
CALENDAR_FIRST, CALENDAR_LAST = days(1990, 1, 1), days(2039, 12, 31)


def calendar():
    """One row per day: the phase of the month, and how near its first and its last day are. Outside
    1990 to 2039 the nearest day's row serves."""
    rows = []
    for day in range(CALENDAR_FIRST, CALENDAR_LAST + 1):
        date = EPOCH + datetime.timedelta(day)
        next_month = (date.replace(day=28) + datetime.timedelta(4)).replace(day=1)
        left = (next_month - date).days - 1
        phase = 2 * math.pi * date.day / (date.day + left)
        rows.append([math.sin(phase), math.cos(phase), math.exp(1 - date.day), math.exp(-left)])
    return np.array(rows, np.float32)


def category_table(x, seen_min=30):
    """[codes, categories] one-hot rows: a combination of codes seen `seen_min` times is a category
    of its own, all others share the last."""
    found, counts = np.unique(codes(x), return_counts=True)
    own = found[counts >= seen_min]
    table = np.zeros((math.prod(CODES), len(own) + 1), np.float32)
    table[:, -1] = 1.0
    for index, code in enumerate(own):
        table[code] = 0.0
        table[code, index] = 1.0
    return table


def codes(x):
    """The combined code of each raw row."""
    return (x[:, 3:] @ np.array(CODE_WORTH)).astype(int)


class Surprise(nn.Module):
    """`forward` is one step, as exported; `sequence` is the same over whole accounts, to train."""

    def __init__(self, table):
        super().__init__()
        categories = table.shape[1]
        self.register_buffer("table", torch.from_numpy(table))
        self.register_buffer("calendar", torch.from_numpy(calendar()))
        self.register_buffer("worth", torch.tensor([[float(w)] for w in CODE_WORTH]))
        self.gru = nn.GRU(BEFORE + categories + 2, HIDDEN)
        self.before = nn.Sequential(nn.Linear(HIDDEN + BEFORE, 96), nn.ReLU())
        self.category = nn.Linear(96, categories)
        self.amount = nn.Sequential(
            nn.Linear(97 + categories, 96), nn.ReLU(), nn.Linear(96, 3 * COMPONENTS - 1)
        )

    def forward(self, x, h_in, last_in, amounts_in):
        """x [batch, 6], h_in [batch, HIDDEN], last_in [batch, 3], amounts_in [batch, categories] ->
        surprise [batch], its two parts [batch, 2], the category's expected amount [batch], and
        the new state in the same order."""
        before, event, logs, log_amount, last_out = self.features(x, last_in)
        parts, expected = self.judge(h_in, before, event, log_amount, amounts_in)
        _, h_out = self.gru(
            torch.cat([before, event, scaled(logs)], 1).unsqueeze(0), h_in.unsqueeze(0)
        )
        amounts_out = amounts_in + event * (log_amount - amounts_in)
        score = parts.sum(1)
        return score, parts, torch.exp(expected) - 1.0, h_out.squeeze(0), last_out, amounts_out

    def sequence(self, x, last, amounts):
        """x, last, amounts [steps, accounts, ..] -> parts [steps, accounts, 2]."""
        before, event, logs, log_amount, _ = self.features(x, last)
        after, _ = self.gru(torch.cat([before, event, scaled(logs)], -1))
        h_in = torch.cat([torch.zeros_like(after[:1]), after[:-1]])
        return self.judge(h_in, before, event, log_amount, amounts)[0]

    def features(self, x, last):
        """What is known before the transaction [.., BEFORE], its category as a one-hot row, the
        logarithms of its amount and balance, the former alone, and what `last` will be."""
        amount, balance, day, parts = x.split([1, 1, 1, 3], -1)
        last_day, last_rest = last.split([1, 2], -1)
        seen = last_rest[..., 1:]
        gap = torch.log((day - last_day).clamp(0.0, GAP_MAX) + 1.0) * seen
        since_first = (day - CALENDAR_FIRST).clamp(0.0, CALENDAR_LAST - CALENDAR_FIRST)
        month = self.calendar[since_first.squeeze(-1).to(torch.int64)]
        code = (parts @ self.worth).clamp(0.0, len(self.table) - 1.0)
        event = self.table[code.squeeze(-1).to(torch.int64)]
        logs = torch.log(torch.cat([amount, balance], -1).relu() + 1.0)
        # Clamped to 1: a one for each row, of any batch.
        log_amount, log_balance = logs.split(1, -1)
        last_out = torch.cat([day, log_balance, day.clamp(1.0, 1.0)], -1)
        return torch.cat([gap, month, last_rest], -1), event, logs, log_amount, last_out

    def judge(self, h_in, before, event, log_amount, amounts):
        """The surprise of the category and of the amount [.., 2], and log(1 + expected amount)."""
        known = self.before(torch.cat([h_in, before], -1))
        of_category = (torch.log_softmax(self.category(known), -1) * event).sum(-1, keepdim=True)
        again = (amounts * event).sum(-1, keepdim=True)
        mixture = self.amount(torch.cat([known, event, scaled(again)], -1))
        weight, spread, centre = mixture.split([COMPONENTS, COMPONENTS, COMPONENTS - 1], -1)
        # The last component repeats the category's last amount; the others are free.
        centre = torch.cat([centre * LOG_SCALE + LOG_CENTRE, again], -1)
        log_spread = SPREAD_LOG_MIN + SPREAD_LOG_RANGE * torch.sigmoid(spread)
        distance = (log_amount - centre) * torch.exp(-log_spread)
        log_weight = torch.log_softmax(weight, -1)
        joint = log_weight - log_spread - 0.5 * distance * distance
        top = joint.amax(-1, keepdim=True)
        of_amount = top + torch.log(torch.exp(joint - top).sum(-1, keepdim=True)) + SPREAD_LOG_MIN
        expected = (torch.exp(log_weight) * centre).sum(-1)
        return -torch.cat([of_category, of_amount], -1), expected


def scaled(logs):
    return (logs - LOG_CENTRE) / LOG_SCALE


def exported(model, path):
    """Writes the step as ONNX opset 17 with a free batch axis."""
    names = ["score", "parts", "expected_amount", "h_out", "last_out", "amounts_out"]
    inputs = {
        "x": torch.zeros(2, 6),
        "h_in": torch.zeros(2, HIDDEN),
        "last_in": torch.zeros(2, 3),
        "amounts_in": torch.zeros(2, model.table.shape[1]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            tuple(inputs.values()),
            path,
            dynamo=False,
            opset_version=17,
            input_names=list(inputs),
            output_names=names,
            dynamic_axes={name: {0: "batch"} for name in (*inputs, *names)},
        )
