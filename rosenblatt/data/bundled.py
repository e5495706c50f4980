"""The real data sets that come with the library, and the published benchmark that one of them is a sample of."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import torch

from rosenblatt.core.errors import DataError
from rosenblatt.data.images import Images
from rosenblatt.data.table import Table

# Widths of the noise that spreads each rounded column. Power and voltage and the meters follow the published
# recipe; the minute is the library's own, see power/README.md.
POWER_STEPS: dict[str, float] = {
    "active_power_kw": 0.001,
    "voltage_v": 0.01,
    "sub_metering_1_wh": 1.0,
    "sub_metering_2_wh": 1.0,
    "sub_metering_3_wh": 1.0,
    "minute_of_day": 1.0,
}
MAF_COLUMNS = (
    "active_power",
    "voltage",
    "sub_metering_1",
    "sub_metering_2",
    "sub_metering_3",
    "minute_of_day",
)
MAF_TRAIN, MAF_VALIDATION, MAF_TEST = 1_659_917, 184_435, 204_928


def power(*, dequantised: bool = True, seed: int = 0) -> Table:
    """60,000 minutes of one household's electricity: power, voltage, three meters and the minute of the day.

    Columns in physical units (kW, V, Wh, minute). The readings are rounded; with `dequantised` each gets
    uniform noise of its `POWER_STEPS` width, drawn from `seed`. A random sample of the training rows of UCI
    "Individual Household Electric Power Consumption" (Hebrail & Berard 2012, CC BY 4.0) as selected by
    Papamakarios et al. (2017); provenance in power/README.md.

    >>> power()
    Table(60000 rows; 'active_power_kw', 'voltage_v', 'sub_metering_1_wh', 'sub_metering_2_wh', \
'sub_metering_3_wh', 'minute_of_day')
    """
    with resources.as_file(resources.files("rosenblatt.data") / "power" / "power.parquet") as path:
        table = Table.from_any(path)
    return table.dequantise(POWER_STEPS, torch.Generator().manual_seed(seed)) if dequantised else table


def digits() -> Images:
    """1,797 handwritten digits of 8 x 8 pixels with 17 grey levels, 0 to 16.

    The test part of UCI "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998, CC BY 4.0), which is also
    the set of that name in scikit-learn; provenance in digits/README.md.

    >>> digits()
    Images(1797 of 1 x 8 x 8; 17 levels)
    """
    with resources.as_file(resources.files("rosenblatt.data") / "digits" / "digits.png") as path:
        return Images.from_any(path, shape=(1, 8, 8), levels=17)


def maf_power(path: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[Table, Table]:
    """Training and validation rows of POWER, preprocessed as published (Papamakarios et al. 2017).

    `path` is the file power_full_train_val.npz with the readings before noise. Noise is drawn by the
    published code's generator, in its order, after its row shuffle; the minute gets none; columns are
    standardised by the mean and deviation of both parts. Raises `DataError` for a missing or foreign file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        power_kw, voltage, meters = _maf_noise()
        tables = []
        for part, rows in (
            ("train", slice(0, MAF_TRAIN)),
            ("val", slice(MAF_TRAIN, MAF_TRAIN + MAF_VALIDATION)),
        ):
            readings = (
                arrays[f"{part}_gap_w"][:, None] / 1e3 + power_kw[rows],
                arrays[f"{part}_voltage_cv"][:, None] / 1e2 + voltage[rows],
                arrays[f"{part}_sub_metering"] + meters[rows],
                arrays[f"{part}_minute"][:, None].astype(np.float64),
            )
            standardised = (np.hstack(readings) - arrays["maf_mu"]) / arrays["maf_std"]
            tables.append(Table.from_any(standardised, columns=MAF_COLUMNS, dtype=dtype))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: cannot be read as the POWER readings ({error}); give power_full_train_val.npz."
        ) from error
    return tables[0], tables[1]


def _maf_noise() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = MAF_TRAIN + MAF_VALIDATION + MAF_TEST
    generator = np.random.RandomState(42)
    generator.shuffle(np.arange(rows))  # leaves the generator where the published code has it
    voltage = 0.01 * generator.rand(rows, 1)
    power_kw = 0.001 * generator.rand(rows, 1)
    return power_kw, voltage, generator.rand(rows, 3)
