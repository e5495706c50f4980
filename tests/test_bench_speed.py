"""The speed benchmark's arithmetic: counted multiply-adds, ratios within rounds, merged results, the report's text."""

import copy
import json
import re

import pytest
import torch
from torch import nn

from benchmarks.__main__ import main as benchmarks_main
from benchmarks.speed import processes, report, results
from benchmarks.speed.command import SECTIONS, line, parse
from benchmarks.speed.contest import Plan, build, contest
from benchmarks.speed.floor import multiply_adds
from benchmarks.speed.libraries import ours
from benchmarks.speed.pictures import fastest_peers
from benchmarks.speed.rounds import Effort, interleave, ratio, summary
from benchmarks.speed.sizes import Size

MACHINE = {"processor": "a processor", "cores": 2, "system": "Linux", "versions": {"torch": "2"}}


def brute_force_count(layer):
    """Weights of one layer that move its output when they move."""
    x = torch.randn(1, layer.weight.shape[1])
    count = 0
    with torch.no_grad():
        before = layer(x)
        for entry in layer.weight.view(-1):
            kept = entry.item()
            entry.add_(1.0)
            count += int(not torch.equal(layer(x), before))
            entry.fill_(kept)
    return count


@pytest.mark.parametrize("family", ["maf", "nsf_ar", "nsf_c", "nits"])
def test_multiply_adds_are_the_weights_that_matter(family):
    flow = ours(Size(family, 3, hidden=4, transforms=2)).module
    layers = [part for part in flow.modules() if getattr(getattr(part, "weight", None), "ndim", 0) == 2]
    assert len(layers) == 6  # in each of two transforms: into the hidden units, between them, out of them
    counts = [brute_force_count(layer) for layer in layers]
    work = multiply_adds(flow)
    assert work["log_prob"] == sum(counts)
    # Forward and the weights' gradients for all layers; the input's gradient for all but the first.
    assert work["train"] == 2 * sum(counts) + sum(counts[1:])


def test_unmasked_layers_count_in_full():
    assert multiply_adds(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))) == {"log_prob": 25, "train": 60}


@pytest.mark.parametrize(("family", "numbers"), [("maf", 2), ("nsf_ar", 23), ("nits", 320)])
def test_our_networks_have_two_plain_hidden_layers(family, numbers):
    features, hidden = 5, 16
    layers = [(features, hidden), (hidden, hidden), (hidden, features * numbers)]
    expected = 2 * sum(inputs * outputs + outputs for inputs, outputs in layers)
    model = ours(Size(family, features, hidden=hidden, transforms=2))
    assert model.counts()["weights"] == expected
    assert model.note == ""


def test_one_step_moves_every_weight_that_matters():
    model = ours(Size("maf", 3, hidden=8, transforms=1))
    before = copy.deepcopy(model.module.state_dict())
    model.train(torch.randn(64, 3).numpy())()
    for name, value in model.module.state_dict().items():
        assert not torch.equal(value, before[name]), name


def test_rounds_interleave_and_the_slow_sit_out():
    called = []

    def contestant(name, seconds):
        def call():
            called.append(name)
            return seconds

        return call

    effort = Effort(rounds=5, slow_rounds=2, slow_seconds=1.0)
    series = interleave({"a": contestant("a", 0.1), "b": contestant("b", 0.2), "slow": contestant("slow", 9.0)}, effort)
    assert series == {"a": [0.1] * 5, "b": [0.2] * 5, "slow": [9.0, 9.0, None, None, None]}
    assert called[:3] == ["a", "b", "slow"]  # warming up
    later = called[3:]
    assert sorted(later[:3]) == sorted(later[3:6]) == ["a", "b", "slow"]
    assert [sorted(later[start : start + 2]) for start in (6, 8, 10)] == [["a", "b"]] * 3
    orders = {tuple(name for name in later[start : start + 3] if name != "slow") for start in (0, 3)}
    orders |= {tuple(later[start : start + 2]) for start in (6, 8, 10)}
    assert len(orders) == 2  # either goes first at times


def test_ratios_are_taken_within_a_round():
    ours_then, theirs_then = [1.0, 10.0, 2.0], [2.0, 30.0, None]
    assert ratio(theirs_then, ours_then) == {"ratio": 2.5, "ratio_range": [2.0, 3.0]}
    assert ratio(theirs_then, ours_then, "floor_ratio")["floor_ratio"] == 2.5
    assert summary(theirs_then) == {"seconds": 16.0, "seconds_range": [2.0, 30.0], "rounds": 2}


def record(**changes):
    plain = {
        "section": "compare",
        "family": "maf",
        "features": 6,
        "hidden": 256,
        "transforms": 5,
        "quantity": "train",
        "rows": 512,
        "library": "rosenblatt",
        "threads": 2,
        "seconds": 0.25,
        "seconds_range": [0.2, 0.3],
        "rounds": 7,
        "first_call_seconds": 0.5,
        "weights": 1234,
        "visible": 1000,
        "gemm_rate": 4e10,
    }
    return {**plain, **changes}


def peer(**changes):
    return record(**{"library": "zuko", "ratio": 3.25, "ratio_range": [3.0, 3.5], **changes})


def merged(records, machine=MACHINE):
    return results.merge({"command": "", "machines": {}, "records": {}}, records, machine)


def test_a_partial_run_replaces_its_own_figures_alone(tmp_path):
    path = tmp_path / "speed.json"
    wide = record(section="scaling", hidden=512, seconds=9.0)
    first = merged([record(), record(features=43), record(section="scaling"), wide])
    results.save(first, path)
    other = {**MACHINE, "cores": 4}
    second = results.merge(results.load(path), [record(seconds=0.125)], other)
    assert len(second["records"]) == 4
    assert {name: old["seconds"] for name, old in second["records"].items()} == {
        results.key(record()): 0.125,
        results.key(record(features=43)): 0.25,
        results.key(record(section="scaling")): 0.25,
        results.key(wide): 9.0,
    }
    assert sorted(machine["cores"] for machine in second["machines"].values()) == [2, 4]
    replaced = results.merge(second, list(second["records"].values()), other)
    assert [machine["cores"] for machine in replaced["machines"].values()] == [4]  # no figure of the first is left
    json.dumps(replaced)


def test_an_absent_results_file_is_empty(tmp_path):
    assert results.load(tmp_path / "none.json")["records"] == {}


EVERY_SECTION = [
    record(floor_ratio=4.5, floor_ratio_range=[4.0, 5.0], floor_seconds=0.05),
    peer(),
    peer(library="nflows", ratio=0.5, ratio_range=[0.4, 0.6]),
    peer(library="flowjax", ratio=0.25, ratio_range=[0.2, 0.3]),
    record(library="rosenblatt+compile", ratio=0.75, ratio_range=[0.7, 0.8]),
    record(quantity="log_prob", rows=10_000),
    peer(quantity="log_prob", rows=10_000),
    record(quantity="sample", rows=1000),
    peer(quantity="sample", rows=1000),
    record(family="nits", features=63, transforms=1),
    peer(library="zuko UNAF", family="nits", features=63, transforms=1, rounds=3),
    record(section="floor", floor_ratio=2.5, floor_ratio_range=[2.0, 3.0], floor_seconds=0.1, hidden=1024),
    record(section="samples", quantity="sample", rows=1000, sample_ratio=1.75, sample_ratio_range=[1.5, 2.0]),
    record(section="nits_cost", family="nits", dataset="power", authors_seconds=0.48, authors_ratio=1.92),
    record(section="scaling", features=16, rows=4096),
    peer(section="scaling", features=16, rows=4096),
    record(section="imports", family=None, quantity="import", statement="import that"),
    record(section="memory", quantity="memory", bytes=300 * 2**20, start_bytes=2**28),
]


def test_the_report_renders_every_section():
    text = report.render(merged(EVERY_SECTION))
    for wanted in (
        "| MAF | 6 | 250 ms | **3.25** (3.00 to 3.50) | **0.50** (0.40 to 0.60) |  | **0.25** (0.20 to 0.30) | **4.5",
        "| zuko UNAF | 63 | 250 ms, **3.25** (3.00 to 3.50) |  |  | 1,234 |",
        "| MAF | 6 | Train step, 512 rows | 250 ms, **0.75** (0.70 to 0.80) |",
        "| MAF | train step | 1024 | 250 ms | 100 ms | **2.50** (2.00 to 3.00) |",
        "| MAF | 6 | 250 ms, **1.75** (1.50 to 2.00) |  |",
        "| power | 6 | 0.25, 0.48: **1.92** |  |  | 0.21 |",
        "| `import that` | 250 ms |",
        "| MAF | 6 | 300 |",
        "images/speed_scaling.png",
        "a processor, 2 cores, 2 thread(s) used; torch 2.",
    ):
        assert wanted in text, wanted
    assert max(len(row) for row in text.splitlines() if not row.startswith("|")) <= 120
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({row.count("|") for row in block.splitlines()}) == 1, block


def test_a_report_of_little_says_little():
    text = report.render(merged([record(), peer()]))
    assert re.findall(r"^#+ (.*)$", text, re.MULTILINE) == [
        "Speed",
        "Train step, 512 rows",
        "What is equal, and what is not",
        "Weights",
    ]


def test_the_report_and_its_pictures_are_written(tmp_path, monkeypatch):
    stored = tmp_path / "speed.json"
    results.save(merged(EVERY_SECTION), stored)
    monkeypatch.setattr(results, "load", lambda: json.loads(stored.read_text()))
    report.write_report(tmp_path / "speed.md")
    assert (tmp_path / "speed.md").read_text().startswith("# Speed")
    for picture in ("speed.png", "speed_scaling.png"):
        assert (tmp_path / "images" / picture).stat().st_size > 10_000


def test_the_picture_shows_the_fastest_pytorch_library():
    (shown,) = fastest_peers(EVERY_SECTION, "train")
    assert shown["library"] == "nflows"  # flowjax is faster, but no PyTorch library


def test_a_measured_line_says_what_and_how_much():
    assert line(peer()) == "compare maf train 6 512 256 5 zuko: 0.25 s, 3.25 (3.00 to 3.50) times ours"


def test_a_process_measures_and_says_what_it_cannot(capsys):
    with processes.started(["rosenblatt"], 1) as running:
        size = {"family": "maf", "features": 2, "hidden": 8, "transforms": 1}
        contestant = build("rosenblatt", running["rosenblatt"], size)
        about = {"section": "compare", **size, "quantity": "log_prob", "rows": 16}
        (measured,) = contest([contestant], about, Plan(["rosenblatt"], threads=1, effort=Effort(rounds=2)))
        assert build("rosenblatt", running["rosenblatt"], {**size, "family": "none"}) is None
        with pytest.raises(processes.WorkerError, match="KeyError"):
            running["rosenblatt"].ask("time", name="never built", quantity="train", rows=1, features=2)
    assert measured["rounds"] == 2
    assert measured["seconds"] > 0
    # The floor is the counted work at the measured rate.
    assert measured["floor_seconds"] * measured["gemm_rate"] == pytest.approx(16 * measured["visible"], rel=0.5)
    assert "left out: KeyError" in capsys.readouterr().err


def test_a_library_that_is_not_installed_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None if name == "flowjax" else object())
    assert processes.installed(["rosenblatt", "zuko", "flowjax"]) == ["rosenblatt", "zuko"]
    said = capsys.readouterr().err
    assert "flowjax is not installed and is left out" in said
    assert "bench-jax" in said


def test_options_choose_sections():
    assert parse([]).sections is None
    assert parse(["--floor", "--nits-cost"]).sections == ["floor", "nits-cost"]
    assert parse(["--all"]).sections == list(SECTIONS)
    assert parse(["--families", "maf", "--features", "63"]).features == [63]


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmarks_main(["spede"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "invalid choice: 'spede'" in said
    assert "speed" in said
