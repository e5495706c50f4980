"""What importing the library may not do, what the source may not hold, and which floor may import which."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = sorted((ROOT / "rosenblatt").rglob("*.py"))

PROBE = """
import json, socket, sys, warnings
import torch
import torch.distributions

def state():
    return {
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "random": torch.get_rng_state().sum().item(),
        "filters": len(warnings.filters),
        "validate": torch.distributions.Distribution._validate_args,
    }

opened = []
original = socket.socket.__init__
def counted(self, *args, **kwargs):
    opened.append(1)
    original(self, *args, **kwargs)
socket.socket.__init__ = counted
before, loaded = state(), set(sys.modules)
import rosenblatt
import rosenblatt.core.density
after = state()
new = {name.split(".")[0] for name in set(sys.modules) - loaded}
print(json.dumps({"before": before, "after": after, "new": sorted(new), "sockets": len(opened)}))
"""


@pytest.fixture(scope="module")
def imported():
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_import_changes_no_global_state(imported):
    assert imported["after"] == imported["before"]
    assert imported["sockets"] == 0


def test_import_loads_no_heavy_library(imported):
    heavy = {"sklearn", "matplotlib", "pandas", "polars", "pyarrow", "scipy", "corner", "rich", "tyro", "mpmath"}
    assert not heavy & set(imported["new"])


def test_middle_floors_load_neither_sklearn_nor_matplotlib():
    code = (
        "import rosenblatt.testing, rosenblatt.eval, rosenblatt.train, rosenblatt.data, sys\n"
        "print([m for m in ('sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def identifier(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCE, ids=identifier)
def test_source_rules(path):
    text = path.read_text()
    assert len(text.splitlines()) < 400, "a file stays below 400 lines"
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is longer than 60 lines"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "marshal", "shelve", "dill"} & {m.split(".")[0] for m in modules}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "pickle.loads", "torch.manual_seed"} or (
                called == "torch.manual_seed" and "fork_rng" in text
            ), f"line {node.lineno}: {called}"


@pytest.mark.parametrize("path", SOURCE, ids=identifier)
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a file says what it is for"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_core_imports_nothing_above_it():
    allowed = re.compile(
        r"^(rosenblatt\.core|torch|__future__|abc|collections|contextlib|ctypes|dataclasses|difflib|enum|functools|inspect|json|math|os|types|typing)\b"
    )
    for path in sorted((ROOT / "rosenblatt" / "core").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert allowed.match(node.module), f"{path.name}: {node.module}"
            elif isinstance(node, ast.Import):
                assert all(allowed.match(alias.name) for alias in node.names), path.name


def test_models_never_import_each_other():
    for path in sorted((ROOT / "rosenblatt" / "models").glob("*.py")):
        if path.name == "__init__.py":
            continue
        assert "rosenblatt.models." not in "\n".join(
            line for line in path.read_text().splitlines() if line.lstrip().startswith(("import", "from"))
        ), path.name
