"""What the page on regression shows must run."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parent.parent / "docs" / "regression.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_run(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "snippet.py"
    # A tenth of the epochs or steps: whether fits are good is asked elsewhere.
    script.write_text(re.sub(r"(epochs|max_steps)=(\d+)0\b", r"\1=\2", SNIPPETS[number]))
    made = runpy.run_path(str(script))
    if "quantiles" in made:
        assert np.allclose(made["quantiles"][:, 1], made["median"])
        assert (made["low_high"] > 0).all()
        assert made["draws"].shape == (100, len(made["mean"]), 1)
    if "load_diabetes" in made and made["flow"].members > 1:
        assert len(made["flow"].model_.members) == 4
        assert made["flow"].report_.steps == 480
    if "homes" in made:
        assert made["flow"].encoder_.names == ["size", "size is missing", "street = busy", "street = quiet"]
