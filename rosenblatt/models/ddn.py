"""DDN, the deconvolutional density network: histograms that a network decodes from coarse to fine, in any order.

    p(x | c) = (1/K) sum_k prod_i h(x_i; theta(x_j before i in order k, c)),   h constant on each of 256 bins

An encoder makes a code of the context and of the columns known so far; a decoder of each column grows it by upsampling
and convolution into the logarithms of the bins, so that neighbouring bins share structure at several scales. The same
network serves every order of the columns, and the density is the mean over K of them: exact, and of mass one.

The box of bins is the range of the training rows with a margin. By default the logistic's tails lie beyond it, with
1e-3 of the mass at either end of a column, so that no row is impossible; `tails=False` is the published histogram,
whose density outside its box is 0 (`log_prob` is -inf there). A latent layer (`latent=True`) adds noise to the code in
training, at `beta` nats a nat of its divergence, and none in use.
With one order (`orders=1`, or one column) this is a flow with a Rosenblatt transform; a mean over orders has none.

Differences from the published code: training follows the exact likelihood of all orders, where the code takes the cross
entropy of all columns, known ones too, at one random set of known columns; the encoder is residual, without batch
normalisation. Costs grow as K D passes, so this is for few columns.
Reference: Chen, Islam, Gao & Wang, Deconvolutional Density Network: Modeling Free-Form Conditional Distributions,
AAAI 2022. Published sizes: 256 bins, 16 codes, channels 4, 32, 16, two hidden layers of 64 units, 2 to 5 orders.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rosenblatt.bases import StandardLogistic
from rosenblatt.conditioners.deconvolution import Deconvolution
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose
from rosenblatt.core.types import Likelihood
from rosenblatt.elementwise.histogram import Histogram
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.fitted_box import FittedBox
from rosenblatt.layers.orders import OrderAverage

BOUND = 7.0  # of the box inside; the standard logistic has 1e-3 of its mass beyond at either end


class _OneOrder(Flow):
    """A flow in one order, whose log-density need not go through the CDF."""

    def __init__(self, box: FittedBox, average: OrderAverage, layer: Conditional) -> None:
        super().__init__(Compose([box, layer]), StandardLogistic(layer.conditioner.features), context=average.context)
        self._average = (average,)  # in a tuple: its network is that of the transform, and registered there

    @property
    def likelihood(self) -> Likelihood:
        """Exact, but for the noise of a latent layer in training."""
        latent = bool(self._average[0].network.latent)
        return Likelihood.ESTIMATE if self.training and latent else Likelihood.EXACT

    def _log_prob_at_once(self, x: Tensor, context: Tensor | None) -> Tensor:
        box = self._all_steps()[0]
        y, log_det = box(x)
        log_prob: Tensor = self._average[0].train(self.training).log_prob(y, context) + log_det
        return log_prob


@register(
    "ddn",
    summary="histograms decoded from coarse to fine by upsampling and convolution, averaged over orders of the columns",
    citation=(
        "Chen, Islam, Gao & Wang, Deconvolutional Density Network: Modeling Free-Form Conditional Distributions, "
        "AAAI 2022."
    ),
    facts=Facts(
        formula=r"p(x \mid c) = \frac{1}{K} \sum_k \prod_i h(x_i;\, \theta(x_{<_k i}, c))",
        forward="up to K D passes (K orders)",
        inverse="D passes, and those of the density",
        determinant="0",
        universal="yes, by bins",
    ),
)
def ddn(
    features: int,
    context: int = 0,
    *,
    orders: int = 2,
    bins: int = 256,
    codes: int = 16,
    channels: list[int] | None = None,
    hidden: int = 64,
    blocks: int = 2,
    dropout: float = 0.0,
    latent: bool = False,
    beta: float = 0.025,
    tails: bool = True,
    margin: float = 0.05,
    box: list[float] | None = None,
    even: bool = False,
    seed: int = 0,
) -> Flow:
    """Build a DDN for `features` columns.

    orders: of the columns, averaged over; the first is that of the table, the others are drawn by `seed`, at most
        `features!` in all.
    bins, codes, channels: sizes of the decoder; the bins are a multiple of 4 to the power of the number of channels
        (default 4, 32, 16), and `channels=[]` makes plain softmax bins.
    hidden, blocks, dropout: of the encoder, a residual network.
    latent, beta: noise of the code in training, and what its divergence from a standard normal costs.
    tails, margin, box: what lies beyond the bins, and where they are: the range of the rows that `initialise` sees,
        widened by `margin` of its length at both ends, or `box=[lower, upper]` for every column.
    even: start with bins of equal mass, as published, which suits densities with edges; else with the logistic's.

    Raises `OptionError` for sizes that make no model.

    >>> ddn(2, context=1, bins=16, channels=[4], hidden=8).log_prob(torch.zeros(4, 2), torch.zeros(4, 1)).shape
    torch.Size([4])
    """
    if orders < 1:
        raise OptionError(f"orders: {orders} came, an integer >= 1 was expected.")
    if not 0 <= beta < math.inf:
        raise OptionError(f"beta: {beta} came, a number >= 0 was expected.")
    histogram = Histogram(bins, BOUND, tails=tails)
    network = Deconvolution(
        features,
        bins,
        context=context,
        codes=codes,
        channels=[4, 32, 16] if channels is None else channels,
        hidden=hidden,
        blocks=blocks,
        dropout=dropout,
        latent=latent,
        scale=BOUND,
    )
    if not even:
        network.start_at(histogram.start())
    chosen, first = some_orders(features, orders, seed), FittedBox(features, bound=BOUND, margin=margin, box=box)
    average = OrderAverage(histogram, network, chosen, beta=beta)
    if len(chosen) > 1:
        return Flow(first, average, context=context)
    return _OneOrder(first, average, Conditional(histogram, network))


def some_orders(features: int, count: int, seed: int = 0) -> list[list[int]]:
    """`count` different orders of the columns, the first that of the table; all of them where there are no more.

    >>> some_orders(2, 5)
    [[0, 1], [1, 0]]
    """
    generator = torch.Generator().manual_seed(seed)
    found = [list(range(features))]
    most = min(count, math.factorial(min(features, 12)))
    while len(found) < most:
        drawn = torch.randperm(features, generator=generator).tolist()
        if drawn not in found:
            found.append(drawn)
    return found


def paper_config(dataset: str) -> dict[str, Any]:
    """Return the options and training settings published for the toys ("toys") and the UCI tables ("uci").

    Adam at a constant 3e-4, batches of 256, 500 epochs; 2 orders for the toys and 5 for the tables (Chen et al. 2022).
    What the implementation here differs in is said at the head of this module.
    """
    orders = {"toys": 2, "uci": 5}
    if dataset not in orders:
        raise OptionError(f"dataset: '{dataset}' came; settings are known for {', '.join(orders)}.")
    sizes = {"bins": 256, "codes": 16, "channels": [4, 32, 16], "hidden": 64, "blocks": 2}
    return {
        "model": {**sizes, "orders": orders[dataset], "latent": True, "beta": 0.025, "tails": False, "even": True},
        "fit": {"learning_rate": 3e-4, "schedule": "constant", "batch_size": 256, "epochs": 500},
    }
