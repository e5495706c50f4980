"""Any model of the registry for images, counts and other whole numbers, by dequantisation.

    log P(k) >= E_q[ log p(k + u) - log q(u | k) ],   u in the unit cube

Not in the registry itself, for its log-probabilities are lower bounds; the parts are in `layers/surjection.py`.
References: Theis, van den Oord & Bethge, ICLR 2016 (q uniform); Ho et al., Flow++, ICML 2019 (q learned).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import build, reproducible
from rosenblatt.layers.surjection import Dequantised, coupling_noise

NOISE_OPTIONS = ("transforms", "hidden", "blocks")


def dequantised(
    features: int,
    context: int = 0,
    *,
    levels: int = 256,
    model: str = "glow",
    options: Mapping[str, Any] | None = None,
    noise: Mapping[str, Any] | None = None,
    samples: int = 1,
    seed: int | None = None,
) -> Dequantised:
    """Build a registered `model` of whole numbers 0 .. levels - 1 from options that JSON can hold.

    `options` are those of the model. `noise` None is uniform; otherwise the options of `coupling_noise`, for images of
    the model's `image` ({} for its defaults). With `seed` the starting weights are reproducible. Raises `OptionError`
    as the model and `Dequantised` do, and for other options of the noise.

    >>> import torch
    >>> image = {"image": [1, 4, 4], "transforms": 2, "hidden": 8}
    >>> flow = dequantised(16, levels=17, options=image, noise={"hidden": 8}, samples=5)
    >>> flow.log_prob(torch.zeros(3, 16)).shape
    torch.Size([3])
    """
    chosen = dict(options or {})
    with reproducible(seed):
        density = build(model, features, context, options=chosen)
        spread = None if noise is None else coupling_noise(features, image=chosen.get("image"), **_whole(noise))
    return Dequantised(density, levels, noise=spread, samples=samples)


def _whole(noise: Mapping[str, Any]) -> Mapping[str, int]:
    """The options of a noise; raises `OptionError` unless they are known and integers."""
    if not isinstance(noise, Mapping):
        raise OptionError(f"noise: {noise!r} came, none or options such as {{'hidden': 32}} were expected.")
    for name, value in noise.items():
        if name not in NOISE_OPTIONS or not isinstance(value, int) or isinstance(value, bool):
            raise OptionError(f"noise: {name}={value!r} came; integers {', '.join(NOISE_OPTIONS)} were expected.")
    return noise
