"""The published methods, one file each; importing this package fills the registry."""

from rosenblatt.models import bernstein, gaussian, made_mixture, maf, nits, nsf

__all__ = ["bernstein", "gaussian", "made_mixture", "maf", "nits", "nsf"]
