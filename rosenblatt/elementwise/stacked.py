"""Several increasing maps of one number, one after the other, as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Mapped, ParamSpec
from rosenblatt.elementwise.base import Elementwise

Direction = Callable[[Tensor, Tensor], Mapped]


class Stacked(Elementwise):
    """`y = f_K(.. f_1(x; theta_1) ..; theta_K)` with all parameters emitted at once, `log_det = sum_k log f_k'`.

    Theta holds those of the maps side by side; the start is theirs, and the inverse undoes the last map first. In this
    way a mixture gets an affine map behind it (Flow++, Ho et al. 2019).
    Raises `OptionError` unless there is a map and all are maps of the whole line.

    >>> from rosenblatt.elementwise.additive import Additive
    >>> from rosenblatt.elementwise.affine import Affine
    >>> Stacked([Additive(), Affine()])(torch.tensor([3.0]), torch.tensor([[1.0, 0.5, 0.0]])).value
    tensor([1.5000])
    """

    def __init__(self, maps: Sequence[Elementwise]) -> None:
        super().__init__()
        bounded = [type(part).__name__ for part in maps if not part.domain.whole_line]
        if not maps or bounded:
            raise OptionError(f"maps: {len(maps)} maps with bounded {bounded} came, maps of the whole line expected.")
        self.maps = nn.ModuleList(maps)
        self.sizes = [part.spec.size for part in maps]
        self.spec = ParamSpec(**{f"map_{number}": (size,) for number, size in enumerate(self.sizes)})

    def start(self) -> Tensor:
        """The starts of the maps side by side."""
        return torch.cat([part.start() for part in self._parts])

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Run the maps and add their log-derivatives."""
        return self._run([part.forward for part in self._parts], x, theta.split(self.sizes, dim=-1))

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Undo the maps, the last one first."""
        backwards = [part.inverse for part in reversed(self._parts)]
        return self._run(backwards, y, theta.split(self.sizes, dim=-1)[::-1])

    @property
    def _parts(self) -> list[Elementwise]:
        return list(self.maps)  # type: ignore[arg-type]

    @staticmethod
    def _run(directions: Sequence[Direction], x: Tensor, thetas: Sequence[Tensor]) -> Mapped:
        log_dets = []
        for direction, theta in zip(directions, thetas, strict=True):
            x, log_det = direction(x, theta)
            log_dets.append(log_det)
        return Mapped(x, sum(log_dets[1:], start=log_dets[0]))
