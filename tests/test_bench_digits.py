"""The benchmark of digits, on a tiny budget: what it writes, and that images are not shared between its parts."""

import tomllib

import torch

from benchmarks.digits import ROOT, measure, split_digits


def test_parts_are_disjoint_and_whole():
    parts = split_digits(test=397, validation=200, seed=0)
    assert [len(part) for part in parts] == [1200, 200, 397]
    rows = {tuple(row.tolist()) for part in parts for row in part}
    assert len(rows) == 1797  # no digit twice
    assert all(((part >= 0) & (part <= 16) & (part == part.floor())).all() for part in parts)


def test_a_tiny_run_writes_exact_bits_and_their_paired_difference():
    config = tomllib.loads((ROOT / "configs" / "digits.toml").read_text())
    config["network"].update(filters=4, stages=1)
    config["models"]["nits_conv"]["widths"] = [4, 4, 1]
    config["fit"].update(max_steps=2, validate_every=1)
    threads = torch.get_num_threads()
    try:
        result = measure(config)
    finally:
        torch.set_num_threads(threads)
    first, second = (result["models"][name]["test_bits_per_dim"]["value"] for name in ("nits_conv", "pixelcnn_mol"))
    assert 1 < first < 6
    difference = result["paired_difference_test_bits_per_dim"]["nits_conv - pixelcnn_mol"]
    assert abs(difference["value"] - (first - second)) < 1e-6
    assert all(model["claim"] == "exact" for model in result["models"].values())
