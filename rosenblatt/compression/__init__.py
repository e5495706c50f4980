"""Files as long as a model's log-likelihood says: images and tables of whole numbers, compressed bit for bit."""

from rosenblatt.compression.files import compress, decompress
from rosenblatt.compression.fingerprint import fingerprint

__all__ = ["compress", "decompress", "fingerprint"]
