"""Bad input of every kind: one clear sentence on standard error and exit code 2."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import COLUMNS, PLAIN, one_sentence, rows, write

from rosenblatt.cli import COMMANDS, main
from rosenblatt.cli.options import pairs
from rosenblatt.core.errors import OptionError


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    assert main(["fit", write(folder / "rows.csv"), "--out", str(folder / "run"), *PLAIN]) == 0
    return folder


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    shutil.copytree(fitted / "run", tmp_path / "run")
    return tmp_path / "run"


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    return one_sentence(capsys.readouterr().err)


def bad_table(name: str, folder: Path) -> Path:
    path = folder / "table.csv"
    values = rows(20)
    if name == "one row":
        values = values[:1]
    if name == "nan":
        values[4, 1] = np.nan
    if name == "inf":
        values[4, 1] = np.inf
    if name == "constant":
        values[:, 1] = 3.0
    if name == "copies":
        values[:, 1] = values[:, 0]
    write(path, values)
    if name == "no rows":
        path.write_text(",".join(COLUMNS) + "\n")
    if name == "no bytes":
        path.write_bytes(b"")
    if name == "text":
        path.write_text(path.read_text() + "1.7,heavy,2\n")
    if name == "text column":
        path.write_text("length,colour\n1.5,red\n1.6,blue\n")
    if name == "ragged":
        path.write_text(path.read_text() + "1.7,2\n")
    if name == "missing":
        path.unlink()
    return path


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("missing", "no such file"),
        ("no bytes", "empty"),
        ("no rows", "no rows"),
        ("one row", "one row"),
        ("text", "heavy"),
        ("text column", "red"),
        ("ragged", "fields"),
        ("nan", "row 4, column 'mass'"),
        ("inf", "row 4, column 'mass'"),
        ("constant", "'mass'"),
        ("copies", "'length' and 'mass'"),
    ],
)
def test_bad_table(name: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert named in complaint(capsys, "fit", str(bad_table(name, tmp_path)), "--out", str(run), *PLAIN)
    assert not run.exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["fly"], "'fly'"),
        (["fit", "--out", "r", "--learning-rat", "1"], "--learning-rate"),
        (["fit", "--out", "r", "--epochs", "many"], "--epochs"),
        (["fit", "--out", "r", "--epochs", "-1"], "epochs"),
        (["fit", "--out", "r", "--schedule", "round"], "--schedule"),
        (["fit"], "--out"),
        (["score", "run"], "TABLE"),
        (["sample", "run", "-n", "few"], "--rows"),
        (["sample", "run", "-n", "-1"], "--rows"),
        (["info", "nowhere"], "nowhere"),
        (["fit", "--resume", "nowhere"], "nowhere"),
        (["fit", "--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_bad_usage(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named in complaint(capsys, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model", "nuts"], "nits"),
        (["--option", "depth=3"], "known options"),
        (["--option", "hidden"], "NAME=VALUE"),
        (["--option", "hidden=-1"], "hidden"),
        (["--support", "colour=[0,1]"], "colour"),
        (["--support", "price=[5,null]"], "price"),
        (["--dequantise", "mass=coarse"], "dequantise: 'coarse'"),
        (["--columns", "length,colour"], "colour"),
        (["--test-fraction", "1"], "--test-fraction"),
        (["--test-fraction", "0.001"], "too few"),
        (["--device", "abacus"], "device"),
        (["--samples", "-5"], "--samples"),
    ],
)
def test_bad_fit_option(
    words: list[str], named: str, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = complaint(capsys, "fit", str(fitted / "rows.csv"), "--out", str(tmp_path / "run"), *PLAIN, *words)
    assert named in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("modle = 'nits'\n", "modle"),
        ("[fit]\nepoch = 3\n", "epoch"),
        ("[fit]\nepochs = 'three'\n", "--epochs"),
        ("model_options = 3\n", "[model_options]"),
        ("model = nits\n", "TOML"),
        ("columns = ['a', 'b']\n", "columns"),
    ],
)
def test_bad_toml(text: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fit.toml"
    file.write_text(text)
    said = complaint(capsys, "fit", "--config", str(file), "--out", str(tmp_path / "run"))
    assert named in said
    assert "fit.toml" in said


def test_damaged_run_folders(run: Path, fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = str(fitted / "rows.csv")
    models = sorted(run.glob("step-*/model.safetensors"))
    whole = models[-1].read_bytes()
    for path in models:
        path.write_bytes(whole[:-100])
    for words in (["score", str(run), table], ["sample", str(run)], ["info", str(run)], ["audit", str(run)]):
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # falling back to an earlier checkpoint is said in warnings
            assert main(words) == 2
        assert "model.safetensors" in one_sentence(capsys.readouterr().err)
    (run / "config.json").write_text('{"schema": 1, "config": {')
    assert "config.json" in complaint(capsys, "info", str(run))
    (run / "config.json").unlink()
    assert "not a run folder" in complaint(capsys, "score", str(run), table)


def test_pickle_in_place_of_weights_is_never_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canary = tmp_path / "canary"
    payload = pickle.dumps(_Canary(str(canary)))
    for path in run.glob("step-*/model.safetensors"):
        path.write_bytes(payload)
    assert "model.safetensors" in complaint(capsys, "sample", str(run))
    assert not canary.exists()


def test_help_and_bad_usage_load_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from rosenblatt.cli import main\n"
        "codes = [main(['--help']), main(['fly']), main(['score', '--wrong']), main(['sample', 'r', '-n', 'x'])]\n"
        "print(codes, sorted({'torch', 'pandas', 'sklearn', 'matplotlib', 'pyarrow'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 2, 2, 2] []"
    assert done.stderr.count("rosenblatt: ") == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"usage: rosenblatt {command}" in capsys.readouterr().out


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_pairs_refuse_what_is_no_pair() -> None:
    with pytest.raises(OptionError, match="NAME=VALUE"):
        pairs(["=3"], "option")


class _Canary:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")
