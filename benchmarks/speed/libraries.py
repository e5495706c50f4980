"""The same flow in every library: 5 transforms, plain ReLU networks of two hidden layers, float32.

A model hides a library behind `counts`, `log_prob`, `sample` and `train`; the last three prepare a call, which is then
timed. What could not be made equal is said in docs/speed.md. Importing this file imports no library but torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.floor import visible_weights
from benchmarks.speed.sizes import BINS, BOUND, LEARNING_RATE, Size


@dataclass
class TorchModel:
    """A PyTorch flow: `density(x)` is the log-density, `draw(n)` gives n rows."""

    module: nn.Module
    density: Callable[[Tensor], Tensor]
    draw: Callable[[int], Tensor]
    note: str = ""
    optimiser: torch.optim.Optimizer | None = field(default=None, init=False)

    def counts(self) -> dict[str, int]:
        """All trained weights with biases; matrix entries that are not masked."""
        weights = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        return {"weights": weights, "visible": visible_weights(self.module)}

    def compiled(self) -> TorchModel:
        """The same model with its density behind torch.compile, mode "default", for fixed shapes."""
        return TorchModel(self.module, torch.compile(self.density, dynamic=False), self.draw, self.note)

    def log_prob(self, rows: np.ndarray) -> Callable[[], object]:
        """Score in eval mode."""
        x = torch.from_numpy(rows)
        self.module.eval()
        return torch.no_grad()(lambda: self.density(x))

    def sample(self, rows: int) -> Callable[[], object]:
        """Draw in eval mode."""
        self.module.eval()
        return torch.no_grad()(lambda: self.draw(rows))

    def train(self, rows: np.ndarray) -> Callable[[], object]:
        """Forward, backward and one fused Adam update of every weight."""
        x = torch.from_numpy(rows)
        self.module.train()
        if self.optimiser is None:
            self.optimiser = torch.optim.Adam(self.module.parameters(), lr=LEARNING_RATE, fused=True)
        optimiser = self.optimiser

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            (-self.density(x).mean()).backward()
            optimiser.step()

        return step


def ours(size: Size) -> TorchModel:
    """Our flows, through the registry."""
    import rosenblatt.models  # noqa: F401 - fills the registry
    from rosenblatt.core.registry import build, entry

    spline = {"transforms": size.transforms, "bins": BINS, "bound": BOUND, "linear": "none"}
    own: dict[str, tuple[str, dict[str, Any]]] = {
        "maf": ("maf", {"transforms": size.transforms}),
        "nsf_ar": ("nsf", spline),
        "nsf_c": ("nsf", {**spline, "coupling": True}),
        "nits": ("nits", {"transforms": size.transforms, "widths": [16, 16, 1]}),
    }
    name, options = own[size.family]
    options |= {"hidden": size.hidden, "blocks": 2, "residual": False}
    note = ""
    if "residual" not in entry(name).options:
        del options["residual"]
        note = "residual blocks: four 256 x 256 layers where the others have one"
    flow = build(name, size.features, options=options, seed=0)
    if size.random:
        leave_quiet_start(flow)
    return TorchModel(flow, flow, flow.sample, note)


def ours_published(dataset: str, features: int) -> TorchModel:
    """NITS at the sizes published for a UCI table."""
    import rosenblatt.models  # noqa: F401 - fills the registry
    from rosenblatt.core.registry import build
    from rosenblatt.models.nits import paper_config

    flow = build("nits", features, options=paper_config(dataset)["model"], seed=0)
    leave_quiet_start(flow)
    return TorchModel(flow, flow, flow.sample)


def leave_quiet_start(flow: nn.Module) -> None:
    """Give the output layers weights of the usual random size; our models start at a hundredth of it."""
    from rosenblatt.conditioners.masked import Masked

    with torch.no_grad():
        for part in flow.modules():
            if isinstance(part, Masked):
                part.last.weight.mul_(100.0)


def zuko_model(size: Size) -> TorchModel:
    """Flows of zuko; its coupling is an autoregression of two passes."""
    import zuko

    sizes = {"transforms": size.transforms, "hidden_features": (size.hidden, size.hidden)}
    builders: dict[str, Callable[[], nn.Module]] = {
        "maf": lambda: zuko.flows.MAF(size.features, **sizes),
        "nsf_ar": lambda: zuko.flows.NSF(size.features, bins=BINS, **sizes),
        "nsf_c": lambda: zuko.flows.NSF(size.features, bins=BINS, passes=2, **sizes),
        "naf": lambda: zuko.flows.NAF(size.features, **sizes),
        "unaf": lambda: zuko.flows.UNAF(size.features, **sizes),
    }
    flow = builders[size.family]()
    return TorchModel(flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)))


def nflows_model(size: Size) -> TorchModel:
    """Flows of nflows; `num_blocks=1` plain block after its first layer makes two hidden layers."""
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import (
        CompositeTransform,
        MaskedAffineAutoregressiveTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        PiecewiseRationalQuadraticCouplingTransform,
        ReversePermutation,
    )

    net = {"features": size.features, "hidden_features": size.hidden, "num_blocks": 1, "use_residual_blocks": False}
    spline = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    steps: list[Any] = []
    for number in range(size.transforms):
        if size.family == "nsf_c":
            coupling = PiecewiseRationalQuadraticCouplingTransform(
                _alternating(size.features, number),
                functools.partial(_nflows_mlp, hidden=size.hidden),
                apply_unconditional_transform=True,
                **spline,
            )
            steps.append(coupling)
            continue
        if number:
            steps.append(ReversePermutation(size.features))
        if size.family == "maf":
            steps.append(MaskedAffineAutoregressiveTransform(**net))
        else:
            steps.append(MaskedPiecewiseRationalQuadraticAutoregressiveTransform(**net, **spline))
    flow = Flow(CompositeTransform(steps), StandardNormal([size.features]))
    return TorchModel(flow, flow.log_prob, flow.sample)


def _alternating(features: int, number: int) -> Tensor:
    return (torch.arange(features) + number) % 2


def _nflows_mlp(inputs: int, outputs: int, hidden: int) -> nn.Module:
    from nflows.nn.nets import MLP

    class Unconditional(MLP):  # type: ignore[misc]
        hidden_features = hidden  # by which its spline scales the logits down

        def forward(self, x: Tensor, context: None = None) -> Tensor:
            return super().forward(x)  # type: ignore[no-any-return]

    return Unconditional((inputs,), (outputs,), [hidden, hidden])


def normflows_model(size: Size) -> TorchModel:
    """Flows of normflows; its spline layers get the plain networks that their constructors cannot be asked for."""
    import normflows as nf
    from normflows.flows.neural_spline.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressive

    net = {"features": size.features, "hidden_features": size.hidden, "num_blocks": 1, "use_residual_blocks": False}
    layers: list[nn.Module] = []
    for number in range(size.transforms):
        if size.family == "maf":  # turned around, or it would take one pass per column to score
            layers.append(nf.flows.Reverse(nf.flows.MaskedAffineAutoregressive(**net)))
        elif size.family == "nsf_ar":
            layer = nf.flows.AutoregressiveRationalQuadraticSpline(
                size.features, 1, size.hidden, num_bins=BINS, tail_bound=BOUND
            )
            layer.mprqat = MaskedPiecewiseRationalQuadraticAutoregressive(
                num_bins=BINS, tails="linear", tail_bound=BOUND, **net
            )
            layers.append(layer)
        else:
            layer = nf.flows.CoupledRationalQuadraticSpline(
                size.features, 1, size.hidden, num_bins=BINS, tail_bound=BOUND, reverse_mask=bool(number % 2)
            )
            old = layer.prqct.transform_net
            inputs, outputs = old.initial_layer.in_features, old.final_layer.out_features
            layer.prqct.transform_net = _PlainNet(inputs, outputs, size.hidden)
            layers.append(layer)
        if size.family != "nsf_c" and number < size.transforms - 1:
            layers.append(_reversal(size.features))
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(size.features, trainable=False), layers)
    return TorchModel(flow, flow.log_prob, lambda n: flow.sample(n)[0])


class _PlainNet(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )
        self.hidden_features = hidden  # by which its spline scales the logits down

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        output: Tensor = super().forward(x)
        return output


def _reversal(features: int) -> nn.Module:
    import normflows as nf

    permutation = nf.flows.Permute(features, mode="shuffle")
    for name in ("perm", "inv_perm"):
        permutation.get_buffer(name).copy_(torch.arange(features - 1, -1, -1))
    return permutation


BUILDERS: dict[str, Callable[[Size], TorchModel]] = {
    "rosenblatt": ours,
    "zuko": zuko_model,
    "nflows": nflows_model,
    "normflows": normflows_model,
}


def build(library: str, size: Size) -> TorchModel:
    """Build a model; "NAME+compile" is that library behind torch.compile."""
    name, _, compiled = library.partition("+")
    model = BUILDERS[name](size)
    return model.compiled() if compiled else model
