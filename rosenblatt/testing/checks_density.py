"""Checks of a whole model: mass, sampler, contexts, torch tools. Each takes a row of the table MODELS."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from scipy import stats
from torch import Tensor, nn

from rosenblatt.core.density import FactorisedDensity, Flow
from rosenblatt.core.errors import DataError
from rosenblatt.eval.calibration import dkw_band, uniformity
from rosenblatt.eval.mass import KernelProposal, grid_mass, importance_mass
from rosenblatt.testing.checks_transform import context_for, inside
from rosenblatt.testing.measures import all_true, at_most
from rosenblatt.testing.tables import ModelRow, rows_like_data

FALSE_ALARM = 1e-6
SAMPLES = 20_000
FAR_ROWS = 500


def check_mass_on_grid(row: ModelRow) -> None:
    """R5: a model of one or two columns integrates to one, within 2e-3, on a grid."""
    for features, most in ((1, 4096), (2, 512)):
        flow = row.make(features).double()
        context = context_for(flow, 1)
        given = None if context is None else context[0]
        near = flow.sample(2000, given, generator=torch.Generator().manual_seed(15)).detach()
        box: dict[str, Tensor] = {}
        if flow.supports is not None:
            ends = torch.tensor([[own.lower, own.upper] for own in flow.supports], dtype=torch.float64)
            box = {"lower": ends[:, 0], "upper": ends[:, 1]}
        elif row.lower is not None and row.upper is not None:
            ends = torch.ones(features, dtype=torch.float64)
            box = {"lower": row.lower * ends, "upper": row.upper * ends}
        cells, mass = 32, 0.0
        while abs(mass - 1) > 2e-3 and cells < most:
            cells *= 2
            mass = grid_mass(flow, near=near, cells=cells, context=given, **box)
        at_most(torch.tensor(mass - 1), 2e-3, f"R5 mass in {features} columns on {cells} cells")


def check_mass_by_importance(row: ModelRow) -> None:
    """R5: the importance-sampled integral is one within 4 standard errors, and these are below 1 %."""
    flow = row.make(row.features).double()
    context = context_for(flow, 1)
    given = None if context is None else context[0]
    generator = torch.Generator().manual_seed(16)
    proposal = KernelProposal(flow.sample(1024, given, generator=generator).detach(), centres=1024)
    mass = importance_mass(flow, proposal, rows=20_000, context=given, generator=generator)
    at_most(torch.tensor(mass.standard_error), 0.01, "R5 standard error")
    at_most(torch.tensor(mass.value - 1), 4 * mass.standard_error + 1e-6, "R5 mass")


def check_sampler(row: ModelRow) -> None:
    """R16: 20,000 own samples are uniform under the own Rosenblatt transform, within the DKW band."""
    flow = row.make(row.features).double()
    context = context_for(flow, 1)
    given = None if context is None else context[0]
    x, log_prob = flow.sample_and_log_prob(SAMPLES, given, generator=torch.Generator().manual_seed(17))
    spread = None if given is None else given.expand(SAMPLES, -1)
    x, log_prob = x.detach(), log_prob.detach()
    at_most(flow.log_prob(x, spread) - log_prob, 1e-7 * (1 + log_prob.abs()), "R16 log-density of own samples")
    if not row.factorised:
        return  # the cells of the plane have to do
    u = flow.to_uniform(x, spread).detach()
    band = dkw_band(SAMPLES, false_alarm=FALSE_ALARM / row.features)
    at_most(uniformity(u).statistic, band, "R16 distance of own samples")
    u, spread = u[:500].clamp(1e-9, 1 - 1e-9), None if spread is None else spread[:500]
    at_most(flow.to_uniform(flow.from_uniform(u, spread), spread) - u, 1e-9, "R16 from_uniform")


def check_sampler_against_density(row: ModelRow) -> None:
    """R16: the number of samples in each cell of the plane is what the density there integrates to (chi-square)."""
    flow = row.make(2).double()
    context = context_for(flow, 1)
    given = None if context is None else context[0]
    generator = torch.Generator().manual_seed(18)
    near = flow.sample(2000, given, generator=generator).detach()
    x = flow.sample(SAMPLES, given, generator=generator).detach()
    cuts = near.quantile(torch.linspace(0.05, 0.95, 7, dtype=torch.float64), dim=0)
    expected = []
    for i in range(6):
        for j in range(6):
            lower, upper = torch.stack([cuts[i, 0], cuts[j, 1]]), torch.stack([cuts[i + 1, 0], cuts[j + 1, 1]])
            expected.append(grid_mass(flow, lower=lower, upper=upper, cells=24, context=given))
    cell = torch.stack([torch.bucketize(x[:, k].contiguous(), cuts[:, k].contiguous()) for k in (0, 1)])
    within = ((cell >= 1) & (cell <= 6)).all(dim=0)
    counts = torch.bincount((cell[0, within] - 1) * 6 + cell[1, within] - 1, minlength=36).double()
    mass = torch.tensor(expected, dtype=torch.float64) * SAMPLES
    mass = torch.cat([mass, (SAMPLES - mass.sum()).clamp(min=0.0).unsqueeze(0)])
    counts = torch.cat([counts, (SAMPLES - counts.sum()).unsqueeze(0)])
    large = mass >= 5
    statistic = float(((counts - mass).square() / mass)[large].sum())
    limit = float(stats.chi2.isf(FALSE_ALARM, int(large.sum())))
    at_most(torch.tensor(statistic), limit, "R16 chi-square of samples against the density")


def check_contexts(row: ModelRow) -> None:
    """R12: contexts of shape (), (1,), (3,), (2, 3) give what a loop gives, in scoring, sampling and `given`."""
    flow = row.make(row.features).double()
    if not flow.context:
        return
    generator = torch.Generator().manual_seed(19)
    for batch in ((), (1,), (3,), (2, 3)):
        context = torch.randn(*batch, flow.context, generator=generator, dtype=torch.float64)
        x = flow.sample(4, context, generator=generator).detach()
        if x.shape != (4, *batch, row.features):
            raise AssertionError(f"R12 samples of shape {tuple(x.shape)} for contexts {batch}.")
        whole = flow.given(context).log_prob(x)
        flat_x = x.reshape(4, -1, row.features)
        flat = context.reshape(-1, flow.context)
        loop = torch.stack([flow.log_prob(r, c) for rows in flat_x for r, c in zip(rows, flat, strict=True)])
        at_most(whole.reshape(-1) - loop, 1e-12 * (1 + loop.abs()), f"R12 contexts {batch}")


def check_generator(row: ModelRow) -> None:
    """Sampling follows its generator, repeats with the same seed, and leaves the global random state alone."""
    flow = row.make(row.features)
    context = context_for(flow, 3)
    given = None if context is None else context.float()
    state = torch.get_rng_state()
    first, second, other = (flow.sample(5, given, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    flow.sample(5, given)
    all_true(torch.get_rng_state() == state, "global random state unchanged")
    all_true(first == second, "same seed, same samples")
    all_true((first != other).flatten(1).any(dim=1), "another seed, other samples")
    all_true(flow.log_prob(first, None if given is None else given.expand(5, -1, -1)) > -1e3, "samples are likely")


def check_determinism(row: ModelRow) -> None:
    """R22: the same rows score bit-identically twice, and in a copy that went through its state_dict."""
    flow = row.make(row.features)
    x, context = inside(flow, 32, row.features, torch.float32)
    once, again = flow.log_prob(x, context), flow.log_prob(x, context)
    all_true(once == again, "R22 the same twice")
    other = row.make(row.features)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(flow.state_dict(), strict=True)
    all_true(other.log_prob(x, context) == once, "R22 the same after state_dict")


def check_dtype(row: ModelRow) -> None:
    """R15: dtype out is dtype in, half is refused with `DataError`, and no tensor stays behind on the meta device."""
    flow = row.make(row.features)
    for dtype in (torch.float64, torch.float32):
        x, context = inside(flow, 8, row.features, dtype)
        sample = flow.sample(2, context)
        if flow.log_prob(x, context).dtype != dtype or sample.dtype != dtype:
            raise AssertionError(f"R15: {dtype} in, {flow.log_prob(x, context).dtype} and {sample.dtype} out.")
    try:
        flow.log_prob(x.half(), context)
    except DataError:
        pass
    else:
        raise AssertionError("R15: half precision rows were accepted, DataError expected.")
    meta = copy.deepcopy(flow).to("meta")
    log_prob = meta.log_prob(x.to("meta"), None if context is None else context.to("meta"))
    if log_prob.shape != (len(x),):
        raise AssertionError(f"R15: shape {tuple(log_prob.shape)} on the meta device.")


def check_wrong_shapes(row: ModelRow) -> None:
    """Rows or contexts of another width are refused with `DataError`, never broadcast."""
    flow = row.make(row.features)
    x, context = inside(flow, 4, row.features, torch.float32)
    wider = torch.cat([x, x], dim=-1)
    extra = torch.zeros(4, flow.context + 1)
    for rows, given in ((wider, context), (x[..., :-1], context), (x, extra)):
        try:
            flow.log_prob(rows, given)
        except DataError:
            continue
        raise AssertionError(f"x {tuple(rows.shape)} with {flow.context} contexts was accepted.")


def check_likelihood(row: ModelRow) -> None:
    """A flow says what its log-density is, and its base has independent coordinates or refuses to have a CDF."""
    flow = row.make(row.features)
    if flow.likelihood is not row.likelihood:
        raise AssertionError(f"likelihood: {flow.likelihood} declared, {row.likelihood} expected.")
    if isinstance(flow.base, FactorisedDensity) is not row.factorised:
        raise AssertionError(f"base: {type(flow.base).__name__} has {'no' if row.factorised else 'a'} CDF.")


def check_functional(row: ModelRow) -> None:
    """R14: `vmap(grad)` of log_prob equals the gradients of a batch."""
    flow = row.make(row.features)
    x, context = inside(flow, 6, row.features)

    def one(x: Tensor, context: Tensor | None) -> Tensor:
        return flow.log_prob(x, context)

    in_dims = (0, None if context is None else 0)
    each = torch.func.vmap(torch.func.grad(one), in_dims=in_dims)(x, context)
    x.requires_grad_()
    (batch,) = torch.autograd.grad(flow.log_prob(x, context).sum(), x)
    at_most(each - batch, 1e-9 * (1 + batch.abs()), "R14 vmap(grad)")


def check_export(row: ModelRow) -> None:
    """R14: `torch.export` of log_prob takes any number of rows and gives the same numbers, to 1e-5."""
    flow = row.make(row.features)
    x, context = inside(flow, 9, row.features, torch.float32)
    arguments = (x,) if context is None else (x, context)
    rows = torch.export.Dim("rows", min=2, max=4096)
    shapes: tuple[dict[int, object], ...] = tuple({0: rows} for _ in arguments)
    program: nn.Module = torch.export.export(flow, arguments, dynamic_shapes=shapes).module()
    few = tuple(part[:5] for part in arguments)
    expected = flow(*few)
    at_most(program(*few) - expected, 1e-5 * (1 + expected.abs()), "R14 exported log_prob")


def check_compile(row: ModelRow) -> None:
    """R14: `torch.compile(fullgraph=True)` of log_prob traces without a graph break, to 1e-5."""
    flow = row.make(row.features)
    x, context = inside(flow, 9, row.features, torch.float32)
    torch.compiler.reset()
    # The tracer decides about graph breaks; the backend that generates code is not ours to test.
    compiled: Flow = torch.compile(flow, fullgraph=True, backend="aot_eager")  # type: ignore[assignment]
    expected = flow(x, context)
    found = compiled(x, context)
    if found.requires_grad:
        found.sum().backward()
    at_most(found - expected, 1e-5 * (1 + expected.abs()), "R14 compiled log_prob")


def check_float32_far(row: ModelRow) -> None:
    """R8: the float32 log-densities of rows out to 1e4 are those of float64, where the model claims so."""
    if not row.far:
        return
    flow = row.make(row.features)
    x = rows_like_data(FAR_ROWS, row.features, seed=8)
    x = torch.cat([radius * x / x.abs().amax(dim=-1, keepdim=True) for radius in (10.0, 100.0, 1e3, 1e4)]).float()
    context = rows_like_data(len(x), row.context, seed=9).float() if row.context else None
    with torch.no_grad():
        narrow = flow.log_prob(x, context).double()
        wide = flow.double().log_prob(x.double(), None if context is None else context.double())
    at_most(narrow - wide, 1e-4 + 1e-5 * wide.abs(), "R8 float32 log-density far out")


ModelCheck = Callable[[ModelRow], None]

MODEL_CHECKS: tuple[ModelCheck, ...] = (
    check_mass_on_grid,
    check_mass_by_importance,
    check_sampler,
    check_sampler_against_density,
    check_contexts,
    check_generator,
    check_determinism,
    check_dtype,
    check_wrong_shapes,
    check_likelihood,
    check_float32_far,
    check_functional,
)

TRACING_CHECKS: tuple[ModelCheck, ...] = (check_export, check_compile)
