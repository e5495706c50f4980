"""Tables, their files, toys with known densities and the bundled data set; nothing here knows a model."""

from rosenblatt.data.bundled import POWER_STEPS, maf_power, power
from rosenblatt.data.checks import grid_step
from rosenblatt.data.encode import Encoder
from rosenblatt.data.io import iter_table, read_table, write_table
from rosenblatt.data.table import Table
from rosenblatt.data.toys import TOYS, Toy

__all__ = [
    "POWER_STEPS",
    "TOYS",
    "Encoder",
    "Table",
    "Toy",
    "grid_step",
    "iter_table",
    "maf_power",
    "power",
    "read_table",
    "write_table",
]
