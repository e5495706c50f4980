"""The published methods, one file each; importing this package fills the registry."""

from rosenblatt.models import gaussian, made_mixture, maf, mtaf, nits, nsf

__all__ = ["gaussian", "made_mixture", "maf", "mtaf", "nits", "nsf"]
