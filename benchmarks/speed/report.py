"""docs/speed.md, written from the results file alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.speed import results
from benchmarks.speed.processes import ROOT
from benchmarks.speed.results import Record
from benchmarks.speed.sizes import COMPILED, OURS, PEERS

DOCUMENT = ROOT / "docs" / "speed.md"
WORDS = {
    "train": "Train step, 512 rows",
    "log_prob": "Log-density of 10,000 rows",
    "sample": "1,000 samples",
}
NAMES = {
    "maf": "MAF",
    "nsf_ar": "NSF, autoregressive",
    "nsf_c": "NSF, coupling",
    "nits": "NITS",
    "nits_random": "NITS, random output weights",
}

INTRODUCTION = """# Speed

Written from [the results file](../benchmarks/results/speed.json) by `python -m benchmarks speed --report`; do not edit.
Measure again, on a machine with nothing else to do, with

```sh
pip install -e ".[bench]" && python -m benchmarks speed    # with bench-jax instead of, or beside, bench: flowjax too
python -m benchmarks speed --all                           # every section of this page; hours
python -m benchmarks speed --families maf --features 63    # a part, merged into the results
```

A ratio is another library's time over ours in the same round: **above 1 we are faster**. Every library has a process
of its own and sleeps while another is measured; a round calls each once, in random order, and repeats calls shorter
than 20 ms. Quoted are medians over the rounds and, in brackets, the smallest and the largest round. A library whose
call takes more than 5 s takes part in fewer rounds (the results file has their number). Times of one machine in one
sitting say little about another: trust the ratios, and run it on yours.
"""

EQUAL = """## What is equal, and what is not

- Five transforms, each with a network of two hidden layers of 256 ReLU units, no residual blocks, no dropout, no batch
  normalisation, no LU layers; float32; rows drawn from a standard normal; weights at their start. NITS has one
  transform.
- MAF and autoregressive NSF turn the order of the columns around between layers, in every library but flowjax, which
  permutes them at random. Couplings transform either half in turn, with a free spline for the half that is conditioned
  on nothing: by default in zuko and normflows, switched on in nflows; flowjax leaves that half as it is.
- Splines are rational-quadratic with 8 bins on [-5, 5]. flowjax trains two end slopes more per spline.
- All PyTorch libraries get `torch.optim.Adam(fused=True)`; flowjax its own training step with optax's Adam,
  jit-compiled. Scoring and sampling run in eval mode without gradients. We run as we are by default: nothing of ours is
  compiled, except where the table says so.
- nflows and normflows build these plain networks with `num_blocks=1, use_residual_blocks=False`. The spline layers of
  normflows have no such option, so their network is exchanged for the plain one. Its `MaskedAffineAutoregressive` is
  turned around (`flows.Reverse`), or it would take one pass per column to score instead of to sample.
- zuko's coupling is an autoregression of two passes, with one masked network for both halves, hence its weight count.
- flowjax takes as many threads as it sees cores, so its process is kept to as many cores as the others have threads.
- NITS, with its one transform of 320 numbers per column, stands beside zuko's autoregressive NSF, NAF and UNAF with
  five transforms each and the same two hidden layers of 256 units. NAF and UNAF emit 16 numbers per column; their
  univariate networks are zuko's defaults.
"""

Row = list[str]


def write_report(path: Path = DOCUMENT) -> None:
    """Write the document and its pictures from the results file."""
    from benchmarks.speed import pictures

    stored = results.load()
    records = list(stored["records"].values())
    path.write_text(render(stored))
    pictures.ratios(records, path.parent / "images" / "speed.png")
    if select(records, section="scaling"):
        pictures.scaling(records, path.parent / "images" / "speed_scaling.png")


def render(stored: dict[str, Any]) -> str:
    """The document as text; a section that has no records is left out."""
    records = list(stored["records"].values())
    parts = [
        INTRODUCTION,
        _machines(stored["machines"], records),
        *(_comparison(records, quantity) for quantity in WORDS),
        _beside_nits(records),
        _compiled(records),
        EQUAL + _notes(records),
        _weights(records),
        _floor(records),
        _samples(records),
        _nits_cost(records),
        _scaling(records),
        _imports(records),
        _memory(records),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def select(records: Iterable[Record], **wanted: object) -> list[Record]:
    """Records whose fields have these values."""
    return [record for record in records if all(record.get(name) == value for name, value in wanted.items())]


def duration(seconds: float) -> str:
    """Seconds or milliseconds with three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def spread(record: Record, name: str = "ratio") -> str:
    """A ratio with its range."""
    low, high = record[f"{name}_range"]
    return f"**{record[name]:.2f}** ({low:.2f} to {high:.2f})"


def table(head: Row, rows: list[Row]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _sizes(records: list[Record]) -> list[tuple[str, int]]:
    """Families in their usual order with their numbers of columns."""
    order = list(NAMES)
    return sorted({(r["family"], r["features"]) for r in records}, key=lambda size: (order.index(size[0]), size[1]))


def _machines(machines: dict[str, Any], records: list[Record]) -> str:
    lines = []
    for name, machine in machines.items():
        threads = sorted({record["threads"] for record in records if record["machine"] == name})
        versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
        used = " or ".join(map(str, threads))
        lines.append(f"{machine['processor']}, {machine['cores']} cores, {used} thread(s) used; {versions}.")
    if len(lines) > 1:
        lines.insert(0, "The figures come from more than one machine or set of versions; the results file says which.")
    return "\n\n".join(lines)


def _comparison(records: list[Record], quantity: str) -> str:
    found = select(records, section="compare", quantity=quantity)
    rows = []
    for family, features in _sizes(select(found, library=OURS)):
        of = {record["library"]: record for record in select(found, family=family, features=features)}
        cells = [spread(of[peer]) if peer in of else "" for peer in PEERS]
        over = spread(of[OURS], "floor_ratio") if "floor_ratio" in of[OURS] else ""
        rows.append([NAMES[family], str(features), duration(of[OURS]["seconds"]), *cells, over])
    if not rows:
        return ""
    head = ["", "D", "ours", *(f"{peer} / ours" for peer in PEERS), "ours / floor"]
    if quantity == "sample":
        head, rows = head[:-1], [row[:-1] for row in rows]
    picture = (
        "\n![Time of the fastest other PyTorch library over ours](images/speed.png)\n" if quantity == "train" else ""
    )
    return f"## {WORDS[quantity]}\n{picture}\n{table(head, rows)}"


def _beside_nits(records: list[Record]) -> str:
    found = [r for r in select(records, section="compare", family="nits") if r["library"].startswith("zuko ")]
    rows = []
    for library, features in sorted({(r["library"], r["features"]) for r in found}):
        of = {r["quantity"]: r for r in select(found, library=library, features=features)}
        cells = [f"{duration(of[q]['seconds'])}, {spread(of[q])}" if q in of else "" for q in WORDS]
        rows.append([library, str(features), *cells, f"{of['train']['weights']:,}" if "train" in of else ""])
    head = ["", "D", *(f"{words}, over NITS" for words in WORDS.values()), "weights"]
    return f"### NITS beside five transforms of others\n\n{table(head, rows)}" if rows else ""


def _compiled(records: list[Record]) -> str:
    found = [r for r in select(records, section="compare") if r["library"] in COMPILED]
    rows = []
    for family, features in _sizes(found):
        for quantity, words in WORDS.items():
            of = {r["library"]: r for r in select(found, family=family, features=features, quantity=quantity)}
            if of:
                cells = [f"{duration(of[c]['seconds'])}, {spread(of[c])}" if c in of else "" for c in COMPILED]
                first = ", ".join(duration(of[c]["first_call_seconds"]) for c in COMPILED if c in of)
                rows.append([NAMES[family], str(features), words, *cells, first])
    head = ["", "D", "", "ours, compiled, over ours", "zuko, compiled, over ours", "first calls"]
    text = "The density behind `torch.compile`, mode default, fixed shapes, over ours as it is (not compiled)."
    return f"### With torch.compile\n\n{text}\n\n{table(head, rows)}" if rows else ""


def _notes(records: list[Record]) -> str:
    notes = sorted({f"- {NAMES[r['family']]} of {r['library']}: {r['note']}.\n" for r in records if r.get("note")})
    return "".join(notes)


def _weights(records: list[Record]) -> str:
    found = select(records, section="compare")
    rows = []
    for family, features in _sizes(select(found, library=OURS)):
        of = {r["library"]: r for r in select(found, family=family, features=features)}
        cells = [f"{of[lib]['weights']:,} ({of[lib]['visible']:,})" if lib in of else "" for lib in (OURS, *PEERS)]
        rows.append([NAMES[family], str(features), *cells])
    text = "All trained numbers, and in brackets the matrix entries that no mask hides."
    return f"### Weights\n\n{text}\n\n{table(['', 'D', OURS, *PEERS], rows)}" if rows else ""


def _floor(records: list[Record]) -> str:
    rows = []
    for record in sorted(
        select(records, section="floor"), key=lambda r: (list(NAMES).index(r["family"]), r["quantity"], r["hidden"])
    ):
        cells = [duration(record["seconds"]), duration(record["floor_seconds"]), spread(record, "floor_ratio")]
        what = "train step" if record["quantity"] == "train" else "log-density"
        rows.append([NAMES[record["family"]], what, str(record["hidden"]), *cells])
    if not rows:
        return ""
    text = """## The floor

The multiply-adds that the masks leave, divided by the rate of the best large float32 `torch.mm` of the same round. A
log-density costs one per visible matrix entry and row; a train step three, less the input gradient of the very first
layer. What the univariate maps compute is not in the floor. 63 columns, 2,048 rows, two hidden layers.
"""
    return text + "\n" + table(["", "", "hidden", "ours", "floor", "ours / floor"], rows)


def _samples(records: list[Record]) -> str:
    found = select(records, section="samples")
    rows = []
    for family, features in _sizes(found):
        of = {record["rows"]: record for record in select(found, family=family, features=features)}
        cells = [
            f"{duration(of[n]['seconds'])}, {spread(of[n], 'sample_ratio')}" if n in of else "" for n in (1000, 10_000)
        ]
        rows.append([NAMES[family], str(features), *cells])
    text = """## Sampling over scoring

Our n samples over our log-density of n rows, in brackets the range over rounds. NITS solves for its quantiles, which
takes longer where its CDFs are steep: it stands here once with the weights it starts from, and once with output weights
a hundred times as large, the usual random size.
"""
    return text + "\n" + table(["", "D", "n = 1,000", "n = 10,000"], rows) if rows else ""


def _nits_cost(records: list[Record]) -> str:
    found = select(records, section="nits_cost")
    rows = []
    for dataset, features in sorted({(r["dataset"], r["features"]) for r in found}, key=lambda pair: pair[1]):
        of = {r["quantity"]: r for r in select(found, dataset=dataset)}
        cells = []
        for quantity in ("train", "log_prob", "sample"):
            r = of.get(quantity)
            cells.append(f"{r['seconds']:.3g}, {r['authors_seconds']:g}: **{r['authors_ratio']:.2f}**" if r else "")
        rows.append([dataset, str(features), *cells, _gemm(list(of.values()))])
    text = """## NITS at its published sizes

CPU-seconds of one thread, random weights: ours, the authors' code, and theirs over ours. **The figures of the authors'
code were measured on an unnamed machine, which may differ from ours, so the ratios are indications.** The last
column is what one product of two 2048 x 2048 float32 matrices took in our rounds.
"""
    head = ["", "D", "train step, 512 rows", "log-density, 2,000 rows", "256 samples", "matrix product"]
    return text + "\n" + table(head, rows) if rows else ""


def _gemm(records: list[Record]) -> str:
    return f"{2048**3 / max(record['gemm_rate'] for record in records):.2f}"


def _scaling(records: list[Record]) -> str:
    if not select(records, section="scaling"):
        return ""
    return """## Scaling

One size at a time from 4,096 rows, 16 columns, width 256 and 5 transforms; medians of three rounds.

![Times of ours and zuko over rows, columns, width and depth](images/speed_scaling.png)
"""


def _imports(records: list[Record]) -> str:
    found = sorted(select(records, section="imports"), key=lambda r: r["seconds"])
    rows = [[f"`{r['statement']}`", duration(r["seconds"]), spread(r) if "ratio" in r else ""] for r in found]
    text = "A fresh interpreter from start to exit, nothing subtracted."
    return f"## Import\n\n{text}\n\n{table(['', 'seconds', 'over ours'], rows)}" if rows else ""


def _memory(records: list[Record]) -> str:
    found = select(records, section="memory")
    rows = []
    for family, features in _sizes(found):
        of = {r["library"]: r for r in select(found, family=family, features=features)}
        rows.append(
            [
                NAMES[family],
                str(features),
                *(f"{of[n]['bytes'] / 2**20:.0f}" if n in of else "" for n in (OURS, *PEERS)),
            ]
        )
    text = "Largest resident memory, in MiB, of a fresh process that builds the model and scores 10,000 rows once."
    return f"## Memory\n\n{text}\n\n{table(['', 'D', OURS, *PEERS], rows)}" if rows else ""
