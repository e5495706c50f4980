"""The published methods, one file each; importing this package fills the registry."""

from rosenblatt.models import (
    bernstein,
    elf,
    gaussian,
    glow,
    iaf,
    made_mixture,
    maf,
    mtaf,
    naf,
    nits,
    nsf,
    planar,
    realnvp,
    sos,
    sylvester,
    umnn,
)

__all__ = [
    "bernstein",
    "elf",
    "gaussian",
    "glow",
    "iaf",
    "made_mixture",
    "maf",
    "mtaf",
    "naf",
    "nits",
    "nsf",
    "planar",
    "realnvp",
    "sos",
    "sylvester",
    "umnn",
]
