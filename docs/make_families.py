"""Write docs/families.md and the README's table of models from the registry.

python docs/make_families.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt.core.registry import Entry, build, entry, names

DOCS = Path(__file__).resolve().parent
PAGE, README = DOCS / "families.md", DOCS.parent / "README.md"
HEAD = """# Families

Made from the registry by `python docs/make_families.py`. Costs are of one row: *density* and *sample* in passes of the
network (a pass level by level is one pass in all: each hidden unit is computed once) with D columns, *log-det* beside
those passes. *Universal* says whether the family comes near to any density as the named size grows; where the
literature proves less than that, the cell says so.

| model | density | sample | log-det | universal | `log_prob` is |
| --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Write both."""
    PAGE.write_text(page())
    README.write_text(readme(README.read_text()))


def page() -> str:
    """The table of costs, then every model with its formula, options and reference."""
    entries = [entry(name) for name in names()]
    return HEAD + "".join(map(_costs, entries)) + "".join(map(_section, entries))


def readme(text: str) -> str:
    """The README with its table of models made anew."""
    rows = "".join(f"| `{name}` | {entry(name).summary} |\n" for name in names())
    table = f"| name | what it is |\n| --- | --- |\n{rows}"
    return re.sub(r"\| name \| what it is[^\n]*\n(?:\|[^\n]*\n)+", lambda _: table, text)


def _costs(model: Entry) -> str:
    facts = model.facts
    cells = (f"[{model.name}](#{model.name})", facts.forward, facts.inverse, facts.determinant, facts.universal)
    return f"| {' | '.join(cells)} | {_claim(model)} |\n"


def _claim(model: Entry) -> str:
    density = build(model.name, 2, seed=0)
    in_use, in_training = density.eval().likelihood, density.train().likelihood
    return in_use.value if in_use is in_training else f"{in_use.value}; in training {in_training.value}"


def _section(model: Entry) -> str:
    options = ", ".join(f"`{name}={_shown(option.default)}`" for name, option in model.options.items())
    summary = f"{model.summary[0].upper()}{model.summary[1:]}."
    return (
        f"\n### {model.name}\n\n{summary}\n\n```math\n{model.facts.formula}\n```\n\n"
        f"Options: {options or 'none'}.\n\n{model.citation}\n"
    )


def _shown(default: object) -> str:
    if default is inspect.Parameter.empty:
        return "..."
    return str(list(default) if isinstance(default, tuple) else default)


if __name__ == "__main__":
    main()
