"""The table of models: a new one is one row here, and the suite runs on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rosenblatt.models  # noqa: F401 - enters every model in the registry
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.transform import Compose
from rosenblatt.core.types import Likelihood
from rosenblatt.layers.scaling import Standardise
from rosenblatt.layers.support import SupportMap
from rosenblatt.testing.tables import ModelRow, disturbed, image_of, rows_like_data

_WIDTHS = [8, 8, 1]
_SMALL_DDN: dict[str, Any] = {"bins": 32, "channels": [4], "codes": 4, "hidden": 8}


def _model(name: str, context: int = 0, **options: object) -> Callable[[int], Flow]:
    def make(features: int) -> Flow:
        model = build(name, features, context, options=dict(options), seed=0)
        if not isinstance(model, Flow):
            raise OptionError(f"model: '{name}' is no flow; the model checks are for flows.")
        given = rows_like_data(200, context, seed=5).float() if context else None
        model.initialise(rows_like_data(200, features).float(), given)
        return disturbed(model, 0.05)

    return make


def _fitted(name: str, **options: object) -> Callable[[int], Flow]:
    """A model whose `initialise` is the fit, after bent rows: on Gaussian ones it would do nothing."""

    def make(features: int) -> Flow:
        model = build(name, features, options=dict(options), seed=0)
        rows = rows_like_data(2000, features).float()
        model.initialise(rows + 0.4 * rows.roll(1, dims=-1).square())
        if not isinstance(model, Flow):
            raise OptionError(f"model: '{name}' is no flow; the model checks are for flows.")
        return disturbed(model, 0.05)

    return make


def _in_units(features: int) -> Flow:
    """NITS in a user's units: a half-line, an interval, and a far offset."""
    supports: list[list[float | None]] = [[0.0, None], [-1.0, 3.0], [None, None]]
    used = [supports[column % 3] for column in range(features)]
    scaling = Standardise([1.5] * features, [0.7] * features)
    return _model("nits", hidden=16, widths=_WIDTHS)(features).after(Compose([SupportMap(used), scaling]))


def _mtaf(features: int) -> Flow:
    """Light and heavy columns in turn."""
    df = [None, 5.0, None, 8.0][:features]
    return _model("mtaf", df=df, transforms=2, hidden=16)(features)


def _image_model(name: str, context: int = 0, **options: object) -> Callable[[int], Flow]:
    """A model of images in two scales; a single number is a single scale."""
    small = {"transforms": 1, "hidden": 8, "blocks": 1, **options}

    def make(features: int) -> Flow:
        return _model(name, context, image=image_of(features), levels=min(features, 2), **small)(features)

    return make


def _pixel_model(name: str, context: int = 0, **options: object) -> Callable[[int], Flow]:
    """A continuous model of images, pixel by pixel."""

    def make(features: int) -> Flow:
        return _model(name, context, image=image_of(features), filters=4, **options)(features)

    return make


MODELS: dict[str, ModelRow] = {
    row.name: row
    for row in (
        ModelRow("nits", _model("nits", hidden=16, widths=_WIDTHS), traced=True),
        ModelRow("nits_stacked", _model("nits", hidden=16, transforms=2, widths=[6, 1])),
        ModelRow(
            "nits_interval",
            _model("nits", hidden=16, interval=[-6.0, 6.0], widths=_WIDTHS),
            lower=-6.0,
            upper=6.0,
        ),
        ModelRow("nits_context", _model("nits", 2, hidden=16, widths=_WIDTHS), context=2),
        ModelRow("nits_low_rank", _model("nits", hidden=16, widths=_WIDTHS, head="low_rank", rank=3)),
        ModelRow("nits_shared", _model("nits", hidden=16, widths=_WIDTHS, head="shared")),
        ModelRow("nits_in_units", _in_units, traced=True),
        ModelRow("nits_conv", _pixel_model("nits_conv", widths=_WIDTHS)),
        ModelRow(
            "nits_conv_interval",
            _pixel_model("nits_conv", widths=[6, 1], interval=[-6.0, 6.0], stages=2),
            lower=-6.0,
            upper=6.0,
        ),
        ModelRow("pixelcnn_mol", _pixel_model("pixelcnn_mol", components=3, stages=2), traced=True),
        ModelRow("pixelcnn_mol_context", _pixel_model("pixelcnn_mol", 2, components=3, heads=2), context=2),
        ModelRow("maf", _model("maf", transforms=3, hidden=16), traced=True),
        ModelRow("maf_context", _model("maf", 2, transforms=2, hidden=16), context=2),
        ModelRow("maf_mixture", _model("maf", transforms=2, hidden=16, components=4)),
        ModelRow("maf_batch_norm", _model("maf", transforms=2, hidden=16, batch_norm=True)),
        ModelRow("iaf", _model("iaf", transforms=2, hidden=16)),
        ModelRow("iaf_linear", _model("iaf", 2, transforms=2, hidden=0), context=2),
        ModelRow("iaf_independent", _model("iaf", 2, transforms=0, hidden=8), context=2),
        ModelRow("iaf_context", _model("iaf", 2, transforms=2, hidden=16), context=2),
        ModelRow("realnvp", _model("realnvp", transforms=3, hidden=16)),
        ModelRow("realnvp_additive", _model("realnvp", transforms=3, hidden=16, additive=True)),
        ModelRow("realnvp_image", _image_model("realnvp")),
        ModelRow("realnvp_context", _model("realnvp", 2, transforms=2, hidden=16), context=2),
        ModelRow("realnvp_full", _model("realnvp", transforms=1, hidden=8, base="full"), factorised=False),
        ModelRow(
            "realnvp_resampled",
            _model("realnvp", transforms=1, hidden=8, base="resampled"),
            factorised=False,
            likelihood=Likelihood.ESTIMATE,
        ),
        ModelRow(
            "maf_conditional",
            _model("maf", 2, transforms=1, hidden=8, base="conditional"),
            context=2,
            factorised=False,
        ),
        ModelRow("glow", _model("glow", transforms=2, hidden=16)),
        ModelRow("glow_svd", _model("glow", transforms=2, hidden=16, linear="svd")),
        ModelRow("flowpp", _model("flowpp", transforms=2, components=3, hidden=16)),
        ModelRow("glow_image", _image_model("glow", 2), context=2),
        ModelRow("glow_emerging", _image_model("glow", convolution="emerging")),
        ModelRow("glow_periodic", _image_model("glow", convolution="periodic")),
        ModelRow("planar", _model("planar", transforms=4), far=True),
        ModelRow("planar_radial", _model("planar", transforms=3, radial=True), far=True),
        ModelRow("planar_context", _model("planar", 2, transforms=2, hidden=8), context=2, far=True),
        ModelRow("sylvester", _model("sylvester", transforms=2), far=True),
        ModelRow("sylvester_context", _model("sylvester", 2, transforms=1, hidden=8), context=2, far=True),
        ModelRow("comet", _fitted("comet", transforms=2, bins=4, hidden=16), far=True),
        ModelRow("comet_affine", _fitted("comet", transforms=2, coupling="affine", tail=0.1, hidden=16), far=True),
        ModelRow("comet_context", _model("comet", 2, tail=0.15, transforms=1, hidden=8), context=2, far=True),
        ModelRow("gaussianization", _model("gaussianization", transforms=2, components=4), far=True),
        ModelRow(
            "gaussianization_context",
            _model("gaussianization", 2, transforms=2, components=3, hidden=8),
            context=2,
            far=True,
        ),
        ModelRow("rad", _model("rad", transforms=2, hidden=16), factorised=False),
        ModelRow("rad_context", _model("rad", 2, transforms=1, hidden=8), context=2, factorised=False),
        ModelRow("flow_mixture", _model("flow_mixture", components=3, transforms=2, hidden=8), factorised=False),
        ModelRow(
            "flow_mixture_context",
            _model("flow_mixture", 2, components=2, transforms=1, hidden=8),
            context=2,
            factorised=False,
        ),
        ModelRow("rbig", _fitted("rbig", transforms=4, bins=8), far=True),
        ModelRow("rbig_pca", _fitted("rbig", transforms=3, bins=6, rotation="pca"), far=True),
        ModelRow("residual_flow", _model("residual_flow", transforms=2, hidden=16), far=True),
        ModelRow(
            "residual_flow_dense", _model("residual_flow", transforms=2, hidden=8, unit="tanh", dense=True), far=True
        ),
        ModelRow("residual_flow_context", _model("residual_flow", 2, transforms=1, hidden=12), context=2, far=True),
        ModelRow("cp_flow", _model("cp_flow", transforms=2, hidden=12), far=True),
        ModelRow("cp_flow_context", _model("cp_flow", 2, transforms=1, hidden=8, depth=3), context=2, far=True),
        ModelRow("nsf", _model("nsf", transforms=2, hidden=16), traced=True, far=True),
        ModelRow("nsf_coupling", _model("nsf", transforms=3, hidden=16, coupling=True), traced=True, far=True),
        ModelRow("nsf_context", _model("nsf", 2, transforms=2, hidden=16), context=2, far=True),
        ModelRow("nsf_parts", _model("nsf", transforms=2, hidden=16, parts=2), far=True),
        ModelRow("nsf_image", _image_model("nsf_image"), far=True),
        ModelRow("nsf_image_context", _image_model("nsf_image", 2, multi_scale=False), context=2, far=True),
        ModelRow("nsf_linear", _model("nsf", transforms=2, hidden=16, spline="linear", coupling=True), far=True),
        ModelRow("nsf_quadratic", _model("nsf", transforms=2, hidden=16, spline="quadratic"), far=True),
        ModelRow("nsf_cubic", _model("nsf", transforms=2, hidden=16, spline="cubic", linear="none"), far=True),
        ModelRow("quantile_flow", _model("quantile_flow", hidden=16, bins=5), traced=True, far=True),
        ModelRow("quantile_flow_cdf", _model("quantile_flow", hidden=16, bins=5, direction="cdf"), far=True),
        ModelRow("quantile_flow_context", _model("quantile_flow", 2, hidden=16, bins=5), context=2, far=True),
        ModelRow("quantile_flow_affine", _model("quantile_flow", hidden=16, family="affine")),
        ModelRow(
            "quantile_flow_sigmoid",
            _model("quantile_flow", hidden=16, family="deep_sigmoid", units=3, layers=1),
        ),
        ModelRow("quantile_flow_nits", _model("quantile_flow", hidden=16, family="nits", widths=_WIDTHS)),
        ModelRow("bernstein", _model("bernstein", transforms=2, hidden=16, degree=6), traced=True),
        ModelRow("bernstein_coupling", _model("bernstein", transforms=2, hidden=16, degree=6, coupling=True)),
        ModelRow("bernstein_context", _model("bernstein", 2, transforms=2, hidden=16, degree=6), context=2),
        ModelRow("mtaf", _mtaf, far=True),
        ModelRow("taf", _model("taf", transforms=2, hidden=16, df=10.0), far=True),
        ModelRow("gtaf", _model("gtaf", 2, transforms=2, hidden=16), context=2, far=True),
        ModelRow("tan", _model("tan", transforms=2, state=6, components=3)),
        ModelRow(
            "tan_context",
            _model("tan", 2, transforms=1, recurrence="shift", state=6, components=3, conditionals="masked", hidden=16),
            context=2,
        ),
        ModelRow("made_mixture", _model("made_mixture", hidden=16), far=True),
        ModelRow("ddn", _model("ddn", **_SMALL_DDN), factorised=False, far=True),
        ModelRow("ddn_context", _model("ddn", 2, orders=3, **_SMALL_DDN), context=2, factorised=False, far=True),
        ModelRow("ddn_order", _model("ddn", 2, orders=1, **_SMALL_DDN), context=2, far=True),
        ModelRow(
            "ddn_box",
            _model("ddn", orders=1, tails=False, latent=True, box=[-4.0, 4.0], **_SMALL_DDN),
            lower=-4.0,
            upper=4.0,
        ),
        ModelRow("mdn", _model("mdn", components=4), traced=True, far=True),
        ModelRow("mdn_context", _model("mdn", 2, components=3, hidden=8), context=2, far=True),
        ModelRow("mdn_diagonal", _model("mdn", 2, components=3, hidden=8, covariance="diagonal"), context=2, far=True),
        ModelRow("kmn", _model("kmn", centres=12), far=True),
        ModelRow("kmn_context", _model("kmn", 2, centres=8, scales=3, hidden=8), context=2, far=True),
        ModelRow("gaussian", _model("gaussian"), far=True),
        ModelRow("gaussian_context", _model("gaussian", 2), context=2, far=True),
        ModelRow("ffjord", _model("ffjord", hidden=8, layers=2, steps=2, solver="midpoint"), traced=True, far=True),
        ModelRow("ffjord_context", _model("ffjord", 2, hidden=8, layers=1, steps=1, transforms=2), context=2, far=True),
        ModelRow("flow_matching", _model("flow_matching", hidden=8, layers=1, steps=2), far=True),
        ModelRow("elf", _model("elf", transforms=2, units=6, hidden=16), traced=True, far=True),
        ModelRow("torus", _model("torus", hidden=16, bins=5)),
        ModelRow(
            "torus_moebius",
            _model("torus", 2, hidden=16, components=3, circle="moebius", coupling=True),
            context=2,
        ),
        ModelRow("sphere", _model("sphere", hidden=16, bins=5, transforms=2)),
        ModelRow(
            "sphere_moebius",
            _model("sphere", 2, hidden=16, bins=5, components=3, circle="moebius", transforms=1),
            context=2,
        ),
        ModelRow("sos", _model("sos", transforms=2, squares=2, hidden=16)),
        ModelRow("umnn", _model("umnn", transforms=1, units=4, cells=8, nodes=3, hidden=16)),
        ModelRow("naf_context", _model("naf", 2, transforms=1, units=4, hidden=16), context=2, far=True),
        ModelRow("bnaf", _model("bnaf", transforms=2, units=4), far=True),
        ModelRow("bnaf_gated", _model("bnaf", transforms=2, units=3, layers=1, gated=True), far=True),
        ModelRow("bnaf_context", _model("bnaf", 2, transforms=1, units=4), context=2, far=True),
        ModelRow("naf_dense", _model("naf", transforms=1, units=4, dense=True, hidden=16), far=True),
    )
}
