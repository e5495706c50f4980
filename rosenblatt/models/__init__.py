"""The published methods, one file each; importing this package fills the registry."""

from rosenblatt.models import gaussian, glow, iaf, made_mixture, maf, nits, nsf, planar, realnvp, sylvester

__all__ = ["gaussian", "glow", "iaf", "made_mixture", "maf", "nits", "nsf", "planar", "realnvp", "sylvester"]
