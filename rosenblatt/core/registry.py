"""The closed table of models: a name and JSON-only options make a density."""

from __future__ import annotations

import difflib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

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
KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", type(None): "none"}


def register(name: str, *, summary: str, citation: str, facts: Facts) -> Callable[[Builder], Builder]:
    """Enter a builder `(features, context=0, **json_options) -> Density` under `name`."""

    def enter(builder: Builder) -> Builder:
        if name in _MODELS:
            raise OptionError(f"model: '{name}' is registered twice; choose another name.")
        _MODELS[name] = Entry(name, builder, summary, citation, facts)
        return builder

    return enter


def entry(name: str) -> Entry:
    """Look a model up; raises `OptionError` that tells names like it."""
    if name not in _MODELS:
        alike = difflib.get_close_matches(name, _MODELS, n=3) or ["nits", "nsf"]
        raise OptionError(
            f"model: '{name}' is unknown; choose {' or '.join(alike)}, or one of the {len(_MODELS)} that "
            "`rosenblatt models` lists."
        )
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
    Raises `OptionError` for an unknown name, an unknown option, one that JSON cannot hold, or one of another kind than
    the builder says (a text for a number, a fraction or a boolean for an integer, NaN).
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
    hints = get_type_hints(chosen.builder)
    for key, value in options.items():
        if not _fits(value, hints.get(key, Any)):
            raise OptionError(f"{key}: {value!r} came, {_described(hints[key])} was expected by model '{name}'.")
    if features < 1 or context < 0:
        raise OptionError(f"features={features}, context={context}: features must be >= 1 and context >= 0.")
    with reproducible(seed):
        return chosen.builder(features, context=context, **options)


@contextmanager
def reproducible(seed: int | None) -> Iterator[None]:
    """Let starting weights that are made in here be those of `seed`, and leave the global random state as it was.

    With None they come from that state as usual.

    >>> with reproducible(3):
    ...     first = torch.rand(1)
    >>> with reproducible(3):
    ...     bool(torch.rand(1) == first)
    True
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed every accelerator
        yield


def _fits(value: Any, hint: Any) -> bool:
    """Whether an option is of the kind that the builder's signature names."""
    inner = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if get_origin(hint) in (list, Sequence):
        return isinstance(value, list | tuple) and all(_fits(part, inner[0]) for part in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)


def _described(hint: Any) -> str:
    """The kind of an option in words."""
    inner = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_described(one) for one in inner)
    if get_origin(hint) in (list, Sequence):
        return f"a list, each {_described(inner[0])},"
    return KINDS.get(hint, str(hint))


def cite(name: str) -> str:
    """Return the reference of a model."""
    return entry(name).citation
