#!/usr/bin/env python3
"""Makes every fixture of the ONNX interpreter: `make_fixtures.py [GROUP ..] [--out DIR]`.

The groups are ops, models, bad, rows and bank; without one all are made again from nothing. README.md
says what lies where and how a test reads it.
"""

import argparse
import importlib
import shutil
from pathlib import Path

from generate import case

HERE = Path(__file__).resolve().parent
OPERATOR_FAMILIES = ["elementwise", "shaping", "reducing", "neural", "recurrent", "classical", "empty"]
SIZE_MAX = 3 << 20


def make_ops(folder):
    """One small graph per operator, attribute and opset form; fails if an operator has none."""
    seen, names = set(), set()
    for family in OPERATOR_FAMILIES:
        for made in importlib.import_module(f"generate.{family}").cases():
            assert made.name not in names, f"{made.name} is made twice"
            names.add(made.name)
            try:
                seen |= case.write(folder, made)
            except Exception as error:
                raise SystemExit(f"{family}: {made.name}: {error}") from error
    for domain, wanted in (("", case.SUPPORTED), (case.ML, case.SUPPORTED_ML)):
        missing = wanted - {op for d, op in seen if d == domain}
        assert not missing, f"no fixture for {sorted(missing)}"
    return len(names)


def make_models(folder):
    """Whole models as the real exporters write them."""
    torch_models = importlib.import_module("generate.torch_models")
    sklearn_models = importlib.import_module("generate.sklearn_models")
    return torch_models.write(folder) + sklearn_models.write(folder)


def make_bad(folder):
    """Files that must be refused, and those that are odd but right."""
    return importlib.import_module("generate.refused").write(folder)


def make_rows(folder):
    """Models that have no result for some rows."""
    return importlib.import_module("generate.rows").write(folder)


def make_bank(folder):
    """The example model, stepped."""
    return importlib.import_module("generate.bank_steps").write(folder)


def main():
    groups = {
        "ops": make_ops,
        "models": make_models,
        "bad": make_bad,
        "rows": make_rows,
        "bank": make_bank,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(groups)}; default: all")
    parser.add_argument("--out", type=Path, default=HERE, help="default: beside this script")
    arguments = parser.parse_args()
    for group in arguments.groups or groups:
        folder = arguments.out / group
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        count = groups[group](folder)
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{group}: {count} cases, {size / 1024:.0f} KiB")
    total = sum(f.stat().st_size for g in groups for f in (arguments.out / g).glob("*"))
    assert total <= SIZE_MAX, f"{total} bytes of fixtures; the limit is {SIZE_MAX}"


if __name__ == "__main__":
    main()
