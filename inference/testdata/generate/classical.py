"""`ai.onnx.ml`: tree ensembles, linear models, Scaler and Normalizer, written attribute by
attribute.

What scikit-learn's exporter writes is a subset; the models made by `sklearn_models` cover that from
the other side.
"""

import numpy as np

from .case import ML, Const, integers, normal, one


def cases():
    yield from classifiers()
    yield from regressors()
    yield from linear()
    yield from scaling()
    yield from picking()


class Trees:
    """Collects trees into the parallel arrays of the ensemble operators.

    A tree is nested tuples: `(feature, threshold, if_true, if_false[, mode, nan_goes_true])` or a
    leaf `{target: weight}`."""

    def __init__(self, kind):
        self.kind = kind
        columns = """treeids nodeids featureids values modes truenodeids falsenodeids
            missing_value_tracks_true hitrates"""
        self.columns = {c: [] for c in columns.split()}
        self.leaves = {c: [] for c in "treeids nodeids ids weights".split()}
        self.count = 0

    def add(self, tree):
        self.next_node = 0
        self.place(tree)
        self.count += 1
        return self

    def place(self, tree):
        node, self.next_node = self.next_node, self.next_node + 1
        row = len(self.columns["nodeids"])
        leaf = isinstance(tree, dict)
        if leaf:
            feature, threshold, mode, nan_true = 0, 0.0, "LEAF", 0
        else:
            feature, threshold, _, _, *rest = tree
            mode, nan_true = rest or ("BRANCH_LEQ", 0)
        values = (self.count, node, feature, float(threshold), mode, 0, 0, nan_true, 1.0)
        for column, value in zip(self.columns.values(), values):
            column.append(value)
        if leaf:
            for target, weight in tree.items():
                values = (self.count, node, target, float(weight))
                for column, value in zip(self.leaves.values(), values):
                    column.append(value)
        else:
            self.columns["truenodeids"][row] = self.place(tree[2])
            self.columns["falsenodeids"][row] = self.place(tree[3])
        return node

    def attributes(self, missing=False):
        found = {f"nodes_{c}": v for c, v in self.columns.items()}
        if not missing:
            del found["nodes_missing_value_tracks_true"]
        return found | {f"{self.kind}_{c}": v for c, v in self.leaves.items()}


def rows(name, count, width):
    """Includes rows that sit exactly on the thresholds used below."""
    values = normal(name, count, width)
    values[0, :] = 0.0
    values[1, :] = 0.5
    return values


def classifiers():
    outputs = ("label", "scores")
    x = rows("trees", 6, 3)

    three = Trees("class")
    three.add((0, 0.0, {0: 0.7, 1: 0.2, 2: 0.1}, (1, 0.5, {1: 0.9, 2: 0.1}, {2: 1.0})))
    three.add((2, -0.3, (1, 0.0, {0: 1.0}, {0: 0.3, 1: 0.7}), {0: 0.1, 1: 0.4, 2: 0.5}))
    one_weight = Trees("class")
    one_weight.add((0, 0.0, {0: -0.8}, (1, 0.5, {0: 0.4}, {0: 1.3})))
    one_weight.add((2, -0.3, {0: 0.25}, {0: -0.6}))
    two_weights = Trees("class")
    two_weights.add((0, 0.0, {0: 0.3, 1: 0.7}, (1, 0.5, {0: 0.9, 1: 0.1}, {0: 0.5, 1: 0.5})))

    def classifier(name, trees, labels, post, **extra):
        attributes = (
            trees.attributes() | {"classlabels_int64s": labels, "post_transform": post} | extra
        )
        return one(name, "TreeEnsembleClassifier", [x], outputs=outputs, domain=ML, **attributes)

    for post in ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"):
        low = post.lower()
        yield classifier(f"tree_classifier_three_{low}", three, [0, 1, 2], post)
        if post != "SOFTMAX_ZERO":
            yield classifier(f"tree_classifier_binary_one_weight_{low}", one_weight, [0, 1], post)
    yield classifier("tree_classifier_binary_two_weights", two_weights, [0, 1], "NONE")
    yield classifier("tree_classifier_labels", three, [10, -3, 77], "NONE")
    yield classifier(
        "tree_classifier_base_values", three, [0, 1, 2], "SOFTMAX", base_values=[0.5, -1.0, 0.1]
    )
    yield classifier(
        "tree_classifier_binary_base_value", one_weight, [0, 1], "LOGISTIC", base_values=[0.4]
    )
    shifted = three.attributes() | {"classlabels_int64s": [0, 1, 2], "post_transform": "NONE"}
    name = "tree_classifier_ml_opset1"
    yield one(
        name, "TreeEnsembleClassifier", [x], outputs=outputs, domain=ML, ml_opset=1, **shifted
    )
    name = "tree_classifier_one_row"
    yield one(name, "TreeEnsembleClassifier", [x[:1]], outputs=outputs, domain=ML, **shifted)


def regressors():
    x = rows("regress", 6, 3)

    def regressor(name, trees, targets=1, missing=False, values=x, ml_opset=3, **extra):
        attributes = trees.attributes(missing) | {"n_targets": targets} | extra
        op = "TreeEnsembleRegressor"
        return one(name, op, [values], domain=ML, ml_opset=ml_opset, **attributes)

    def forest(mode="BRANCH_LEQ", nan_true=0):
        trees = Trees("target")
        trees.add(
            (0, 0.0, {0: 1.5}, (1, 0.5, {0: -2.0}, {0: 0.25}, mode, nan_true), mode, nan_true)
        )
        trees.add((2, 0.5, {0: 0.75}, {0: -0.125}, mode, 1 - nan_true))
        return trees.add((1, 0.0, {0: 3.0}, {0: 1.0}, mode, nan_true))

    for how in ("SUM", "AVERAGE", "MIN", "MAX"):
        yield regressor(f"tree_regressor_{how.lower()}", forest(), aggregate_function=how)
    yield regressor("tree_regressor_default", forest(), ml_opset=1)
    for mode in ("BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"):
        yield regressor(f"tree_regressor_{mode.lower()}", forest(mode))
    yield regressor("tree_regressor_base_value", forest(), base_values=[10.0])
    average = dict(base_values=[10.0], aggregate_function="AVERAGE")
    yield regressor("tree_regressor_average_base_value", forest(), **average)
    missing = x.copy()
    missing[2, 0] = missing[3, 1] = missing[4, 2] = missing[5, :] = np.nan
    yield regressor("tree_regressor_nan_goes_false", forest(), values=missing)
    for nan_true in (0, 1):
        name = f"tree_regressor_nan_tracks_true{nan_true}"
        yield regressor(name, forest(nan_true=nan_true), missing=True, values=missing)
    two = Trees("target")
    two.add((0, 0.0, {0: 1.0, 1: -1.0}, (1, 0.5, {1: 2.0}, {0: 0.5})))
    two.add((2, 0.0, {1: 0.25}, {0: 4.0, 1: 1.0}))
    yield regressor("tree_regressor_two_targets", two, targets=2)
    both = dict(base_values=[1.0, 2.0], aggregate_function="AVERAGE")
    yield regressor("tree_regressor_two_targets_average", two, targets=2, **both)
    yield shared(x)
    yield regressor("tree_regressor_only_a_leaf", Trees("target").add({0: 2.5}))
    yield regressor("tree_regressor_one_row", forest(), values=x[:1])


def shared(x):
    """As LightGBM's categories are exported: feature 0 in {0, 0.5} by two tests, which share what is
    below them."""
    tests, leaves = ["BRANCH_EQ", "BRANCH_EQ", "BRANCH_LEQ"], ["LEAF"] * 3
    attributes = dict(
        nodes_treeids=[0] * 6,
        nodes_nodeids=[0, 1, 2, 3, 4, 5],
        nodes_featureids=[0, 0, 1, 0, 0, 0],
        nodes_modes=tests + leaves,
        nodes_values=[0.0, 0.5, 0.2, 0.0, 0.0, 0.0],
        nodes_truenodeids=[2, 2, 4, 0, 0, 0],
        nodes_falsenodeids=[1, 3, 5, 0, 0, 0],
        target_treeids=[0] * 3,
        target_nodeids=[3, 4, 5],
        target_ids=[0] * 3,
        target_weights=[-1.0, 2.0, 5.0],
        n_targets=1,
    )
    return one("tree_regressor_shared", "TreeEnsembleRegressor", [x], domain=ML, **attributes)


def linear():
    outputs = ("label", "scores")
    x = normal("linear", 5, 3)
    weights = [float(v) for v in normal("coefficients", 9)]

    def classifier(name, count, labels, post, **extra):
        attributes = (
            dict(
                coefficients=weights[: 3 * count],
                intercepts=[0.1, -0.2, 0.3][:count],
                classlabels_ints=labels,
                post_transform=post,
            )
            | extra
        )
        return one(
            name, "LinearClassifier", [x], outputs=outputs, domain=ML, ml_opset=1, **attributes
        )

    for post in ("NONE", "SOFTMAX", "LOGISTIC"):
        low = post.lower()
        yield classifier(f"linear_classifier_three_{low}", 3, [0, 1, 2], post)
        yield classifier(f"linear_classifier_two_{low}", 2, [0, 1], post)
    yield classifier("linear_classifier_labels", 3, [5, -1, 9], "SOFTMAX", multi_class=1)

    def regressor(name, targets, **extra):
        attributes = dict(coefficients=weights[: 3 * targets], targets=targets) | extra
        return one(name, "LinearRegressor", [x], domain=ML, ml_opset=1, **attributes)

    yield regressor("linear_regressor_one", 1, intercepts=[0.5])
    yield regressor("linear_regressor_two", 2, intercepts=[0.5, -1.5])
    yield regressor("linear_regressor_no_intercepts", 1)


def scaling():
    x = normal("scaling", 4, 3, scale=5.0)
    x[2, :] = 0.0
    each = dict(offset=[1.0, -2.0, 0.5], scale=[0.5, 2.0, 0.1])
    yield one("scaler_per_feature", "Scaler", [x], domain=ML, ml_opset=1, **each)
    yield one("scaler_single", "Scaler", [x], domain=ML, ml_opset=1, offset=[1.5], scale=[0.25])
    yield one("scaler_int64", "Scaler", [x.astype(np.int64)], domain=ML, ml_opset=1, **each)
    for norm in ("L1", "L2", "MAX"):
        name = f"normalizer_{norm.lower()}"
        yield one(name, "Normalizer", [x], domain=ML, ml_opset=1, norm=norm)


def picking():
    """ArrayFeatureExtractor picks columns; scikit-learn's exporter finds labels with it."""
    x, labels = normal("picking", 3, 5), Const(np.int64([[7, -2, 40]]))
    op = "ArrayFeatureExtractor"
    yield one("array_feature_extractor", op, [x, Const(np.int64([3, 0]))], domain=ML, ml_opset=1)
    winners = integers("winners", 4, low=0, high=3)
    yield one("array_feature_extractor_labels", op, [labels, winners], domain=ML, ml_opset=1)
    # The number of indices is the last axis, whatever shape they have; one axis of values is a row.
    for name, index in (("scalar", 1), ("one", [2]), ("row", [[1, 0]]), ("column", [[4], [0]])):
        index = np.asarray(index, np.int64)
        yield one(f"array_feature_extractor_{name}", op, [x, Const(index)], domain=ML, ml_opset=1)
    cube = normal("picking", 2, 3, 4)
    row = Const(np.int64([[3, 0]]))
    yield one("array_feature_extractor_cube", op, [cube, row], domain=ML, ml_opset=1)
    yield one("array_feature_extractor_vector", op, [x[0], row], domain=ML, ml_opset=1)
    yield one("array_feature_extractor_computed", op, [x, winners], domain=ML, ml_opset=1)
