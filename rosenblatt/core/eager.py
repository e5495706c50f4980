"""When hand-written passes may stand in for traced ones."""

from __future__ import annotations

import torch


def runs_eagerly() -> bool:
    """Whether operations run as they are called: not inside compile, export or a `torch.func` transform.

    Hand-written forward and backward passes write into slices and choose blocks by size, which a tracer and `vmap`
    cannot follow; those get the plain differentiable form of the same map.
    """
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())
