"""The page on images: its first example runs, and its figures are those of the results files."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "images.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("constriction")
    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
    script = tmp_path / "example.py"
    script.write_text(example)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script))
    assert "bits/dim (exact)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["digits_small", "digits", "mnist", "cifar10_cpu"])
def test_bits_on_the_page_are_those_that_were_measured(name):
    models = json.loads((RESULTS / f"{name}.json").read_text())["models"]
    assert models
    for model, result in models.items():
        found = result["test_bits_per_dim"]
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` | `{model}`"))
        assert f"{found['value']:.4f} +- {found['standard_error']:.4f}" in row


def test_sizes_on_the_page_are_those_that_were_measured():
    sizes = json.loads((RESULTS / "compression.json").read_text())
    assert sorted(sizes) == ["cifar10", "mnist"]
    for entry in sizes.values():
        assert entry["bit for bit"]
        for name, size in entry["one file"].items():
            assert re.search(rf"\| {name} \|.*{size:,.0f}", PAGE), (name, size)


def test_pictures_are_there():
    for target in re.findall(r"\]\((images/[^)]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
