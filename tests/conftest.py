"""One thread, seeded and derandomised property tests."""

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _seeded():
    """Start every test from the same global random state, on one thread, and in float32."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    assert torch.get_default_dtype() == torch.float32
    yield
    assert torch.get_default_dtype() == torch.float32
