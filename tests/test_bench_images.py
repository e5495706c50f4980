"""The benchmark of images, on a tiny budget: what it writes, and that images are not shared between its parts."""

import tomllib

import pytest
import torch

from benchmarks.image_sets import image_parts
from benchmarks.images import ROOT, gather, train


def test_parts_are_disjoint_and_whole():
    parts = image_parts({"set": "digits", "test": 397, "validation": 200, "seed": 0})
    assert [len(part) for part in parts[:3]] == [1200, 200, 397]
    rows = {image.numpy().tobytes() for part in parts[:3] for image in part.pixels}
    assert len(rows) == 1797  # no digit twice
    assert all(int(part.pixels.max()) <= 16 for part in parts[:3])


def test_a_tiny_run_writes_exact_bits_and_their_paired_difference(tmp_path):
    config = tomllib.loads((ROOT / "configs" / "digits.toml").read_text())
    config["network"].update(filters=4, stages=1)
    config["models"]["nits_conv"]["widths"] = [4, 4, 1]
    config["fit"].update(max_steps=2, validate_every=1)
    parts = image_parts(config["data"])
    threads = torch.get_num_threads()
    try:
        for name in config["models"]:
            train(name, config, parts, tmp_path / name)
            assert set(gather(config, parts, tmp_path)["models"]) <= set(config["models"])  # of those trained so far
    finally:
        torch.set_num_threads(threads)
    result = gather(config, parts, tmp_path)
    first, second = (result["models"][name]["test_bits_per_dim"]["value"] for name in ("nits_conv", "pixelcnn_mol"))
    assert 1 < first < 6
    difference = result["paired_difference_test_bits_per_dim"]["nits_conv - pixelcnn_mol"]
    assert abs(difference["value"] - (first - second)) < 1e-6
    assert all(model["claim"] == "exact" for model in result["models"].values())
    again = train("nits_conv", config, parts, tmp_path / "nits_conv")  # what is finished is scored anew, not trained
    assert again["test_bits_per_dim"]["value"] == pytest.approx(first, abs=1e-12)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.toml")))
def test_configs_of_images_name_models_and_options_that_exist(name):
    config = tomllib.loads((ROOT / "configs" / name).read_text())
    if "network" not in config:
        return
    from rosenblatt.core.registry import build
    from rosenblatt.train import FitConfig

    FitConfig.from_dict(config["fit"])
    shape = {"digits": [1, 8, 8], "mnist": [1, 28, 28]}.get(config["data"]["set"], [3, 32, 32])
    with torch.device("meta"):
        for model, own in config["models"].items():
            features = shape[0] * shape[1] * shape[2]
            build(model, features, options={**config["network"], **own, "image": shape, "levels": 256})
