"""The page on calibration runs, and what it says of its two models is so."""

import runpy
from pathlib import Path

import pytest

from rosenblatt.eval import coverage_by_group, reliability

DOCS = Path(__file__).resolve().parent.parent / "docs"
MAKER = runpy.run_path(str(DOCS / "make_calibration.py"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return MAKER["run"](tmp_path_factory.mktemp("page"))


def test_the_flow_is_right_and_the_line_is_off_in_its_groups(made):
    x = made["x_test"][:, 0]
    # Over all rows neither is seen to be wrong, as the page says.
    assert all(reliability(u, false_alarm=1e-6).calibrated for u in made["u"].values())
    line = coverage_by_group(made["u"]["line"], x, bins=6)
    assert bool(line.off[0])
    assert bool(line.off[-1])
    assert float(line.share[0]) > 0.8 > float(line.share[-1])
    flow = coverage_by_group(made["u"]["flow"], x, bins=6, false_alarm=1e-6)
    assert flow.calibrated


def test_the_flow_is_sharper_and_scores_higher(made):
    assert (made["found"]["flow"].width < 0.85 * made["found"]["line"].width).all()
    (flow, _), (line, _) = (made["scores"][name]["log-likelihood, nats"] for name in ("flow", "line"))
    assert flow > line + 0.3


def test_pictures_of_the_page_are_there_and_small(made):
    page = (DOCS / "calibration.md").read_text()
    for name, file in MAKER["PICTURES"].items():
        assert made[name].axes
        assert f"(images/{file}.png)" in page
        assert (DOCS / "images" / f"{file}.png").stat().st_size < 100_000
