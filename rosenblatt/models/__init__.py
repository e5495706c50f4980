"""The published methods, one file each; importing this package fills the registry."""

from rosenblatt.models import bernstein, elf, gaussian, made_mixture, maf, naf, nits, nsf, sos, umnn

__all__ = ["bernstein", "elf", "gaussian", "made_mixture", "maf", "naf", "nits", "nsf", "sos", "umnn"]
