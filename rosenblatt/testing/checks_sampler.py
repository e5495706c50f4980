"""Checks of a sampler that has no exact density. Each takes a row of the table SAMPLERS and raises `AssertionError`."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from scipy import stats
from torch import Tensor
from torch.autograd import gradcheck

from rosenblatt.core.density import Density
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Batch, Likelihood
from rosenblatt.objectives.likelihood import NLL
from rosenblatt.objectives.two_sample import BlockSampler
from rosenblatt.testing.measures import all_true, at_most
from rosenblatt.testing.sampler_table import SamplerRow
from rosenblatt.testing.tables import rows_like_data

FALSE_ALARM = 1e-6
SAMPLES = 4000
LOSSES = 16  # rows


def generator(seed: int = 0) -> torch.Generator:
    """A seeded stream."""
    return torch.Generator().manual_seed(seed)


def context_for(model: Density, rows: int) -> Tensor | None:
    """Context rows in the dtype of the model, or None."""
    dtype = next(model.parameters()).dtype
    return rows_like_data(rows, model.context, seed=13).to(dtype) if model.context else None


def losses(model: Density, x: Tensor, context: Tensor | None, seed: int = 3) -> Tensor:
    """Losses (rows,) of the model's own objective with always the same draws."""
    return (model.objective or NLL())(model, Batch(x, context), generator(seed))


def check_likelihood(row: SamplerRow) -> None:
    """It says what its log-density is; one that has none refuses every call for one with `OptionError`."""
    model = row.make(row.features)
    if model.likelihood is not row.likelihood:
        raise AssertionError(f"likelihood: {model.likelihood} declared, {row.likelihood} expected.")
    if row.likelihood is not Likelihood.NONE:
        return
    x, context = rows_like_data(4, row.features).float(), context_for(model, 4)
    calls: tuple[Callable[[], object], ...] = (
        lambda: model.log_prob(x, context),
        lambda: model(x, context),
        lambda: model.sample_and_log_prob(2, context),
        lambda: model.given(context).log_prob(x),
    )
    for number, call in enumerate(calls):
        try:
            call()
        except OptionError as error:
            if "no density" in str(error):
                continue
        raise AssertionError(f"a model without a density answered call {number} for one.")


def check_shapes(row: SamplerRow) -> None:
    """R12: samples (n, *batch, features) for one and four features and contexts (), (1,), (3,), (2, 3)."""
    for features in (1, 4):
        model = row.make(features)
        for n in (0, 1, 5):
            for batch in ((), (1,), (3,), (2, 3)) if row.context else ((),):
                context = torch.zeros(*batch, row.context) if row.context else None
                shape = tuple(model.sample(n, context, generator=generator()).shape)
                if shape != (n, *batch, features):
                    raise AssertionError(f"R12 samples of shape {shape} for n = {n}, contexts {batch}.")


def check_contexts(row: SamplerRow) -> None:
    """R12: contexts of shape (2, 3) give the samples of the same six contexts in one row, and `given` the same."""
    model = row.make(row.features).double()
    context = context_for(model, 6)
    if context is None:
        return
    whole = model.sample(4, context.reshape(2, 3, -1), generator=generator())
    flat = model.sample(4, context, generator=generator())
    at_most(whole.reshape(flat.shape) - flat, 1e-12 * (1 + flat.abs()), "R12 contexts (2, 3)")
    viewed = model.given(context, generator=generator()).sample((4,))
    all_true(viewed == flat, "R12 samples of the view at a context")


def check_generator(row: SamplerRow) -> None:
    """Sampling follows its generator, repeats with the same seed, and leaves the global random state alone."""
    model = row.make(row.features)
    context = context_for(model, 3)
    state = torch.get_rng_state()
    first, second, other = (model.sample(5, context, generator=generator(seed)) for seed in (1, 1, 2))
    model.sample(5, context)
    losses(model.train(), rows_like_data(3, row.features).float(), context)
    all_true(torch.get_rng_state() == state, "global random state unchanged")
    all_true(first == second, "same seed, same samples")
    all_true((first != other).flatten(1).any(dim=1), "another seed, other samples")
    all_true(torch.isfinite(first), "finite samples")


def check_determinism(row: SamplerRow) -> None:
    """R22: a copy that went through its state_dict draws the same samples and has the same losses."""
    model, other = row.make(row.features), row.make(row.features)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(model.state_dict(), strict=True)
    x, context = rows_like_data(LOSSES, row.features).float(), context_for(model, LOSSES)
    all_true(
        model.sample(5, context, generator=generator()) == other.sample(5, context, generator=generator()),
        "R22 the same samples after state_dict",
    )
    all_true(losses(model, x, context) == losses(other, x, context), "R22 the same losses after state_dict")


def check_dtype(row: SamplerRow) -> None:
    """R15: samples and losses have the dtype of the weights."""
    for dtype in (torch.float64, torch.float32):
        model = row.make(row.features).to(dtype)
        context = context_for(model, LOSSES)
        found = {model.sample(2, context, generator=generator()).dtype}
        found.add(losses(model, rows_like_data(LOSSES, row.features).to(dtype), context).dtype)
        if found != {dtype}:
            raise AssertionError(f"R15: weights of {dtype}, {found} out.")


def check_wrong_shapes(row: SamplerRow) -> None:
    """Contexts of another width, or none where one is needed, are refused with `DataError`, never broadcast."""
    model = row.make(row.features)
    for context in (torch.zeros(4, row.context + 1), None if row.context else torch.zeros(4, 1)):
        try:
            model.sample(2, context, generator=generator())
        except DataError:
            continue
        raise AssertionError(f"samples were drawn with {'no context' if context is None else tuple(context.shape)}.")


def check_row_independence(row: SamplerRow) -> None:
    """R13: a context that is no number leaves the samples of the others bit-identical, a bad row the other losses."""
    model = row.make(row.features)
    context = context_for(model, 7)
    others = torch.arange(7) != 2
    if context is not None:
        spoiled = context.clone()
        spoiled[2, 0] = torch.nan
        clean, poisoned = (model.sample(3, given, generator=generator()) for given in (context, spoiled))
        all_true(poisoned[:, others] == clean[:, others], "R13 samples beside a context of NaN")
    x = rows_like_data(7, row.features).float()
    clean = losses(model, x, context)
    for value in (torch.nan, torch.inf):
        bad = x.clone()
        bad[2, 0] = value
        found = losses(model, bad, context)
        all_true(found[others] == clean[others], f"R13 losses beside a row with {value}")
        if bool(torch.isfinite(found[2])):
            raise AssertionError(f"R13 a row with {value}: loss {float(found[2])}, no finite number expected.")


def check_gradients(row: SamplerRow) -> None:
    """R9: gradients of the losses in the rows and in a weight are those of differences.

    Not of bounds: they may leave out a part of the gradient that has mean zero.
    """
    if row.likelihood is not Likelihood.NONE:
        return
    model = row.make(row.features).double()
    x, context = rows_like_data(3, row.features).requires_grad_(), context_for(model, 3)
    weight = next(p for p in model.parameters() if p.requires_grad)
    gradcheck(lambda x, _: losses(model, x, context), (x, weight), eps=1e-6, atol=1e-5, fast_mode=True)


def check_finite_gradients(row: SamplerRow) -> None:
    """R10: losses of any finite row, far ones too, have no NaN or infinite gradient in float32."""
    model = row.make(3).float().train()
    values = torch.tensor([0.0, 3.0, -5.0, 20.0, -1e3, 1e4])
    x = torch.cat([torch.cartesian_prod(values, values, values), rows_like_data(64, 3).float()]).requires_grad_()
    loss = losses(model, x, context_for(model, len(x)))
    all_true(torch.isfinite(loss), "R10 finite losses")
    loss.sum().backward()
    assert x.grad is not None
    all_true(torch.isfinite(x.grad), "R10 finite gradient in x")
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            all_true(torch.isfinite(parameter.grad), f"R10 finite gradient in {name}")


def check_causality(row: SamplerRow) -> None:
    """R11: the draws of a block move with its noise and the blocks before it, exactly not with those to come."""
    if not row.blocks:
        return
    model = row.make(5).double()
    sampler = cast(BlockSampler, model)
    context = context_for(model, 4)
    x = rows_like_data(4, 5).requires_grad_()
    noise = rows_like_data(8, 5, seed=6).reshape(2, 4, 5).requires_grad_()
    weight = rows_like_data(8, 5, seed=7).reshape(2, 4, 5)
    start = 0
    for size in sampler.sizes:
        total = (weight * sampler.forced(noise, x, context))[..., start : start + size].sum()
        grad_x, grad_noise = torch.autograd.grad(total, (x, noise), allow_unused=True)
        if grad_x is not None:
            all_true(grad_x[..., start:] == 0, "R11 a block does not see itself or later ones")
        others = torch.cat([grad_noise[..., :start], grad_noise[..., start + size :]], dim=-1)
        all_true(others == 0, "R11 a block does not see the noise of others")
        start += size


def check_forced_draws(row: SamplerRow) -> None:
    """R16: forced to follow its own samples, a sampler by blocks draws just these."""
    if not row.blocks:
        return
    model = row.make(5).double()
    sampler = cast(BlockSampler, model)
    context = context_for(model, 6)
    x = model.sample(1, context, generator=generator(1))
    noise = torch.randn(x.numel() // 5, 5, generator=generator(1), dtype=torch.float64).reshape(x.shape)
    rows = sampler.standardised(x)
    at_most(sampler.forced(noise, rows, context) - rows, 1e-9 * (1 + rows.abs()), "R16 forced draws")


def check_sampler(row: SamplerRow) -> None:
    """R16: many draws at once and in small calls follow one law, column by column (two-sample KS at 1e-6)."""
    model = row.make(row.features)
    context = context_for(model, 1)
    given = None if context is None else context[0]
    with torch.no_grad():
        whole = model.sample(SAMPLES, given, generator=generator(1))
        calls = [model.sample(100, given, generator=generator(100 + k)) for k in range(SAMPLES // 100)]
    parts = torch.cat(calls)
    for column in range(row.features):
        found = stats.ks_2samp(whole[:, column].numpy(), parts[:, column].numpy())
        if found.pvalue < FALSE_ALARM / row.features:
            raise AssertionError(f"R16 column {column}: two ways of drawing differ, p = {found.pvalue:.1e}.")
    all_true(whole.std(dim=0) > 1e-3, "R16 draws that vary")


SamplerCheck = Callable[[SamplerRow], None]

SAMPLER_CHECKS: tuple[SamplerCheck, ...] = (
    check_likelihood,
    check_shapes,
    check_contexts,
    check_generator,
    check_determinism,
    check_dtype,
    check_wrong_shapes,
    check_row_independence,
    check_gradients,
    check_finite_gradients,
    check_causality,
    check_forced_draws,
    check_sampler,
)
