"""Checks of models of whole numbers: all their images are counted. Each takes a row of the table DISCRETE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

import rosenblatt.models  # noqa: F401 - enters every model in the registry
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.types import Likelihood
from rosenblatt.eval.bits import bits_per_dim
from rosenblatt.layers.discretised import Discretised
from rosenblatt.testing.measures import all_true, at_most, forbidden_influence
from rosenblatt.testing.tables import disturbed, rows_like_data

FALSE_ALARM = 1e-6
SAMPLES = 20_000


@dataclass(frozen=True)
class DiscreteRow:
    """One model of small images of few levels, disturbed, with all of its images countable."""

    name: str
    model: str
    image: tuple[int, int, int]
    levels: int
    options: dict[str, object]
    context: int = 0

    @property
    def features(self) -> int:
        """Numbers of an image."""
        return self.image[0] * self.image[1] * self.image[2]

    def make(self, levels: int | None = None) -> Discretised:
        """The model, perhaps of another number of levels."""
        options = {"image": list(self.image), "levels": levels or self.levels, "filters": 4, **self.options}
        model = build(self.model, self.features, self.context, options=options, seed=0)
        if not isinstance(model, Discretised):
            raise OptionError(f"model: '{self.model}' is no model of whole numbers; the discrete checks are for these.")
        return disturbed(model, 0.3)

    def images(self) -> Tensor:
        """Every image there is, in float64."""
        return torch.cartesian_prod(*[torch.arange(self.levels)] * self.features).reshape(-1, self.features).double()

    def given(self, rows: int) -> Tensor | None:
        """Contexts in float64, or None."""
        return rows_like_data(rows, self.context, seed=13) if self.context else None


DISCRETE: dict[str, DiscreteRow] = {
    row.name: row
    for row in (
        DiscreteRow("nits_conv", "nits_conv", (1, 2, 2), 5, {"widths": [6, 6, 1]}),
        DiscreteRow("nits_conv_mixture", "nits_conv", (2, 1, 2), 4, {"widths": [5, 1], "epsilon": 0.0, "stages": 2}),
        DiscreteRow("nits_conv_interval", "nits_conv", (3, 1, 1), 6, {"widths": [6, 6, 1], "interval": [-1.5, 1.5]}),
        DiscreteRow("nits_conv_context", "nits_conv", (1, 2, 2), 3, {"widths": [4, 4, 1], "heads": 2}, 2),
        DiscreteRow("pixelcnn_mol", "pixelcnn_mol", (1, 2, 3), 3, {"components": 3, "dropout": 0.5}),
        DiscreteRow("pixelcnn_mol_two", "pixelcnn_mol", (3, 2, 2), 2, {"components": 2, "stages": 2}),
        DiscreteRow("pixelcnn_mol_patches", "pixelcnn_mol", (1, 2, 4), 2, {"components": 2, "patch": 2}),
        DiscreteRow("pixelcnn_mol_context", "pixelcnn_mol", (3, 1, 1), 4, {"components": 3}, 2),
    )
}


def check_total_mass(row: DiscreteRow) -> None:
    """The probabilities of all images add up to one: to 1e-10 in float64, 1e-5 in float32."""
    images, context = row.images(), row.given(1)
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = row.make().to(dtype)
        with torch.no_grad():
            log_prob = model.log_prob(images.to(dtype), None if context is None else context.to(dtype))
        all_true(log_prob <= 1e-6, "no image has a probability above one")
        at_most(log_prob.double().exp().sum() - 1, limit, f"mass of {len(images)} images in {dtype}")


def check_level_masses(row: DiscreteRow) -> None:
    """256 levels of one number add up to one, to 1e-6, for tame and wild thetas; none is NaN, however far out."""
    for dtype, limit in ((torch.float64, 1e-9), (torch.float32, 1e-6)):
        model = row.make(256).to(dtype)
        size = model.elementwise.spec.size
        for noise in (0.1, 1.0, 10.0):
            theta = noise * torch.randn(64, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
            masses = model.log_masses(theta.to(dtype) + model.elementwise.start().to(dtype))
            all_true(~torch.isnan(masses), f"masses at thetas of size {noise}")
            # Steep nets lose digits in float32: what one layer rounds, the next multiplies by its weights.
            loss = 1.0 if dtype == torch.float64 else max(1.0, 10.0 * noise)
            at_most(masses.double().exp().sum(dim=-1) - 1, limit * loss, f"256 levels, thetas of size {noise}, {dtype}")


def check_float32(row: DiscreteRow) -> None:
    """R8: float32 log-probabilities are those of float64 to 1e-4 + 1e-5 |log p|."""
    model, images, context = row.make(), row.images(), row.given(1)
    with torch.no_grad():
        narrow = model.log_prob(images.float(), None if context is None else context.float()).double()
        wide = model.double().log_prob(images, context)
    at_most(narrow - wide, 1e-4 + 1e-5 * wide.abs(), "R8 float32 log-probability")


def check_sampler(row: DiscreteRow) -> None:
    """R16: the numbers of samples of each image are what its probability says (chi-square), and so is `log_prob`."""
    model, images, context = row.make().double(), row.images(), row.given(1)
    given = None if context is None else context[0]
    x, log_prob = model.sample_and_log_prob(SAMPLES, given, generator=torch.Generator().manual_seed(17))
    with torch.no_grad():
        again = model.log_prob(x, None if given is None else given.expand(SAMPLES, -1))
        mass = model.log_prob(images, context).exp() * SAMPLES
    at_most(again - log_prob, 1e-9 * (1 + log_prob.abs()), "R16 log-probability of own samples")
    weight = row.levels ** torch.arange(row.features - 1, -1, -1)
    counts = torch.bincount((x.long() * weight).sum(dim=-1), minlength=len(images)).double()
    large = mass >= 5
    expected = torch.cat([mass[large], (SAMPLES - mass[large].sum()).clamp(min=0).unsqueeze(0)])
    found = torch.cat([counts[large], (SAMPLES - counts[large].sum()).unsqueeze(0)])
    used = expected >= 5
    statistic = float(((found - expected).square() / expected)[used].sum())
    limit = float(stats.chi2.isf(FALSE_ALARM, max(int(used.sum()) - 1, 1)))
    at_most(torch.tensor(statistic), limit, "R16 chi-square of samples against probabilities")


def check_completion(row: DiscreteRow) -> None:
    """Known numbers stay, and log P(known) + log P(rest | known) is log P(all): known = all of them gives log P = 0."""
    model, context = row.make().double(), row.given(1)
    given = None if context is None else context.expand(50, -1)
    x = model.sample(50, None if context is None else context[0], generator=torch.Generator().manual_seed(3))
    order = model.layer.conditioner.order
    for known in (0, row.features // 2, row.features):
        spoiled = x.clone()
        spoiled[:, order[known:]] = torch.nan
        whole, log_prob = model.complete(spoiled, known, given, generator=torch.Generator().manual_seed(4))
        all_true(whole[:, order[:known]] == x[:, order[:known]], f"the {known} known numbers")
        later = model.log_prob(whole, given).detach()
        if known == 0:
            at_most(log_prob - later, 1e-9 * (1 + later.abs()), "completion of nothing")
        all_true(log_prob >= later - 1e-9, "a conditional probability is no less than the joint one")
        if known == row.features:
            all_true(log_prob == 0, "nothing was drawn")


def check_bad_rows(row: DiscreteRow) -> None:
    """R13: fractions, levels outside, infinities give -inf, NaN gives NaN; other rows stay, bit for bit."""
    model, context = row.make(), row.given(1)
    given = None if context is None else context.float()
    x = row.images()[:9].float()
    whole = model.log_prob(x, given)
    answers = ((0.5, -torch.inf), (-1.0, -torch.inf), (float(row.levels), -torch.inf), (torch.inf, -torch.inf))
    for value, answer in (*answers, (torch.nan, torch.nan)):
        spoiled = x.clone()
        spoiled[2, -1] = value
        log_prob = model.log_prob(spoiled, given)
        if not torch.allclose(log_prob[2], torch.tensor(answer), equal_nan=True):
            raise AssertionError(f"a row with {value}: {float(log_prob[2])}, {answer} expected.")
        others = torch.arange(9) != 2
        all_true(log_prob[others] == whole[others], f"rows beside one with {value}")
    all_true(model.log_prob(x.to(torch.uint8), given) == whole, "bytes")
    try:
        model.log_prob(x[:, :-1], given)
    except DataError:
        pass
    else:
        raise AssertionError("rows of another width were accepted, DataError expected.")


def check_shapes(row: DiscreteRow) -> None:
    """Batches (), (0,), (2, 3), and contexts with batches of their own."""
    model, images = row.make(), row.images().float()
    for batch in ((), (0,), (2, 3)):
        x = images[: torch.Size(batch).numel()].reshape(*batch, row.features)
        context = row.given(max(x.shape[:-1].numel(), 1))
        if context is not None:
            context = context[: x.shape[:-1].numel()].reshape(*batch, row.context).float()
        log_prob = model.log_prob(x, context)
        if log_prob.shape != batch:
            raise AssertionError(f"log_prob: shape {tuple(log_prob.shape)} for a batch {batch}.")
        drawn = model.sample(4, context)
        expected = (4, *(batch if context is not None else ()), row.features)
        if drawn.shape != expected or drawn.dtype != torch.float32:
            raise AssertionError(f"sample: {tuple(drawn.shape)} of {drawn.dtype}, {expected} expected.")


def check_generator(row: DiscreteRow) -> None:
    """Sampling follows its generator and leaves the global random state alone; samples are levels."""
    model, context = row.make(), row.given(3)
    given = None if context is None else context.float()
    state = torch.get_rng_state()
    first, second, other = (model.sample(9, given, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    all_true(torch.get_rng_state() == state, "global random state unchanged")
    all_true(first == second, "same seed, same samples")
    if bool((first == other).all()):
        raise AssertionError("another seed gave the same samples.")
    all_true((first >= 0) & (first < row.levels) & (first == first.floor()), "samples are levels")


def check_gradients(row: DiscreteRow) -> None:
    """R10: one optimiser step on the exact log-probability raises it; every gradient is finite."""
    model, images, context = row.make().train(), row.images().float(), row.given(1)
    given = None if context is None else context.float()
    x = images[:: max(1, len(images) // 16)]
    model.eval()
    before = model.log_prob(x, given).mean()
    before.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            all_true(torch.isfinite(parameter.grad), f"R10 finite gradient in {name}")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=1e-4 / max(1.0, float(parameter.grad.norm())))
        if not bool(model.log_prob(x, given).mean() > before):
            raise AssertionError("a step along the gradient did not raise the log-probability.")


def check_causality(row: DiscreteRow) -> None:
    """R11: the network is causal, exactly, in both modes."""
    model, context = row.make().double(), row.given(3)
    x = rows_like_data(3, row.features)
    for training in (False, True):
        with torch.random.fork_rng(devices=[]):
            leak = forbidden_influence(model.train(training).layer.conditioner, x, context)
        if leak != 0.0:
            raise AssertionError(f"R11 influence {leak:.3e} against the order, 0.0 expected.")


def check_bits(row: DiscreteRow) -> None:
    """Bits per dimension are the mean exact log-probability, and say that they are exact."""
    model, context = row.make(), row.given(1)
    x = row.images().float()[:20]
    given = None if context is None else context.float().expand(20, -1)
    found = bits_per_dim(model, x, given, rows=7)
    expected = -model.log_prob(x, given).double().mean().item() / row.features / 0.6931471805599453
    at_most(torch.tensor(found.value - expected), 1e-5, "bits per dimension")
    if model.likelihood is not Likelihood.EXACT or found.claim != "exact":
        raise AssertionError(f"claim: '{found.claim}' of {model.likelihood}, exact expected.")


DiscreteCheck = Callable[[DiscreteRow], None]

DISCRETE_CHECKS: tuple[DiscreteCheck, ...] = (
    check_total_mass,
    check_level_masses,
    check_float32,
    check_sampler,
    check_completion,
    check_bad_rows,
    check_shapes,
    check_generator,
    check_gradients,
    check_causality,
    check_bits,
)
