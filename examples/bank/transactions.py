"""Reads the event file through map.toml, as `statehouse replay` does, so that training and
serving see the same numbers. Rows keep the order of the file.
"""

import csv
import datetime
import gzip
import tomllib
from dataclasses import dataclass

import numpy as np

EPOCH = datetime.date(1970, 1, 1)
AMOUNT, BALANCE, DAYS, TYPE, OPERATION, K_SYMBOL = range(6)


@dataclass
class Events:
    """`x` [events, 6] float32 as the model takes it; `account` [events]; `labels` for people."""

    x: np.ndarray
    account: np.ndarray
    labels: list

    def by_account(self):
        """The indices of each account's events, in order."""
        order = np.argsort(self.account, kind="stable")
        cuts = np.flatnonzero(np.diff(self.account[order])) + 1
        return np.split(order, cuts)


def read(path, map_path):
    with open(map_path, "rb") as file:
        mapping = tomllib.load(file)
    (mapped,) = mapping["input"]
    columns = [reader(column) for column in mapped["columns"]]
    x, account, labels = [], [], []
    with gzip.open(path, "rt") if str(path).endswith(".gz") else open(path) as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                x.append([column(row) for column in columns])
            except (KeyError, ValueError) as error:
                raise SystemExit(f"{path}: line {line}: {error}") from error
            account.append(int(row[mapping["key"]]))
            labels.append({c: row[c] for c in mapping["label"]["columns"]})
    return Events(np.array(x, np.float32), np.array(account), labels)


def reader(column):
    """A function from a row to the number of one column of the map."""
    name = column["column"]
    if "map" in column:
        return lambda row: coded(row[name], column)
    if column.get("as") == "days":
        form = column["format"]
        return lambda row: (datetime.datetime.strptime(row[name], form).date() - EPOCH).days
    return lambda row: float(row[name])


def coded(text, column):
    code = column["map"].get(text, column.get("default"))
    if code is None:
        known = ", ".join(column["map"])
        raise ValueError(f"{column['column']} is {text!r}; expected one of {known}")
    return code


def days(year, month, day):
    return (datetime.date(year, month, day) - EPOCH).days
