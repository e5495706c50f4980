"""The flows of flowjax behind the calls that every library gets; imported only in flowjax's own process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paramax
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow, masked_autoregressive_flow
from flowjax.train.losses import MaximumLikelihoodLoss
from flowjax.train.train_utils import step

from benchmarks.speed.sizes import BINS, BOUND, LEARNING_RATE, Size


class JaxModel:
    """A flowjax flow; every call is jit-compiled and waited for."""

    def __init__(self, size: Size) -> None:
        make = coupling_flow if size.family == "nsf_c" else masked_autoregressive_flow
        # it counts the knots between the ends, and trains both end slopes
        spline = None if size.family == "maf" else RationalQuadraticSpline(knots=BINS - 1, interval=BOUND)
        self.flow = make(
            jax.random.key(0),
            base_dist=Normal(jnp.zeros(size.features)),
            transformer=spline,
            flow_layers=size.transforms,
            nn_width=size.hidden,
            nn_depth=2,
        )
        self.features = size.features
        self.note = ""

    def counts(self) -> dict[str, int]:
        """Trained numbers, and matrix entries that are not masked."""
        params, _ = _split(self.flow)
        leaves = jax.tree_util.tree_leaves(eqx.filter(paramax.unwrap(self.flow), eqx.is_inexact_array))
        visible = sum(int(jnp.count_nonzero(leaf)) for leaf in leaves if leaf.ndim == 3)  # (transforms, rows, columns)
        return {"weights": sum(leaf.size for leaf in jax.tree_util.tree_leaves(params)), "visible": visible}

    def log_prob(self, rows: np.ndarray) -> Callable[[], object]:
        """Score, compiled."""
        x = jnp.asarray(rows)
        score = eqx.filter_jit(lambda flow, x: flow.log_prob(x))
        return lambda: score(self.flow, x).block_until_ready()

    def sample(self, rows: int) -> Callable[[], object]:
        """Draw, compiled, with a fixed key."""
        draw = eqx.filter_jit(lambda flow, key: flow.sample(key, (rows,)))
        key = jax.random.key(1)
        return lambda: draw(self.flow, key).block_until_ready()

    def train(self, rows: np.ndarray) -> Callable[[], object]:
        """One step as flowjax's own training loop makes it, with optax's Adam."""
        x = jnp.asarray(rows)
        params, static = _split(self.flow)
        optimiser, loss = optax.adam(LEARNING_RATE), MaximumLikelihoodLoss()
        state: list[Any] = [params, optimiser.init(params)]

        def train_step() -> None:
            state[0], state[1], _ = step(
                state[0], static, x, optimizer=optimiser, opt_state=state[1], loss_fn=loss, key=None
            )
            jax.block_until_ready(state)

        return train_step


def _split(flow: Any) -> tuple[Any, Any]:
    return eqx.partition(  # type: ignore[no-any-return]
        flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )
