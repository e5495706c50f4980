"""`rosenblatt plot`, `audit`, `info` and `models`: look at what is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from rosenblatt.cli.options import parse

if TYPE_CHECKING:
    from rosenblatt.train import RunFolder

CHECK_FAILED = 1


@dataclass(frozen=True)
class PlotOptions:
    """Draw data against samples, marginals, calibration (PIT) and the training curve of a run, as PNG.

    Of a run with targets: reliability, sharpness of intervals, groups, curves over a single input, training. Of a run
    of images: test images beside samples, where their bits go and where these are more than the model expects,
    calibration of the levels, training in bits per dimension.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a fitted run."""
    data: Annotated[Path | None, arg(metavar="TABLE")] = None
    """Rows or images to draw; by default the run's own test rows."""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder for the plots; the run folder by default."""
    as_is: bool = False
    """Do not spread the rounded columns of TABLE over their cells, as the fit did."""


@dataclass(frozen=True)
class AuditOptions:
    """Check that the numbers of a run can be believed; exit code 1 when a check fails.

    Of a run of images: that masses add up to one, that no pixel sees itself or a later one, that samples and
    completions follow the probabilities, that float32 is enough, that images do not see each other, and that a few
    come back from a compressed file.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a fitted run."""
    data: Annotated[Path | None, arg(metavar="TABLE")] = None
    """Rows or images to check on; by default the run's own test rows."""
    seconds: float = 60.0
    """About how long it may take."""
    seed: int = 0
    """Seed of the samples that the checks draw."""
    as_is: bool = False
    """Do not spread the rounded columns of TABLE over their cells, as the fit did."""


@dataclass(frozen=True)
class InfoOptions:
    """Say what a run folder holds."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a run."""


@dataclass(frozen=True)
class ModelsOptions:
    """List every model in one line, with its citation."""


def run(command: str, words: Sequence[str]) -> int:
    """Run one of the commands of this module."""
    prog = f"rosenblatt {command}"
    if command == "plot":
        return _plot(parse(PlotOptions, words, prog))
    if command == "audit":
        return _audit(parse(AuditOptions, words, prog))
    if command == "info":
        return _info(parse(InfoOptions, words, prog))
    parse(ModelsOptions, words, prog)
    return _models()


def _plot(options: PlotOptions) -> int:
    from rosenblatt.cli.outputs import draw
    from rosenblatt.cli.runs import open_flow, rows_for
    from rosenblatt.train import RunFolder

    store = RunFolder.open(options.run)
    folder = options.out or options.run
    if store.config.get("kind") == "images":
        from rosenblatt.cli.inspect_images import plot_images

        return plot_images(store, options, folder)
    if "given" in store.config:
        from rosenblatt.cli.fit_given import plot_given

        folder.mkdir(parents=True, exist_ok=True)
        print(*plot_given(store, options.data, folder), sep="\n")
        return 0
    flow, _ = open_flow(options.run)
    table = rows_for(store, options.data, as_is=options.as_is)
    folder.mkdir(parents=True, exist_ok=True)
    for name in draw(flow, table, store, folder):
        print(folder / name)
    return 0


def _audit(options: AuditOptions) -> int:
    import torch

    from rosenblatt.assembly import restore
    from rosenblatt.cli.runs import rows_for
    from rosenblatt.testing import audit
    from rosenblatt.train import RunFolder

    store = RunFolder.open(options.run)
    if store.config.get("kind") == "images":
        from rosenblatt.cli.inspect_images import audit_images

        return audit_images(store, options)
    flow, _ = restore(store)
    table = rows_for(store, options.data, as_is=options.as_is)
    generator = torch.Generator().manual_seed(options.seed)
    report = audit(flow, table.values, generator=generator, seconds=options.seconds)
    print(report)
    return 0 if report.passed else CHECK_FAILED


def _info(options: InfoOptions) -> int:
    import rosenblatt.models  # noqa: F401 - fills the registry
    from rosenblatt.core.registry import cite, names
    from rosenblatt.train import RunFolder

    store = RunFolder.open(options.run)
    config = store.config
    data = config.get("data", {})
    model = config.get("model", "?")
    what = "images" if config.get("kind") == "images" else "rows"
    lines = {
        "run": str(store.path),
        "model": f"{model} {_shown(config.get('options', {}))}".strip(),
        "members": f"{members} fits, averaged" if (members := config.get("members", 1)) != 1 else "",
        "columns": ", ".join(config.get("columns", [])),
        "images": _images(config),
        "given": ", ".join(str(code.get("name")) for code in config.get("given") or []),
        "spread over cells": _shown(config.get("dequantise") or {}),
        "supports": _supports(config),
        "data": f"{data.get('source')}, {data.get('rows')} {what}, SHA-256 {str(data.get('digest'))[:16]}",
        **_training(store),
        "versions": ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items()),
        "command": str(config.get("provenance", {}).get("command", "")),
        "cite": cite(model) if model in names() else "",
    }
    width = max(len(name) for name in lines)
    for name, text in lines.items():
        if text:
            shown = "".join(sign if sign.isprintable() else "?" for sign in text)
            print(f"{name:<{width}}  {shown}")
    print("files")
    for path in sorted(path for path in store.path.rglob("*") if path.is_file() and path.name != "lock"):
        print(f"  {path.stat().st_size:>12,}  {path.relative_to(store.path)}")
    return 0


def _training(store: RunFolder) -> dict[str, str]:
    """Steps and scores, from the latest checkpoint and the report of the fit."""
    from rosenblatt.summary import read_summary

    checkpoint, summary = store.load("latest"), read_summary(store)
    if summary is None:
        progress = checkpoint.state.get("progress", {})
        best, seconds = progress.get("best_validation"), float(progress.get("seconds", 0))
        found = {"steps": f"{checkpoint.step:,}, {seconds:.0f} s of training, not finished"}
        if best is not None:
            measure = checkpoint.state.get("measure", "nats")
            found["validation"] = f"{_score(store, best, measure)} at step {progress.get('best_step')}"
    else:
        report = summary.report
        found = {"steps": f"{report.steps:,}, {report.seconds:.0f} s of training, stopped by {report.stopped}"}
        for rows, scores in (("validation", summary.validation), ("test", summary.test)):
            for name, score in ({} if scores is None else scores._asdict()).items():
                if score is not None:
                    found[f"{rows}, {name}"] = f"{score} nats per row"
        if store.config.get("kind") == "images" and report.best_validation is not None:
            shown = _score(store, report.best_validation, report.measure)
            found["validation"] = f"{shown} at step {report.best_step}"
        if summary.bits is not None:
            found["test"] = str(summary.bits)
    found["weights"] = f"{sum(t.numel() for t in checkpoint.model.values()):,} numbers"
    return found


def _score(store: RunFolder, value: float, measure: str) -> str:
    """A score of training with its unit; nats of an image as bits per dimension."""
    shape = store.config.get("shape")
    claim = {"nats": "", "nats (lower bound)": " (upper bound)"}.get(measure)
    if store.config.get("kind") == "images" and claim is not None and isinstance(shape, list):
        import torch

        from rosenblatt.eval import bits_per_dimension

        bits = bits_per_dimension(torch.tensor(value, dtype=torch.float64), math.prod(shape))
        return f"{float(bits):.4f} bits/dim{claim}"
    return f"{value:.4f} {'nats per row' if measure == 'nats' else measure}"


def _images(config: dict[str, Any]) -> str:
    if config.get("kind") != "images":
        return ""
    shape = " x ".join(map(str, config.get("shape", [])))
    return f"{shape} (channels, height, width), {config.get('levels')} levels"


def _supports(config: dict[str, Any]) -> str:
    ends = config.get("supports") or []
    named = zip(config.get("columns", []), ends, strict=False)
    return ", ".join(f"{name} {pair}" for name, pair in named if pair != [None, None])


def _shown(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _models() -> int:
    import rosenblatt.models  # noqa: F401 - fills the registry
    from rosenblatt.core.registry import entry, names

    width = max(len(name) for name in names())
    for name in names():
        found = entry(name)
        print(f"{name:<{width}}  {found.summary}. {found.citation}")
    return 0
