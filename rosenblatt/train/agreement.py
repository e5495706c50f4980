"""Refusals of what must not differ: between a run and its resumption, and between the processes of a fit."""

from __future__ import annotations

from typing import Any

from rosenblatt.core.density import Density
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.train import storage
from rosenblatt.train.batches import Dataset
from rosenblatt.train.config import RESUMABLE, FitConfig
from rosenblatt.train.processes import Processes

ROWS_COMPARED = 1000


def check_same_run(config: FitConfig, rows: int, state: dict[str, Any]) -> None:
    """Raise `OptionError` or `DataError` unless a run that left `state` can go on with these."""
    before, now = state["fit"], config.to_dict()
    for name in now.keys() - RESUMABLE:
        if before.get(name) != now[name]:
            raise OptionError(
                f"{name}: {now[name]!r} came, the run to resume was started with {before.get(name)!r}; "
                "keep that value or start a new run."
            )
    if state["rows"] != rows:
        raise DataError(
            f"data: {rows} training rows came, the run to resume had {state['rows']}; "
            "bring the same rows or start a new run."
        )


def check_alike(
    processes: Processes, config: FitConfig, model: Density, train: Dataset, validation: Dataset | None
) -> None:
    """Raise `OptionError` in every process when one was given other things, which would learn nonsense together."""
    options = {name: value for name, value in config.to_dict().items() if name not in RESUMABLE}
    steps = [config.epochs, config.max_steps, config.patience, config.time_limit]
    sizes = [len(train), 0 if validation is None else len(validation)]
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    plain = storage.to_json({"options": options, "steps": steps, "sizes": sizes, "shapes": shapes})
    rows = zip(("x", "context", "weight"), train.rows(ROWS_COMPARED), strict=True)
    mine = storage.sha256(plain + storage.encode_tensors({n: part for n, part in rows if part is not None})).encode()
    if processes.largest([processes.of_first(mine) != mine])[0]:
        raise OptionError(
            "processes: their rows, options or models differ, which must be the same; fix every seed and give all of "
            "them the same files."
        )
