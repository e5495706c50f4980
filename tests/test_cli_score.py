"""`rosenblatt score`, `sample`, `plot`, `audit`, `info` and `models` on a small fitted run."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pytest
import torch
from cli_helpers import COLUMNS, PLAIN, one_sentence, rows, write
from scipy.stats import norm

from rosenblatt.assembly import restore
from rosenblatt.cli import main
from rosenblatt.core.registry import cite, names
from rosenblatt.data import read_table
from rosenblatt.layers.conditional import Conditional
from rosenblatt.train import RunFolder

SCORES = ("log_density", "p_length", "p_mass", "p_price")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("fitted")
    table = write(folder / "rows.csv")
    assert main(["fit", table, "--out", str(folder / "run"), *PLAIN]) == 0
    return str(folder / "run")


@pytest.fixture
def fresh(tmp_path: Path) -> str:
    return write(tmp_path / "fresh.csv", rows(50, seed=9))


def test_scores_are_those_of_the_model_in_the_order_of_the_file(tmp_path: Path, run: str, fresh: str) -> None:
    out = tmp_path / "scores.parquet"
    assert main(["score", run, fresh, "--out", str(out)]) == 0
    found_names, found = read_table(out)
    assert found_names == SCORES
    flow, _ = restore(RunFolder.open(run))
    x = torch.tensor(rows(50, seed=9))
    with torch.no_grad():
        u = flow.double().to_uniform(x)
        expected = torch.cat([flow.log_prob(x)[:, None], 2 * torch.minimum(u, 1 - u)], dim=1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-12)
    assert found[:, 1:].min() >= 0
    assert found[:, 1:].max() <= 1


def test_a_row_far_out_has_a_tiny_p_value_on_either_side(tmp_path: Path) -> None:
    table, run, out = write(tmp_path / "rows.csv"), str(tmp_path / "run"), tmp_path / "scores.parquet"
    words = ["--validation-fraction", "0", "--test-fraction", "0"]
    assert main(["fit", table, "--model", "gaussian", "--out", run, *PLAIN[-3:], *words]) == 0
    length = read_table(table)[1][:, 0]
    far = np.tile(rows(1), (2, 1))
    far[:, 0] = length.mean() + np.array([-20, 20]) * length.std()
    assert main(["score", run, write(tmp_path / "far.csv", far), "--out", str(out)]) == 0
    # The weights are float32, which 20 sigma out shows in the third digit.
    np.testing.assert_allclose(read_table(out)[1][:, 1], 2 * norm.cdf(-20), rtol=0.01)


def test_scoring_runs_the_network_once(run: str, fresh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    forward = Conditional.forward
    monkeypatch.setattr(Conditional, "forward", lambda *given: (passes.append(1), forward(*given))[1])
    assert main(["score", run, fresh, "--out", str(tmp_path / "scores.csv")]) == 0
    assert len(passes) == 1


def test_chunks_do_not_change_the_scores(tmp_path: Path, run: str, fresh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rosenblatt.cli import scoring

    assert main(["score", run, fresh, "--out", str(tmp_path / "one.csv")]) == 0
    seen = []
    scorer = scoring.Scorer.__call__
    monkeypatch.setattr(scoring.Scorer, "__call__", lambda self, chunk: (seen.append(chunk), scorer(self, chunk))[1])
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 7)
    assert main(["score", run, fresh, "--processes", "1", "--out", str(tmp_path / "many.csv")]) == 0
    assert [(chunk.first, chunk.rows) for chunk in seen] == [*((first, 7) for first in range(0, 49, 7)), (49, 1)]
    one, many = read_table(tmp_path / "one.csv")[1], read_table(tmp_path / "many.csv")[1]
    np.testing.assert_allclose(one, many, rtol=1e-9, atol=1e-12)


def test_scores_go_to_standard_output(run: str, fresh: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["score", run, fresh]) == 0
    captured = capfdbinary.readouterr()
    lines = captured.out.decode().splitlines()
    assert lines[0].replace('"', "") == ",".join(SCORES)
    assert len(lines) == 51
    assert b"rows/s" in captured.err


def test_columns_are_matched_by_name(tmp_path: Path, run: str, fresh: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = rows(50, seed=9)
    turned = write(tmp_path / "turned.csv", values[:, ::-1], COLUMNS[::-1])
    more = write(tmp_path / "more.csv", np.column_stack([values, values[:, 0]]), (*COLUMNS, "colour"))
    fewer = write(tmp_path / "fewer.csv", values[:, :2], COLUMNS[:2])
    for path, named in ((turned, "order"), (more, "'colour'"), (fewer, "'price'")):
        capsys.readouterr()
        assert main(["score", run, path, "--out", str(tmp_path / "x.csv")]) == 2
        said = one_sentence(capsys.readouterr().err)
        assert named in said
        assert ("--reorder" in said) == (path != fewer)
        assert not (tmp_path / "x.csv").exists()
    assert main(["score", run, fresh, "--out", str(tmp_path / "a.csv")]) == 0
    for path in (turned, more):
        assert main(["score", run, path, "--reorder", "--out", str(tmp_path / "b.csv")]) == 0
        assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert main(["score", run, fewer, "--reorder"]) == 2


def test_bad_rows_stop_or_stay_empty(tmp_path: Path, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = rows(50, seed=9)
    values[17, 1], values[30, 0] = np.nan, np.inf
    table = write(tmp_path / "bad.csv", values)
    out = tmp_path / "scores.csv"
    assert main(["score", run, table, "--out", str(out)]) == 2
    said = one_sentence(capsys.readouterr().err)
    assert "row 17" in said
    assert "'mass'" in said
    assert list(tmp_path.iterdir()) == [tmp_path / "bad.csv"]
    assert main(["score", run, table, "--keep-bad-rows", "--out", str(out)]) == 0
    assert "2 of them without a score" in capsys.readouterr().err
    scores = read_table(out)[1]
    assert sorted(np.flatnonzero(np.isnan(scores).all(axis=1))) == [17, 30]
    assert np.isfinite(np.delete(scores, [17, 30], axis=0)).all()


def test_empty_fields_on_standard_output(tmp_path: Path, run: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    values = rows(3, seed=9)
    values[1, 1] = np.nan
    assert main(["score", run, write(tmp_path / "bad.csv", values), "--keep-bad-rows"]) == 0
    assert capfdbinary.readouterr().out.decode().splitlines()[2] == ",,,"


def test_samples_are_reproducible_and_grow(tmp_path: Path, run: str) -> None:
    for name, words in {"a": ["-n", "30"], "b": ["-n", "60"], "c": ["--rows", "30", "--seed", "1"]}.items():
        assert main(["sample", run, *words, "--out", str(tmp_path / f"{name}.parquet")]) == 0
    (columns, a), (_, b), (_, c) = (read_table(tmp_path / f"{name}.parquet") for name in "abc")
    assert columns == COLUMNS
    assert a.shape == (30, 3)
    assert np.array_equal(a, b[:30])
    assert not np.array_equal(a, c)


def test_samples_score_as_the_model_says(tmp_path: Path, run: str) -> None:
    samples, scores = tmp_path / "samples.csv", tmp_path / "scores.csv"
    assert main(["sample", run, "-n", "2000", "--out", str(samples)]) == 0
    assert main(["score", run, str(samples), "--out", str(scores)]) == 0
    p_values = np.sort(read_table(scores)[1][:, 1:], axis=0)
    distance = np.abs(p_values - (np.arange(2000)[:, None] + 0.5) / 2000).max()
    assert distance < np.sqrt(np.log(2 * 3 / 1e-6) / (2 * 2000)) + 1 / 2000


def test_sample_streams_to_standard_output(run: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["sample", run, "-n", "5"]) == 0
    table = pa_csv.read_csv(io.BytesIO(capfdbinary.readouterr().out))
    assert table.column_names == list(COLUMNS)
    assert table.num_rows == 5


def test_closed_pipe_is_one_sentence(run: str) -> None:
    program = [sys.executable, "-m", "rosenblatt", "sample", run, "-n", "100000"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) == 2
    assert "closed" in one_sentence(said)


def test_plot_draws_from_the_runs_own_table_or_another(tmp_path: Path, run: str, fresh: str) -> None:
    for words in ([], ["--data", fresh]):
        folder = tmp_path / f"plots{len(words)}"
        assert main(["plot", run, "--out", str(folder), *words]) == 0
        assert {path.name for path in folder.iterdir()} == {"corner.png", "marginals.png", "pit.png", "training.png"}


def test_audit_passes_and_its_verdict_is_the_exit_code(
    run: str, fresh: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rosenblatt import testing

    assert main(["audit", run, "--data", fresh, "--seconds", "2"]) == 0
    assert "R16" in capsys.readouterr().out
    failed = testing.AuditReport([testing.AuditRow("R1", "round trip", "1", "0", False)])
    monkeypatch.setattr(testing, "audit", lambda *_, **__: failed)
    assert main(["audit", run, "--data", fresh]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_info_tells_model_columns_scores_and_citation(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", run]) == 0
    said = capsys.readouterr().out
    for text in ("nits hidden=8", "length, mass, price", "30, ", "test, model", cite("nits"), "model.safetensors"):
        assert text in said, text


def test_models_lists_each_with_its_citation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names()
    assert all(line.endswith(cite(line.split()[0])) for line in lines)
