"""Run the snippets of docs/calibration.md in order and save its pictures.

python docs/make_calibration.py
"""

from __future__ import annotations

import os
import re
import runpy
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGE, IMAGES = DOCS / "calibration.md", DOCS / "images"
PICTURES = {"curves": "calibration_curves", "picture": "calibration_reliability", "groups": "calibration_groups"}


def main() -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        made = run(Path(folder))
    for name, file in PICTURES.items():
        path = IMAGES / f"{file}.png"
        made[name].savefig(path, dpi=80)
        print(f"{path.relative_to(DOCS.parent)}: {path.stat().st_size / 1000:.0f} kB")


def run(folder: Path) -> dict[str, Any]:
    """Names that the snippets leave, run as one script in `folder`."""
    script = folder / "page.py"
    script.write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)))
    before = Path.cwd()
    os.chdir(folder)
    try:
        return runpy.run_path(str(script))
    finally:
        os.chdir(before)


if __name__ == "__main__":
    main()
