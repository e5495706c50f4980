"""`ImageDensity` fits a model of images in one call: bits, samples, completions and compressed files."""

from __future__ import annotations

import dataclasses
import math
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from rosenblatt import image_runs
from rosenblatt.compression import compress, decompress
from rosenblatt.core.density import Density
from rosenblatt.core.errors import CheckpointError, DataError, OptionError
from rosenblatt.data import Images
from rosenblatt.estimators.common import Floats, Learner, RandomState, count_of, fit_arguments, no_config
from rosenblatt.estimators.inputs import images_like, images_to_fit
from rosenblatt.eval import BitsPerDim, Estimate, mean_log_prob
from rosenblatt.eval.bits import bits_of
from rosenblatt.image_runs import ROWS_AT_ONCE
from rosenblatt.layers.discretised import Discretised
from rosenblatt.preparation import DataWarning, hold_out, plain, require_same_images, seed_of, source_of
from rosenblatt.summary import Comparison, Summary, new_run, write_summary
from rosenblatt.train import Fitter, RunFolder

Pixels = npt.NDArray[np.uint8]
OWN_OPTIONS = {"image": "the images", "levels": "the argument levels", "flip": "the argument flip"}


class ImageDensity(DensityMixin, Learner, BaseEstimator):  # type: ignore[misc]
    """Probability of images of whole-number pixels, learned by a model of them, in the manner of scikit-learn.

    `log P(x)` in nats per image, exact for "nits_conv" and "pixelcnn_mol", and
    `bits per dimension = -log P(x) / (channels height width log 2)`, whose `claim` says what the model's number is.

    `X` is what `Images.from_any` takes: a folder of pictures, a file (.npz, .npy, CIFAR-10, MNIST), a list of paths, an
    array or tensor (count, height, width) or with channels second or last, or `Images`. A single grey image is an array
    (1, height, width), a single one in colours (1, 3, height, width). It is no table, so scikit-learn's checks of
    estimators, which bring tables, do not apply; `clone`, `set_params` and `GridSearchCV` (over arrays) work.

    model, model_options: name of a model of images and its options.
    levels: numbers that a pixel can be, from 0; None: 256, or those of `Images`.
    shape: (channels, height, width) of images that come as flat rows, or in a sheet.
    flip: train on images turned left to right half of the time.
    epochs ... device: see `FitConfig`, whose other options `fit_options` takes; batch and rate suit causal networks.
    run, overwrite, verbose, random_state, provenance: as for `FlowDensity`. Run folders are those of `rosenblatt fit
        IMAGES`: `load` opens what the command line fitted, and the command line takes what was saved here.

    After `fit`: `model_` (in float64; `model_.float()` is faster and differs in the last digits), `shape_`, `levels_`,
    `report_` (`FitReport`), `run_` (`RunFolder` or None), `seed_`, and of the held-out images, else None,
    `validation_score_` (`Estimate`, nats per image) and `validation_bits_` (`BitsPerDim`). A run of `rosenblatt fit`
    also brings `test_bits_`. Errors are `DataError` and `OptionError`, both ValueErrors; remarks are `DataWarning`.
    References: van den Oord, Kalchbrenner & Kavukcuoglu, ICML 2016; Salimans et al., PixelCNN++, ICLR 2017.

    >>> from rosenblatt.data import digits
    >>> density = ImageDensity("pixelcnn_mol", model_options={"filters": 4}, max_steps=2, random_state=0).fit(digits())
    >>> density.bits_per_dim(digits()).claim, density.sample(3, random_state=1).shape
    ('exact', (3, 1, 8, 8))
    """

    def __init__(
        self,
        model: str = "nits_conv",
        *,
        model_options: Mapping[str, Any] | None = None,
        levels: int | None = None,
        shape: Sequence[int] | None = None,
        flip: bool = False,
        epochs: int = 100,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        validation_fraction: float = 0.1,
        patience: int | None = 10,
        ema_decay: float | None = 0.999,
        clip_norm: float | None = 5.0,
        time_limit: float | None = None,
        max_steps: int | None = None,
        dtype: str = "float32",
        device: str = "auto",
        fit_options: Mapping[str, Any] | None = None,
        run: str | Path | None = None,
        overwrite: bool = False,
        verbose: int = 0,
        random_state: RandomState = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.model_options = model_options
        self.levels = levels
        self.shape = shape
        self.flip = flip
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.ema_decay = ema_decay
        self.clip_norm = clip_norm
        self.time_limit = time_limit
        self.max_steps = max_steps
        self.dtype = dtype
        self.device = device
        self.fit_options = fit_options
        self.run = run
        self.overwrite = overwrite
        self.verbose = verbose
        self.random_state = random_state
        self.provenance = provenance

    def fit(self, X: object, y: object = None) -> Self:
        """Fit the model to images; `y` is ignored. Raises `DataError` for fewer than two, or all alike."""
        self.seed_ = seed_of(self.random_state)
        return self._train(self._to_fit(X), source_of(X), None)

    def score_samples(self, X: object) -> Floats:
        """Log-probability of each image in nats, (count,), or a lower bound where the model has bounds."""
        scores: Floats = self._scores(self._read(X)).numpy()
        return scores

    def log_prob(self, X: object) -> Floats:
        """The same as `score_samples`."""
        return self.score_samples(X)

    def score(self, X: object, y: object = None) -> float:
        """Mean log-probability per image, in nats, which GridSearchCV maximises; `y` is ignored."""
        return float(self._scores(self._read(X)).mean())

    def bits_per_dim(self, X: object) -> BitsPerDim:
        """Bits per dimension of at least two images, with standard error and claim: "exact" or "upper bound"."""
        return self._bits(mean_log_prob(self._scores(self._read(X))))

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> Pixels:
        """Draw images, uint8 (n_samples, channels, height, width), by the noise of `rosenblatt sample --seed`."""
        count = count_of("n_samples", n_samples)
        check_is_fitted(self)
        generator = _seeded(random_state)
        sizes = [min(ROWS_AT_ONCE, count - first) for first in range(0, count, ROWS_AT_ONCE)]
        with torch.no_grad():
            drawn = torch.cat([self.model_.sample(size, generator=generator).cpu() for size in sizes])
        return cast(Pixels, drawn.to(torch.uint8).reshape(count, *self.shape_).numpy())

    def inpaint(self, X: object, known_rows: int, draws: int = 8, random_state: RandomState = None) -> Pixels:
        """Draw what is below the first `known_rows` rows of pixels of each image, exactly, given these rows.

        Returns uint8 (count, draws, channels, height, width); see `image_runs.inpaint`.
        """
        model, images = self._exact(), self._read(X)
        drawn = image_runs.inpaint(model, images, known_rows, draws, generator=_seeded(random_state))
        return cast(Pixels, drawn.cpu().numpy())

    def compress(self, X: object, *, batch: int = 256) -> bytes:
        """Compress images without loss to their bits under the model (`compression.compress`); slow as sampling."""
        return compress(self._exact(), self._read(X), batch=batch)

    def decompress(self, file: bytes) -> Pixels:
        """Give back the images of a compressed file, uint8 (count, channels, height, width), bit for bit."""
        images = decompress(self._exact(), file)
        if not isinstance(images, Images):
            raise DataError("file: holds rows of a table, not images; use rosenblatt.compression.decompress.")
        return cast(Pixels, images.pixels.numpy())

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Self:
        """Read a fitted model from a run folder, its own or of `rosenblatt fit IMAGES`, at its best checkpoint.

        Raises `CheckpointError` for a folder that is missing, damaged or no run of a model of images.
        """
        run = RunFolder.open(path)
        model = image_runs.restore_image_model(run)
        return cls._from_config(run, run.config)._opened(model, run, run.config, device)

    @classmethod
    def resume(
        cls,
        run: str | Path,
        X: object = None,
        *,
        epochs: int | None = None,
        max_steps: int | None = None,
        time_limit: float | None = None,
        verbose: int = 0,
    ) -> Self:
        """Go on with an interrupted run as if it had never stopped, bit for bit.

        `X` must hold the images that the run was started with; None reads the file or folder that the run names. The
        rest is as for `FlowDensity.resume`.
        """
        folder = RunFolder.open(run)
        if not image_runs.holds_images(folder):
            raise CheckpointError(f"{run}: holds a model of tables; resume it by FlowDensity.resume.")
        estimator, facts = cls._from_config(folder, folder.config), folder.config["data"]
        estimator.run, estimator.verbose = folder.path, verbose
        estimator._set_given(epochs=epochs, max_steps=max_steps, time_limit=time_limit)
        if "is_file" not in facts:
            again = shlex.join(["rosenblatt", "fit", "--resume", str(run)])
            raise CheckpointError(f"{run}: made by the command line, which holds out test images; go on with: {again}")
        if X is None and not facts["is_file"]:
            raise DataError(f"X: the run {folder.path} was started with images in memory; pass the same again.")
        images = estimator._to_fit(facts["source"] if X is None else X)
        require_same_images(images, facts, folder.path)
        return estimator._train(images, facts, folder)

    def _train(self, images: Images, source: Mapping[str, Any], folder: RunFolder | None) -> Self:
        """Fit to `images`; with `folder` go on with the run that it holds."""
        config, options = self._fit_config(), plain(dict(self.model_options or {}))
        for name in OWN_OPTIONS.keys() & options.keys():
            raise OptionError(f"model_options: '{name}' is set by {OWN_OPTIONS[name]}; leave it out here.")
        remarks = images.check()
        for text in remarks:
            warnings.warn(text, DataWarning, stacklevel=3)
        train, held_out = hold_out(images, config)
        if held_out is None:
            config = dataclasses.replace(config, validation_fraction=0.0)
        model = image_runs.image_model(self.model, train, options=options, seed=self.seed_)
        shape = None if self.shape is None else [int(side) for side in self.shape]
        facts = {**source, "digest": images.digest(), "rows": len(images), "shape": shape, "warnings": remarks}
        described = image_runs.config_of_images(
            self.model, images, config, options=options, data=facts, provenance=self.provenance
        )
        run = folder
        if run is None and self.run is not None:
            run = new_run(self.run, described, overwrite=self.overwrite)
        fitter = Fitter(config, progress="auto" if self.verbose else False)
        report = fitter.fit(model, train, validation=held_out, run=run, resume=folder is not None)
        self._finish(model, run, described if folder is None else folder.config)
        summary = Summary(report, None if held_out is None else Comparison(mean_log_prob(self._scores(held_out))))
        self._conclude(summary)
        if run is not None:
            write_summary(run, summary)
        return self

    def _finish(self, model: Density, run: RunFolder | None, config: dict[str, Any]) -> None:
        # Scores in float64, so that they do not depend on which images are scored together.
        self.model_ = model.double().eval()
        self.shape_, self.levels_ = tuple(config["shape"]), int(config["levels"])
        self.run_, self._config = run, config

    def _conclude(self, summary: Summary | None) -> None:
        self._summary = summary
        self.report_ = None if summary is None else summary.report
        self.test_bits_ = None if summary is None else summary.bits
        compared = None if summary is None else summary.validation
        score = None if compared is None else compared.model
        self.validation_score_, self.validation_bits_ = score, None if score is None else self._bits(score)

    def _bits(self, score: Estimate) -> BitsPerDim:
        return bits_of(score, math.prod(self.shape_), self.model_.likelihood)

    def _scores(self, images: Images) -> Tensor:
        """Log-probability of each image, (count,), a part at a time."""
        like, parts = next(self.model_.parameters()), images.ordered_batches(ROWS_AT_ONCE)
        with torch.no_grad():
            return torch.cat([self.model_.log_prob(part.x.to(like)).cpu() for part in parts]).double()

    def _exact(self) -> Discretised:
        """The model, where it has exact probabilities of each pixel given those before it."""
        check_is_fitted(self)
        if not isinstance(self.model_, Discretised):
            raise OptionError(
                f"model: '{self.model}' has no exact probabilities of images ({self.model_.likelihood.value}), which "
                "this needs; fit one that has, such as nits_conv."
            )
        return self.model_

    def _to_fit(self, X: object) -> Images:
        return images_to_fit(X, levels=self.levels, shape=self.shape, flip=self.flip)

    def _read(self, X: object) -> Images:
        check_is_fitted(self)
        return images_like(X, self.shape_, self.levels_, read_as=self.shape)

    @classmethod
    def _from_config(cls, run: RunFolder, config: Mapping[str, Any]) -> Self:
        """An estimator with the arguments that a run's config tells of."""
        try:
            shape, flip = dict(config["data"]).get("shape"), bool(config.get("flip", False))
            estimator = cls(**fit_arguments(config), levels=config["levels"], shape=shape, flip=flip)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise no_config(run, error) from None
        estimator.seed_ = seed_of(estimator.random_state)
        return estimator

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags


def _seeded(random_state: RandomState) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(random_state))
