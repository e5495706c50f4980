"""Write rosenblatt/data/digits/digits.png from the copy that comes with scikit-learn; see its README.

python -m benchmarks.make_bundled_digits
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

TARGET = Path(__file__).parents[1] / "rosenblatt" / "data" / "digits" / "digits.png"


def main() -> None:
    """One image a row, 64 pixels of 17 grey levels."""
    Image.fromarray(load_digits().data.astype(np.uint8)).save(TARGET, optimize=True)
    print(TARGET, TARGET.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
