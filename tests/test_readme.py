"""What the README shows must run and be true."""

import re
import runpy
from pathlib import Path

import pytest

import rosenblatt.models
from rosenblatt.core.registry import names

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
TABLE = """
import functools
import numpy as np
import pandas as pd
import rosenblatt
rosenblatt.FlowDensity = functools.partial(rosenblatt.FlowDensity, model_options={"hidden": 8}, epochs=1)
df = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["height", "mass"])
df_new = df[:10]
"""


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_python_snippets_run(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rosenblatt, "FlowDensity", rosenblatt.FlowDensity, raising=False)
    script = tmp_path / "snippet.py"
    script.write_text((TABLE if "df" in SNIPPETS[number] else "") + SNIPPETS[number])
    runpy.run_path(str(script))
    assert "density.save" not in SNIPPETS[number] or (tmp_path / "model" / "config.json").exists()


def test_the_table_of_models_is_the_registry():
    assert sorted(re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE)) == names()


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_pages_made_from_the_registry_are_up_to_date():
    maker = runpy.run_path(str(ROOT / "docs" / "make_families.py"))
    assert (ROOT / "docs" / "families.md").read_text() == maker["page"](), "run `python docs/make_families.py`"
    assert maker["readme"](README) == README, "run `python docs/make_families.py`"
