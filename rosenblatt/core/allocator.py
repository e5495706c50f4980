"""What the C library does with memory that is given back."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGEST_BLOCK = 32 << 20  # bytes; as far as glibc goes by itself, once it has seen such a block freed
KEPT = 256 << 20


@cache
def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MB, 256 MB in all, for the next layer.

    By default it may fetch each large block from the system, which clears it page by page, and hand it back when it is
    freed. Whether a layer runs at full speed or at half of it is then a matter of what was freed before. Other C
    libraries, and a user's own MALLOC_ or GLIBC_TUNABLES settings, are left as they are.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, KEPT)
