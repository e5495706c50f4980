"""What the page on forecasting shows must run, in the order of the page."""

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parent.parent / "docs" / "forecasting.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for snippet in SNIPPETS:
        exec(compile(snippet, str(PAGE), "exec"), names)  # noqa: S102
    assert names["paths"].shape == (500, 24, 2)
    assert np.isfinite(names["tomorrow"]).all()
    # The page says that the forecaster is better than the naive one on its series.
    assert names["gain"].value + 3 * names["gain"].standard_error < 0
    assert "energy of a step" in capsys.readouterr().out
