import os
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from rosenblatt.core.errors import DataError
from rosenblatt.data import POWER_STEPS, Table, maf_power, power

SHARED = Path(os.environ.get("ROSENBLATT_DATA", Path(__file__).parents[2] / "shared" / "data"))
SOURCE = SHARED / "power_full_train_val.npz"
needs_source = pytest.mark.skipif(not SOURCE.exists(), reason="the full POWER file is not here (ROSENBLATT_DATA)")


def test_bundled_set_is_small_named_and_whole():
    folder = resources.files("rosenblatt.data") / "power"
    assert len((folder / "power.parquet").read_bytes()) <= 1_500_000
    readme = (folder / "README.md").read_text()
    assert all(word in readme for word in ("CC BY 4.0", "Hebrail", "Berard", *POWER_STEPS))
    table = power()
    assert len(table) == 60_000
    assert table.columns == tuple(POWER_STEPS)
    assert table.check() == []


def test_raw_readings_lie_on_their_grids_and_noise_fills_the_published_width():
    raw, noisy = power(dequantised=False), power()
    grids = {name: raw.grid_step(name) for name in raw.columns}
    assert grids == pytest.approx(POWER_STEPS | {"active_power_kw": 0.002}, rel=1e-12)
    assert len(raw.check()) == 6
    noise = (noisy.values - raw.values) / torch.tensor(list(POWER_STEPS.values()), dtype=torch.float64)
    for column in noise.T:
        assert stats.kstest(column.numpy(), stats.uniform.cdf).pvalue > 1e-6
    assert noisy.digest() == power().digest() != power(seed=1).digest()


def test_units_are_physical():
    low, high = power(dequantised=False).values.aminmax(dim=0)
    assert low[1] > 220
    assert high[1] < 256
    assert low[5] == 0
    assert high[5] == 1439
    assert 5 < high[0] < 12


@needs_source
def test_bundled_rows_are_training_rows():
    with np.load(SOURCE, allow_pickle=False) as file:
        watts, minutes = file["train_gap_w"], file["train_minute"]
        volts, meters = file["train_voltage_cv"], file["train_sub_metering"]
    chosen = np.sort(np.random.default_rng(0).choice(len(minutes), 60_000, replace=False))
    expected = np.column_stack([watts[chosen] / 1e3, volts[chosen] / 1e2, meters[chosen], minutes[chosen]])
    assert torch.equal(power(dequantised=False).values, torch.tensor(expected))


@needs_source
def test_published_preprocessing_gives_the_published_gaussian():
    train, val = maf_power(SOURCE, dtype=torch.float64)
    assert (len(train), len(val)) == (1_659_917, 184_435)
    both = Table(torch.cat([train.values, val.values]), train.columns)
    mean, scale = both.location_scale()
    # the stored mean and deviation are those of exactly these noisy rows
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
    torch.testing.assert_close(scale, torch.ones_like(scale), rtol=0, atol=1e-9)
    gaussian = stats.multivariate_normal(train.values.mean(0).numpy(), np.cov(train.values.T.numpy()))
    assert gaussian.logpdf(val.values.numpy()).mean() == pytest.approx(-7.74, abs=0.03)


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="POWER"):
        maf_power(tmp_path / "nope.npz")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(DataError, match="POWER"):
        maf_power(tmp_path / "other.npz")
