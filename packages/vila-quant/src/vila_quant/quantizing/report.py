"""The report of a run, as `quantization_report.json` and `.html`, and the model card."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from vila_core.checkpoint import Checkpoint, estimate
from vila_core.config import Config
from vila_quant.calibration.embedding import Calibration

REPORT = "quantization_report"
ORIGINAL_CARD = "README.original.md"
"""The original's model card, unchanged."""
CONTEXT = 4096
"""Context length for the expected memory."""


class LayerReport(Config):
    """Mean squared error of a layer's output after plain rounding and after the search, and the power of its update."""

    layer: int
    mse_nearest: float
    mse: float
    power: float
    parts: dict[str, tuple[float, float]]
    seconds: float

    @classmethod
    def read(cls, layer: int, record: Mapping[str, object]) -> "LayerReport":
        """Return the report for the record of a finished layer."""
        return cls.model_validate({"layer": layer, **record})


class CalibrationReport(Config):
    """The calibration data; `digest` is the SHA-256 of token ids and pixels."""

    source: str
    samples: int
    sequences: int
    sequence_length: int
    digest: str

    @classmethod
    def of(cls, calibration: Calibration, source: str) -> "CalibrationReport":
        """Return the report of a calibration."""
        sequences, length = calibration.samples.shape
        return cls(
            source=source,
            samples=calibration.count,
            sequences=sequences,
            sequence_length=length,
            digest=calibration.digest,
        )


class PartSizes(Config):
    """Stored bytes of a part of the model, before and after."""

    before: int
    after: int


class Sizes(Config):
    """Stored bytes by part, and bytes of the KV cache of `context` tokens in 16 bits (None if unknown)."""

    parts: dict[str, PartSizes]
    context: int
    cache_bytes: int | None

    @property
    def before(self) -> int:
        return sum(part.before for part in self.parts.values())

    @property
    def after(self) -> int:
        return sum(part.after for part in self.parts.values())


class QuantizationReport(Config):
    """The report of a run; `adapter` is the one merged into `model`, as given by the caller."""

    model: str
    adapter: str | None
    method: str
    options: dict[str, object]
    device: str
    calibration: CalibrationReport
    layers: list[LayerReport]
    sizes: Sizes
    seconds: dict[str, float]
    peak_memory_bytes: int
    version: str

    @property
    def remaining(self) -> float:
        """The loss over all layers, relative to that of rounding to nearest."""
        return sum(layer.mse for layer in self.layers) / max(sum(layer.mse_nearest for layer in self.layers), 1e-30)


def sizes_of(before: Checkpoint, after: Checkpoint) -> Sizes:
    """Return the sizes of a checkpoint before and after."""
    whole, quantized = estimate(before), estimate(after)
    parts = {
        name: PartSizes(before=part.nbytes, after=quantized.parts[name].nbytes) for name, part in whole.parts.items()
    }
    return Sizes(parts=parts, context=CONTEXT, cache_bytes=whole.cache_bytes("bfloat16", CONTEXT))


def write_report(report: QuantizationReport, source: Checkpoint, folder: Path) -> None:
    """Write the report as JSON and HTML, and the model card, into `folder`."""
    content = {**report.model_dump(mode="json"), "remaining_loss": report.remaining}
    (folder / f"{REPORT}.json").write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (folder / f"{REPORT}.html").write_text(_page(report), encoding="utf-8")
    if (folder / "README.md").exists():
        (folder / "README.md").rename(folder / ORIGINAL_CARD)  # it may contain license terms
    (folder / "README.md").write_text(
        _card(report, source, has_original=(folder / ORIGINAL_CARD).exists()), encoding="utf-8"
    )


_STYLE = """
:root { color-scheme: light dark; --before: #9aa5b1; --after: #2f7d4f; --line: color-mix(in srgb, currentColor 20%,
transparent); } body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
td:first-child, th:first-child { text-align: left; } svg { width: 100%; height: auto; } code { overflow-wrap:
anywhere; } svg text { fill: currentColor; font-size: 11px; } .before { fill: var(--before); } .after { fill:
var(--after); }
"""


def _page(report: QuantizationReport) -> str:
    calibration, sizes = report.calibration, report.sizes
    rows = [(name, _size(part.before), _size(part.after)) for name, part in sizes.parts.items()]
    rows.append(("all", _size(sizes.before), _size(sizes.after)))
    given = {**report.options, "lora_path": report.adapter}
    options = [
        (key, _value(value)) for key, value in given.items() if value is not None and value is not False and value != []
    ]
    seconds = [(name, f"{value:.1f}") for name, value in report.seconds.items()]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Quantization of {html.escape(report.model)}</title><style>{_STYLE}</style>
<h1>Quantization of {html.escape(report.model)}</h1>
<p>Method <b>{html.escape(report.method)}</b>, on {html.escape(report.device)}.
The loss is <b>{report.remaining:.1%}</b> of that of plain rounding.
Size: {_size(sizes.before)} before, <b>{_size(sizes.after)}</b> after.</p>
<h2>Loss by layer</h2>
<p>Mean squared error of each layer's output, relative to the power of its update:
<span style="color:var(--before)">■</span> rounded to nearest, <span style="color:var(--after)">■</span> as
quantized.</p> {loss_plot(report)}
<h2>Sizes</h2>{_table(("part", "before", "after"), rows)}
<p>Expected memory at run time: {_size(sizes.after)} of weights{_cache(sizes)}, plus activations.</p>
<h2>Calibration</h2>
<p>{html.escape(calibration.source)}: {calibration.samples} samples
in {calibration.sequences} sequences of {calibration.sequence_length} tokens.
SHA-256 <code>{calibration.digest}</code></p>
<h2>Options</h2>{_table(("option", "value"), options)}
<h2>Seconds</h2>{_table(("phase", "seconds"), seconds)}
<p>Peak memory during quantization: {_size(report.peak_memory_bytes)}. vila-quant {html.escape(report.version)}.</p>
</html>
"""


def loss_plot(report: QuantizationReport) -> str:
    """Return an SVG with two bars per layer: the loss of rounding to nearest, and of this quantization."""
    width, height, left, bottom = 800, 260, 48, 24
    shares = [
        (layer.mse_nearest / max(layer.power, 1e-30), layer.mse / max(layer.power, 1e-30)) for layer in report.layers
    ]
    top = max((max(pair) for pair in shares), default=0) or 1.0
    step = (width - left) / max(len(shares), 1)
    bars: list[str] = []
    for index, pair in enumerate(shares):
        for place, (kind, share) in enumerate(zip(("before", "after"), pair, strict=True)):
            tall = (height - bottom - 12) * share / top
            x = left + step * (index + 0.12 + 0.38 * place)
            bars.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{height - bottom - tall:.1f}" width="{step * 0.36:.1f}" '
                f'height="{tall:.1f}">'
                f"<title>layer {index}: {share:.3g}</title></rect>"
            )
        if len(shares) <= 40 or index % 5 == 0:
            bars.append(
                f'<text x="{left + step * (index + 0.5):.1f}" y="{height - 8}" text-anchor="middle">{index}</text>'
            )
    ticks = [
        f'<text x="{left - 6}" y="{height - bottom - (height - bottom - 12) * part + 4:.1f}" text-anchor="end">'
        f"{top * part:.2g}</text>"
        for part in (0, 0.5, 1)
    ]
    label = "Loss by layer, rounded to nearest and as quantized"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join((*bars, *ticks))}</svg>'


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _cache(sizes: Sizes) -> str:
    return (
        ""
        if sizes.cache_bytes is None
        else f", {_size(sizes.cache_bytes)} of KV cache for {sizes.context} tokens in 16 bits"
    )


def _value(value: object) -> str:
    return ", ".join(map(str, cast("list[object]", value))) if isinstance(value, list) else str(value)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _card(report: QuantizationReport, source: Checkpoint, *, has_original: bool) -> str:
    """Return the model card. It contains nothing that differs from run to run."""
    name = " with ".join(
        Path(part).name if Path(part).exists() else part for part in (report.model, report.adapter) if part is not None
    )
    options, calibration, sizes = report.options, report.calibration, report.sizes
    skipped = [f"`{pattern}`" for pattern in cast("list[str]", options["skip"])]
    head = {"none": "16 bits", "int8": "int8 by rows", "int4": f"4 bits, groups of {options['group_size']}"}[
        str(options["lm_head"])
    ]
    tower = {"none": "16 bits", "int8": "int8, activations too (SmoothQuant)", "fp8": "fp8, activations too"}[
        str(options["vision"])
    ]
    front = ["library_name: vila-kit", "tags: [vila, quantized, awq, 4-bit]", *_license(source.license)]
    if "/" in report.model and not Path(report.model).exists():
        front.append(f"base_model: {report.model}")
    front_matter = "\n".join(front)
    original = (
        f"\nThe original's model card is [{ORIGINAL_CARD}]({ORIGINAL_CARD}); its license applies here too.\n"
        if has_original
        else ""
    )
    return f"""---
{front_matter}
---

# {name}, quantized

{name} with 4-bit weights, made by vila-quant {report.version} (`--search {report.method}`).

| | |
| --- | --- |
| linears of the language model | {options["bits"]} bits, groups of {options["group_size"]} |
| output head | {head} |
| vision tower | {tower} |
| not quantized | {", ".join(("embeddings, norms, projector", *skipped))} |
| calibration | {calibration.source}: {calibration.sequences} sequences of {calibration.sequence_length} tokens |
| size | {_size(sizes.before)} → {_size(sizes.after)} |

[{REPORT}.html]({REPORT}.html) shows the loss of each layer. Quantization changes answers: measure the effect on
your task (`vila-quant check`, `vila-eval`) before you rely on the model.
{original}
```python
import vila_core as vila

model = vila.load("path/to/this/folder")
print(model.generate([vila.Image("picture.jpg"), "What is in this picture?"]))
```
"""


def _license(stated: str | None) -> list[str]:
    """Return front matter for a license in the form of `Checkpoint.license`: "mit", or "other (its-name)"."""
    if stated is None:
        return []
    name, _, rest = stated.partition(" (")
    return [f"license: {name}", *([f"license_name: {rest.removesuffix(')')}"] if rest else [])]
