"""The closed table of models: a name and JSON-only options make a density."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rosenblatt.core.density import Density
from rosenblatt.core.errors import OptionError

Builder = Callable[..., Density]


@dataclass(frozen=True)
class Facts:
    """What the page of families says of a model.

    formula: from data to base, in LaTeX.
    forward, inverse: cost of the density of a row and of a sample, in passes of the network; D columns.
    determinant: cost of the log-determinant, beside the passes.
    universal: whether it can come near to any density, and by what it grows to do so.
    """

    formula: str
    forward: str
    inverse: str
    determinant: str
    universal: str


@dataclass(frozen=True)
class Entry:
    """One registered model: its builder, a one-line summary, the reference to cite and what is known of it."""

    name: str
    builder: Builder
    summary: str
    citation: str
    facts: Facts

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The builder's options by name, without `features` and `context`."""
        parameters = dict(inspect.signature(self.builder).parameters)
        return {name: p for name, p in parameters.items() if name not in ("features", "context")}


_MODELS: dict[str, Entry] = {}


def register(name: str, *, summary: str, citation: str, facts: Facts) -> Callable[[Builder], Builder]:
    """Enter a builder `(features, context=0, **json_options) -> Density` under `name`."""

    def enter(builder: Builder) -> Builder:
        if name in _MODELS:
            raise OptionError(f"model: '{name}' is registered twice; choose another name.")
        _MODELS[name] = Entry(name, builder, summary, citation, facts)
        return builder

    return enter


def entry(name: str) -> Entry:
    """Look a model up; raises `OptionError` that lists the known names."""
    if name not in _MODELS:
        raise OptionError(f"model: '{name}' is unknown; choose one of {', '.join(sorted(_MODELS))}.")
    return _MODELS[name]


def names() -> list[str]:
    """All registered model names, sorted."""
    return sorted(_MODELS)


def build(
    name: str,
    features: int,
    context: int = 0,
    *,
    options: dict[str, Any] | None = None,
    seed: int | None = None,
) -> Density:
    """Build a model by name.

    With `seed` the starting weights are reproducible and the global random state is left as it was.
    Raises `OptionError` for an unknown name, an unknown option, or an option that JSON cannot hold.
    """
    chosen = entry(name)
    options = dict(options or {})
    for key in options:
        if key not in chosen.options:
            known = ", ".join(sorted(chosen.options)) or "none"
            raise OptionError(f"option: '{key}' is not an option of model '{name}'; known options: {known}.")
    try:
        json.dumps(options)
    except TypeError as error:
        raise OptionError(f"options of '{name}': {error}; only numbers, text, lists and booleans.") from None
    if features < 1 or context < 0:
        raise OptionError(f"features={features}, context={context}: features must be >= 1 and context >= 0.")
    if seed is None:
        return chosen.builder(features, context=context, **options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed every accelerator
        return chosen.builder(features, context=context, **options)


def cite(name: str) -> str:
    """Return the reference of a model."""
    return entry(name).citation
