"""The measurements see a fault where there is one."""

import math

import pytest
import torch

from benchmarks.checks.inverses import judge
from benchmarks.heavy_tails import tail_error
from benchmarks.power_contest import score
from rosenblatt.bases import StandardNormal, StudentT
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import InverseError
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Mapped
from rosenblatt.data import Table


class Halving(Transform):
    """Right to the base; on the way back it fails as told: wrong everywhere, or refusing some rows."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, x, context=None):
        if self.fault == "refuses scores" and bool((x[..., 0] > 2).any()):
            raise InverseError("are refused", (x[..., 0] > 2).nonzero().squeeze(-1).tolist())
        return Mapped(x / 2, x.new_full(x.shape[:-1], -x.shape[-1] * math.log(2)))

    def inverse(self, y, context=None):
        if self.fault == "refuses" and bool((y[..., 0] > 0).any()):
            raise InverseError("are refused", (y[..., 0] > 0).nonzero().squeeze(-1).tolist())
        factor = 2.1 if self.fault == "wrong" else 2.0
        return Mapped(factor * y, y.new_full(y.shape[:-1], y.shape[-1] * math.log(2)))


def test_inverses_that_miss_or_refuse_are_counted():
    verdicts = {fault: judge(Flow(Halving(fault), StandardNormal(2)), 5.0, None) for fault in ("", "wrong", "refuses")}
    assert verdicts[""] == (0, 0)
    assert verdicts["wrong"] == (0, 500)
    refused, wrong = verdicts["refuses"]
    assert 200 < refused < 300
    assert wrong == 0


def test_refused_rows_are_left_out_of_a_score_and_counted():
    rows = torch.tensor([[0.0], [3.0], [1.0]])
    nats, _, refused = score(Flow(Halving("refuses scores"), StandardNormal(1)), Table(rows, ["x"]))
    assert refused == 1
    sound = StandardNormal(1).log_prob(rows[[0, 2]] / 2) - math.log(2)
    assert nats == pytest.approx(sound.mean().item(), abs=1e-6)


def test_tail_error_is_small_for_the_true_law_alone():
    test = StudentT(1, 3.0).double().sample(20_000, generator=torch.Generator().manual_seed(0))
    right, light = (tail_error(base, test, [0]) for base in (StudentT(1, 3.0), StandardNormal(1)))
    assert right < 0.15
    assert light > 3 * right
