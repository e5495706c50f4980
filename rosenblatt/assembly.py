"""From a model's name and a table to one density in the units of the table's columns, and back from a run folder."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt._version import __version__
from rosenblatt.bases import Box, StandardLogistic, StandardNormal, StudentT
from rosenblatt.core.allocation_limit import AllocationLimit
from rosenblatt.core.density import Density, Flow
from rosenblatt.core.errors import CheckpointError, DataError, OptionError, RosenblattError
from rosenblatt.core.registry import build
from rosenblatt.core.transform import Compose
from rosenblatt.core.types import Batch, Likelihood, Support
from rosenblatt.data import Table
from rosenblatt.layers.scaling import Standardise
from rosenblatt.layers.support import SupportMap
from rosenblatt.layers.units import Bounds, Units
from rosenblatt.train import FitConfig, LocalRuntime, RunFolder

MOST_FEATURES = 100_000
NUMBERS_AT_ONCE = 32_768  # rows times columns computed together: the networks inside need some kB for each
SYMMETRIC = (StandardNormal, StandardLogistic, StudentT, Box)  # bases with F(-z) = 1 - F(z)
# Masks, orders and other helpers that a builder makes and the weights file does not hold.
SPARE_ELEMENTS, SPARE_CALLS = 1_000_000, 1000
Model = TypeVar("Model", bound=Density)


class RowScores(NamedTuple):
    """Log-density (rows,) and Rosenblatt transform (rows, columns) of rows.

    `complement` is 1 - uniform, with the digits that rounding of `uniform` to 1 would lose.
    """

    log_prob: Tensor
    uniform: Tensor
    complement: Tensor


class TableFlow(Flow):
    """A flow with `Units` in front: log-densities, samples and CDFs are those of the user's columns.

    `log p(x) = log p_model(z(x)) + log|det dz/dx|`; -inf outside the declared supports.
    """

    def __init__(self, units: Units, model: Flow) -> None:
        super().__init__(Compose([units, model.transform]), model.base, context=model.context)
        self.objective = model.objective
        # In a tuple, so that the weights shared with `transform` are registered (and saved) once.
        self._model = (model,)

    @property
    def model(self) -> Flow:
        """The density of the standardised columns."""
        return self._model[0]

    def train(self, mode: bool = True) -> TableFlow:
        """Set the mode of all parts, and of the model itself, whose parts alone are registered here."""
        self._model[0].train(mode)
        super().train(mode)
        return self

    @property
    def units(self) -> Units:
        """The map from the user's columns to standardised ones."""
        return cast(Units, cast(Compose, self.transform).steps[0])

    @property
    def device(self) -> torch.device:
        """Where the flow computes."""
        return self.units.follower.device

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Exact log-density in the user's units; NaN for a row with NaN, -inf outside the supports."""
        self.check(x, context)
        z, log_det, inside = self._inside(x)
        return self._judged(x, inside, self.model.log_prob(z, context) + log_det)

    def to_uniform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Rosenblatt transform of rows in the user's units.

        A coordinate outside its support gets exactly 0 or 1. The others of that row get NaN: there is no
        distribution given an impossible value.
        """
        self.check(x, context)
        z, _, inside = self._inside(x)
        u = self.model.to_uniform(z, context)
        return torch.where(inside.unsqueeze(-1), u, self._end(x))

    def log_prob_and_uniform(self, x: Tensor, context: Tensor | None = None) -> RowScores:
        """`log_prob` and `to_uniform` by one pass of the transform, all in the flow's own dtype.

        Raises `OptionError` when the base has no coordinate-wise CDF.

        >>> table = Table.from_any({"mass": [60.0, 75.0, 92.0]})
        >>> gaussian = assemble("gaussian", table).double()
        >>> far = gaussian.log_prob_and_uniform(torch.tensor([[75.0 + 20 * 13.0]], dtype=torch.float64))
        >>> far.uniform.item() == 1, 0 < far.complement.item() < 1e-80
        (True, True)
        """
        self.check(x, context)
        base = self._factorised_base()
        z, log_det, inside = self._inside(x)
        noise, model_log_det = self.model.transform(z, context)
        log_prob = self._judged(x, inside, base.log_prob(noise) + model_log_det + log_det)
        u = base.cdf(noise).to(x.dtype)
        complement = base.cdf(-noise).to(x.dtype) if isinstance(base, SYMMETRIC) else 1 - u
        end, rows = self._end(x), inside.unsqueeze(-1)
        return RowScores(log_prob, torch.where(rows, u, end), torch.where(rows, complement, 1 - end))

    def by_rows(self, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """`function`, made of this flow, at any number of rows: a part at a time, without gradients, to the CPU."""
        with torch.no_grad():
            parts = values.split(rows_at_once(self.features))
            return torch.cat([function(part.to(self.device)).cpu() for part in parts])

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Let the model behind the units start from the rows as it sees them."""
        with torch.no_grad():
            self.model.initialise(*self._behind_units(Batch(x, context, weight)))

    def refresh(self, batches: Iterable[Batch]) -> None:
        """Let the model behind the units recompute its statistics from the rows as it sees them."""
        self.model.refresh(map(self._behind_units, batches))

    def _behind_units(self, batch: Batch) -> Batch:
        """The rows inside every support, standardised."""
        z, _, inside = self._inside(batch.x)
        return Batch._make(None if part is None else part[inside] for part in (z, batch.context, batch.weight))

    def _inside(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Standardised rows (0 where there is no number), log-determinants, and which rows are inside."""
        finite = torch.isfinite(x)
        z, log_det = self.units(torch.where(finite, x, self._middle(x)))
        usable = torch.isfinite(z)
        inside = (finite & usable).all(dim=-1)
        return torch.where(usable, z, 0.0), torch.where(inside, log_det, 0.0), inside

    def _judged(self, x: Tensor, inside: Tensor, log_prob: Tensor) -> Tensor:
        log_prob = torch.where(inside, log_prob, -torch.inf)
        return torch.where(torch.isnan(x).any(dim=-1), torch.nan, log_prob)

    def _end(self, x: Tensor) -> Tensor:
        """The Rosenblatt transform of a row that is not inside the supports."""
        value = self.units(x).value
        return torch.where(torch.isinf(value), (value > 0).to(x.dtype), torch.nan)

    def _middle(self, x: Tensor) -> Tensor:
        """A point inside every support, to compute with where a row holds none."""
        zero = torch.zeros(self.features, dtype=torch.float64, device=x.device)
        return self.units.inverse(zero).value.to(x.dtype)


def rows_at_once(features: int) -> int:
    """How many rows to compute together."""
    return max(256, NUMBERS_AT_ONCE // features)


class TableRuntime(LocalRuntime):
    """Hands rows on in float64: `Units` casts them after standardising, where no digits are lost."""

    def to(self, batch: Batch, dtype: torch.dtype) -> Batch:
        """Move `batch` to the device; only weights take the dtype of the model."""
        x, context, weight = batch
        return Batch(
            x.to(self.device, torch.float64, non_blocking=True),
            None if context is None else context.to(self.device, dtype, non_blocking=True),
            None if weight is None else weight.to(self.device, dtype, non_blocking=True),
        )


def assemble(
    name: str,
    table: Table,
    *,
    context: int = 0,
    options: Mapping[str, Any] | None = None,
    supports: Mapping[str, Support] | None = None,
    seed: int | None = None,
) -> TableFlow:
    """Build model `name` for the columns of `table` (training rows), as a density in their units.

    With `context` the density is conditional on so many numbers, which reach the model as they come. Columns of a model
    with supports of its own (`Flow.supports`) are carried onto these from the declared supports, by default these
    themselves, and not standardised. Raises `OptionError` for an unknown model or option or one without an exact
    log-density, `DataError` for a column that is constant or leaves its support.

    >>> table = Table.from_any({"height": [1.6, 1.7, 1.9], "mass": [60.0, 75.0, 92.0]})
    >>> assemble("nits", table, options={"hidden": 8}, seed=0).log_prob(table.values).shape
    torch.Size([3])
    """
    features = table.features
    model = _exact_model(name, features, options, seed, context)
    bounds, scales = _bounds(table, supports or {}, model.supports)
    plain = Units(bounds, scales, torch.zeros(features), torch.ones(features), model.supports)
    if model.supports is not None:
        return TableFlow(plain, model)
    with torch.no_grad():
        mapped = Table(plain.map(table.values.double()).value, table.columns, table.weight)
        location, scale = mapped.location_scale()
    return TableFlow(Units(bounds, scales, location, scale), model)


def config_of(
    name: str,
    flow: TableFlow,
    table: Table,
    config: FitConfig,
    *,
    options: Mapping[str, Any] | None = None,
    dequantise: Mapping[str, float] | None = None,
    data: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a fit in JSON values: what `restore` builds from, and where the model came from.

    `data` says what the rows were (source, digest, number), `provenance` is free for the caller (a command line).
    """
    steps = flow.units.map.steps
    support_map = steps[0] if isinstance(steps[0], SupportMap) else None
    return {
        "model": name,
        "options": dict(options or {}),
        "columns": list(table.columns),
        "supports": None if support_map is None else [_ends(support) for support in support_map.supports],
        "support_scales": None if support_map is None else list(support_map.scales),
        "dequantise": {column: float(step) for column, step in (dequantise or {}).items()},
        "dtype": config.dtype,
        "fit": config.to_dict(),
        "data": dict(data or {}),
        "versions": {"rosenblatt": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "provenance": dict(provenance or {}),
    }


def restore(run: RunFolder) -> tuple[TableFlow, dict[str, Any]]:
    """Load the best weights of a run; returns the flow, in eval mode, and the config.

    The model comes from the closed registry by name, its sizes are held against the weights file before any memory
    is taken, and tensors are loaded strictly. Raises `CheckpointError` for whatever is wrong with the folder.
    """
    config = run.config
    if (kind := config.get("kind")) is not None:
        raise CheckpointError(
            f"{run.path}: holds a model of another kind ({kind}), which this is not for; use what is for its kind."
        )
    if config.get("given") is not None:
        raise CheckpointError(
            f"{run.path}: holds a density of targets given other columns, which is not for this; load it by "
            "ConditionalFlow.load, or use rosenblatt score, sample --given and quantiles."
        )
    flow = load_weights(run, lambda: blank_flow(run))
    check_scales(run, flow.units)
    return flow, config


def load_weights(run: RunFolder, build_blank: Callable[[], Model]) -> Model:
    """Build a model and load the best weights of `run` into it; returns it in eval mode.

    Its sizes are held against the weights file before any memory is taken. Raises `CheckpointError` for whatever is
    wrong with the folder, also where `build_blank` fails.
    """
    tensors = run.load("best").model
    stored = sum(tensor.numel() for tensor in tensors.values())
    try:
        with AllocationLimit(2 * stored + SPARE_ELEMENTS, 20 * len(tensors) + SPARE_CALLS):
            model = build_blank()
    except RosenblattError as error:
        raise CheckpointError(str(error)) from None
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError, RecursionError) as error:
        raise refusal(run, f"the model cannot be built from it ({' '.join(str(error).split())[:200]})") from None
    run.load_model_into(model)
    return model.eval()


def check_scales(run: RunFolder, units: Units) -> None:
    """Raise `CheckpointError` where stored units are none, as a scale that is not positive."""
    standardise = units.map.steps[-1]
    try:
        Standardise(standardise.location, standardise.scale)  # type: ignore[arg-type]
    except OptionError as error:
        raise CheckpointError(f"{run.path}: {error}") from None


def _exact_model(
    name: str, features: int, options: Mapping[str, Any] | None, seed: int | None, context: int = 0
) -> Flow:
    model = build(name, features, context, options=dict(options or {}), seed=seed)
    claim = model.eval().likelihood  # in use; in training it may be less
    if claim is Likelihood.NONE:
        raise OptionError(
            f"model: '{name}' has no density at all (none), which tables are fitted, held out and scored by; train "
            "it with rosenblatt.train.Fitter and draw with its sample, or choose an exact model."
        )
    if not isinstance(model, Flow) or claim is not Likelihood.EXACT:
        raise OptionError(f"model: '{name}' has no exact log-density ({claim.value}); choose an exact model.")
    return model.train()


def _ends(support: Support) -> list[float | None]:
    return [end if math.isfinite(end) else None for end in (support.lower, support.upper)]


def _bounds(
    table: Table, supports: Mapping[str, Support], own: Sequence[Support] | None
) -> tuple[list[Bounds], list[float]]:
    """Support of each column, by default the model's; for half-lines the mean distance from the end as the scale."""
    bounds: list[Bounds] = []
    scales = []
    mean = table.values.double().mean(dim=0)
    for index, column in enumerate(table.columns):
        declared = supports.get(column, Support() if own is None else own[index])
        if own is not None:
            _require_inside(table, index, declared)
        lower, upper = _ends(declared)
        bounds.append((lower, upper))
        end = lower if lower is not None else upper
        distance = 0.0 if end is None else abs(float(mean[index]) - end)
        scales.append(distance if distance > 0 else 1.0)
    return bounds, scales


def _require_inside(table: Table, index: int, support: Support) -> None:
    """Refuse rows that a model on a box cannot have, and supports it cannot carry onto its own."""
    column, values = table.columns[index], table.values[:, index].double()
    if not support.bounded:
        raise OptionError(
            f"support: column '{column}' came with an open end, this model expects both; give two numbers."
        )
    outside = int(((values < support.lower) | (values > support.upper)).sum())
    if outside:
        raise DataError(
            f"column '{column}': {outside} rows lie outside [{support.lower:g}, {support.upper:g}], where this model "
            "lives; declare its units, as support={'" + column + "': [-180, 180]} for an angle in degrees."
        )


def blank_flow(run: RunFolder, context: int = 0) -> TableFlow:
    """Build the flow of a run's config before its weights are loaded; for `load_weights`, which limits its size."""
    config = run.config
    features = len(checked(run, config, "columns", list))
    if not 1 <= features <= MOST_FEATURES or not all(isinstance(c, str) for c in config["columns"]):
        raise refusal(run, f"{features} columns came, 1 to {MOST_FEATURES} names were expected")
    bounds: list[Bounds] = [(None, None)] * features
    scales = [1.0] * features
    if config.get("supports") is not None:
        pairs = checked(run, config, "supports", list)
        scales = [float(scale) for scale in checked(run, config, "support_scales", list)]
        bounds = [(lower, upper) for lower, upper in pairs]
        if len(bounds) != features:
            raise refusal(run, f"{len(bounds)} supports came for {features} columns")
    dtype = {"float32": torch.float32, "float64": torch.float64}.get(config.get("dtype", ""))
    if dtype is None:
        raise refusal(run, f"dtype {config.get('dtype')!r} came, float32 or float64 was expected")
    name, options = checked(run, config, "model", str), checked(run, config, "options", dict)
    model = _exact_model(name, features, options, seed=0, context=context)
    units = Units(bounds, scales, torch.zeros(features), torch.ones(features), model.supports)
    return TableFlow(units, model).to(dtype)


def checked(run: RunFolder, config: Mapping[str, Any], key: str, kind: type) -> Any:
    """Value `key` of a stored config, which must be there and of type `kind`; `CheckpointError` otherwise."""
    if not isinstance(config.get(key), kind):
        raise refusal(run, f"'{key}' is missing or not of type {kind.__name__}")
    return config[key]


def refusal(run: RunFolder, what: str) -> CheckpointError:
    """What is wrong with the config of a run, as an error that says how to cure it."""
    return CheckpointError(f"{run.path / 'config.json'}: {what}; restore the file or fit again.")
