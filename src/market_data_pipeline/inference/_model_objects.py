"""Fitted estimators made ready: one thread, and no way out of their arrays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np

_UNCHECKED = ("sklearn.ensemble._forest", "sklearn.ensemble._gb", "sklearn.ensemble._iforest")
_CODE = (type, ModuleType, FunctionType, BuiltinFunctionType)


def parts(root: object) -> Iterator[object]:
    """Every object that `root` holds, itself included, each once; neither types nor code."""
    seen: set[int] = set()
    waiting = [root]
    held = []  # what arrays are unpacked into has to live as long as its id is remembered
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, _CODE):
            continue
        seen.add(id(part))
        held.append(part)
        yield part
        if isinstance(part, np.ndarray):
            if part.dtype == object:
                waiting += part.ravel().tolist()
        else:
            waiting += gc.get_referents(part)


def one_thread(root: object) -> None:
    """Make every estimator in `root` work in one thread.

    Estimators with several threads add up their parts in the order in which these are ready.
    """
    for part in parts(root):
        state = getattr(part, "__dict__", None)
        if isinstance(state, dict) and "n_jobs" in state:
            state["n_jobs"] = 1


def damage(root: object) -> str:
    """What is wrong with the trees in `root`; empty if nothing is.

    Compiled code follows a tree's indices without looking whether they lie inside its arrays.
    """
    for part in parts(root):
        kind = f"{type(part).__module__}.{type(part).__name__}"
        state = getattr(part, "__dict__", None) or {}
        width = state.get("n_features_in_")
        if kind == "sklearn.tree._tree.Tree" and not _is_tree(part):
            return "a tree that leads out of itself"
        if "tree_" in state and state["tree_"].n_features != width:
            return "a tree for another number of features"
        if _passes_on_unchecked(part) and not _fit_together(state, width):
            return "trees for another number of features"
        for predictor in _predictors(state):
            if not _is_predictor(predictor, width):
                return "a tree that leads out of itself"
    return ""


def _is_tree(tree: Any) -> bool:
    left, right, feature = tree.children_left, tree.children_right, tree.feature
    inner = np.flatnonzero(left != -1)
    return len(left) > 0 and _leads_on(
        inner, left[inner], right[inner], feature[inner], len(left), tree.n_features
    )


def _is_predictor(predictor: Any, width: Any) -> bool:
    nodes, sets = predictor.nodes, predictor.raw_left_cat_bitsets
    inner = np.flatnonzero(nodes["is_leaf"] == 0)
    chosen = nodes[inner]
    categories = chosen["bitset_idx"][chosen["is_categorical"] != 0].astype(np.int64)
    return (
        isinstance(width, int)
        and len(nodes) > 0
        and not np.any(categories >= len(sets))
        and _leads_on(
            inner,
            chosen["left"].astype(np.int64),
            chosen["right"].astype(np.int64),
            chosen["feature_idx"].astype(np.int64),
            len(nodes),
            width,
        )
    )


def _leads_on(inner: Any, left: Any, right: Any, feature: Any, nodes: int, width: int) -> bool:
    """Whether every inner node leads to later ones, so that every path ends in a leaf."""
    steps = all(np.all((child > inner) & (child < nodes)) for child in (left, right))
    return steps and bool(np.all((feature >= 0) & (feature < width)))


def _predictors(state: dict[str, Any]) -> list[Any]:
    return [tree for iteration in state.get("_predictors", ()) for tree in iteration]


def _passes_on_unchecked(part: object) -> bool:
    """Whether it is a fitted ensemble that hands its rows to compiled trees without a look."""
    known = any(kind.__module__ in _UNCHECKED for kind in type(part).__mro__)
    return known and hasattr(part, "estimators_")


def _fit_together(state: dict[str, Any], width: Any) -> bool:
    """Whether each tree of an ensemble takes as many columns as the ensemble passes on."""
    widths = [tree.n_features_in_ for tree in np.ravel(state["estimators_"]).tolist()]
    chosen = state.get("estimators_features_")
    passed = [width] * len(widths) if chosen is None else [len(columns) for columns in chosen]
    return widths == passed
