"""Tables, images, their files, toys with known densities and the bundled sets; nothing here knows a model."""

from rosenblatt.data.bundled import POWER_STEPS, digits, maf_power, power
from rosenblatt.data.checks import grid_step
from rosenblatt.data.encode import Encoder
from rosenblatt.data.images import Images
from rosenblatt.data.io import iter_table, read_table, write_table
from rosenblatt.data.pictures import write_grid
from rosenblatt.data.table import Table
from rosenblatt.data.toys import TOYS, Toy

__all__ = [
    "POWER_STEPS",
    "TOYS",
    "Encoder",
    "Images",
    "Table",
    "Toy",
    "digits",
    "grid_step",
    "iter_table",
    "maf_power",
    "power",
    "read_table",
    "write_grid",
    "write_table",
]
