"""Whole scikit-learn models as skl2onnx writes them, ZipMap off, with a free batch axis.

What onnxruntime computes is checked against scikit-learn before it is written.
"""

import numpy as np
import skl2onnx.common._container
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn import ensemble, linear_model, neural_network, pipeline, preprocessing

from . import case

# skl2onnx 1.20 hands over flags as bool, which protobuf 7 refuses in a list of ints.
MAKE_NODE = skl2onnx.common._container.make_node


def make_node(*args, **attributes):
    for name, value in attributes.items():
        if isinstance(value, list):
            attributes[name] = [int(v) if isinstance(v, (bool, np.bool_)) else v for v in value]
    return MAKE_NODE(*args, **attributes)


skl2onnx.common._container.make_node = make_node

FEATURES = 6
OPSETS = {"": 17, case.ML: 3}


def models():
    """name -> (unfitted model, which target it learns: classes or "values")."""
    e, small = ensemble, dict(max_depth=4, random_state=7)
    forest = dict(n_estimators=6, **small)
    boosted = dict(max_iter=8, max_leaf_nodes=8, min_samples_leaf=5, random_state=7)
    mlp = dict(hidden_layer_sizes=(12, 8), max_iter=200, random_state=7)
    chain, scaler = pipeline.make_pipeline, preprocessing.StandardScaler
    return {
        "logistic_regression_binary": (linear_model.LogisticRegression(), 2),
        "logistic_regression_three": (linear_model.LogisticRegression(), 3),
        "linear_regression": (linear_model.LinearRegression(), "values"),
        "random_forest_binary": (e.RandomForestClassifier(**forest), 2),
        "random_forest_three": (e.RandomForestClassifier(**forest), 3),
        "random_forest_regressor": (e.RandomForestRegressor(**forest), "values"),
        "gradient_boosting_binary": (e.GradientBoostingClassifier(**forest), 2),
        "gradient_boosting_three": (e.GradientBoostingClassifier(**forest), 3),
        "gradient_boosting_regressor": (e.GradientBoostingRegressor(**forest), "values"),
        "hist_gradient_boosting_binary": (e.HistGradientBoostingClassifier(**boosted), 2),
        "hist_gradient_boosting_three": (e.HistGradientBoostingClassifier(**boosted), 3),
        "hist_gradient_boosting_regressor": (e.HistGradientBoostingRegressor(**boosted), "values"),
        "scaled_mlp_classifier": (chain(scaler(), neural_network.MLPClassifier(**mlp)), 3),
        "scaled_mlp_binary": (
            chain(scaler(), neural_network.MLPClassifier(activation="tanh", **mlp)),
            2,
        ),
        "scaled_mlp_regressor": (chain(scaler(), neural_network.MLPRegressor(**mlp)), "values"),
        "normalized_logistic": (
            chain(preprocessing.Normalizer(), linear_model.LogisticRegression()),
            2,
        ),
        "normalized_linear": (
            chain(preprocessing.Normalizer("l1"), linear_model.Ridge()),
            "values",
        ),
        "scaled_forest": (chain(scaler(), e.RandomForestClassifier(**forest)), 2),
    }


def training(target):
    x = case.normal("sklearn", 240, FEATURES, scale=2.0)
    signal = x[:, 0] + 0.5 * x[:, 1] * x[:, 2] - np.abs(x[:, 3])
    if target == "values":
        return x, signal
    return x, np.digitize(signal, np.quantile(signal, np.linspace(0, 1, target + 1)[1:-1]))


def rows(name, batch):
    x = case.normal(f"{name}{batch}", batch, FEATURES, scale=2.0)
    if name.startswith("hist") and batch > 1:
        x[0, 0] = x[2, 3] = np.nan
    return x


def write(folder):
    for name, (model, target) in models().items():
        x, y = training(target)
        if name.startswith("hist"):
            x[::11, 0] = x[::13, 3] = np.nan
        model.fit(x, y)
        options = None if target == "values" else {"zipmap": False}
        exported = to_onnx(
            model,
            initial_types=[("x", FloatTensorType([None, FEATURES]))],
            options=options,
            target_opset=OPSETS,
        )
        exported.doc_string = exported.graph.doc_string = ""
        exported.graph.name = name
        # skl2onnx lists the imports in any order, and some twice; only the order is made fixed.
        exported.opset_import.sort(key=lambda entry: entry.domain)
        for value in (*exported.graph.input, *exported.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        content = exported.SerializeToString()
        for batch in (1, 5):
            compare(name, model, case.run(content, {"x": rows(name, batch)}), rows(name, batch))
        runs = {"": {"x": rows(name, 5)}, ".batch1": {"x": rows(name, 1)}}
        case.write_model(folder, f"sklearn_{name}", exported, runs)
    return len(models())


def compare(name, model, found, x):
    values = list(found.values())
    if len(values) == 1:
        np.testing.assert_allclose(
            values[0].ravel(), model.predict(x), rtol=1e-3, atol=1e-4, err_msg=name
        )
    else:
        np.testing.assert_array_equal(values[0], model.predict(x), err_msg=name)
        np.testing.assert_allclose(values[1], model.predict_proba(x), atol=1e-4, err_msg=name)
