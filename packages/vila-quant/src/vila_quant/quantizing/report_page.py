"""The page `quantization_report.html`."""

import html
import math
from collections.abc import Sequence
from typing import cast

from vila_quant.quantizing.report import BranchReport, LayerReport, QuantizationReport, Sizes

_STYLE = """
:root { color-scheme: light dark; --before: #9aa5b1; --after: #2f7d4f; --line: color-mix(in srgb, currentColor 20%,
transparent); } body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { overflow-wrap: anywhere; } .wide { overflow-x: auto; } table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
td:first-child, th:first-child { text-align: left; } code { overflow-wrap: anywhere; }
svg { width: 100%; min-width: 38rem; height: auto; }
svg text { fill: currentColor; font-size: 12px; text-anchor: middle; }
svg text.tick { text-anchor: end; } svg line { stroke: var(--line); }
.before { fill: var(--before); color: var(--before); } .after { fill: var(--after); color: var(--after); }
"""


def report_page(report: QuantizationReport) -> str:
    """Return the page; it loads nothing from elsewhere."""
    calibration, sizes = report.calibration, report.sizes
    rows = [(name, format_bytes(part.before), format_bytes(part.after)) for name, part in sizes.parts.items()]
    rows.append(("all", format_bytes(sizes.before), format_bytes(sizes.after)))
    given = {**report.options, "lora_path": report.adapter}
    options = [
        (key, _value(value)) for key, value in given.items() if value is not None and value is not False and value != []
    ]
    seconds = [(name, f"{value:.1f}") for name, value in report.seconds.items()]
    title = html.escape(f"Quantization of {report.model}")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{_STYLE}</style>
<h1>{title}</h1>
<p>Method <b>{html.escape(report.method)}</b>, on {html.escape(report.device)}.
Quantization error: <b>{report.remaining:.1%}</b> of plain rounding's.
Size: {format_bytes(sizes.before)} before, <b>{format_bytes(sizes.after)}</b> after.</p>
<h2>Error by layer</h2>
<p>Mean squared error of each layer's output, relative to the power of its update (logarithmic scale):
<span class="before">■</span> rounded to nearest, <span class="after">■</span> as quantized.</p>
{loss_plot(report.layers)}
{_head_and_tower(report)}
<h2>Sizes</h2>{_table(("part", "before", "after"), rows)}
<p>Expected memory at run time: {format_bytes(sizes.after)} of weights{_cache(sizes)}, plus activations.</p>
<h2>Calibration</h2>
<p>{html.escape(calibration.source)}: {calibration.samples} samples
in {calibration.sequences} sequences of {calibration.sequence_length} tokens.
SHA-256 <code>{calibration.digest}</code></p>
<h2>Options</h2>{_table(("option", "value"), options)}
<h2>Seconds</h2>{_table(("phase", "seconds"), seconds)}
<p>Peak memory during quantization: {format_bytes(report.peak_memory_bytes)}.
vila-quant {html.escape(report.version)}.</p>
</html>
"""


def loss_plot(layers: Sequence[LayerReport]) -> str:
    """Return an SVG with two bars per layer on a logarithmic scale: the error of plain rounding, and of this run."""
    width, height, left, bottom, top = 800, 260, 56, 24, 12
    shares = [(layer.mse_nearest / max(layer.power, 1e-30), layer.mse / max(layer.power, 1e-30)) for layer in layers]
    decades = [math.floor(math.log10(share)) for pair in shares for share in pair if share > 0] or [0]
    low, high = min(decades), max(decades) + 1
    scale = (height - bottom - top) / (high - low)

    def y_of(share: float) -> float:
        return height - bottom - scale * (max(math.log10(share), low) - low) if share > 0 else height - bottom

    step = (width - left) / max(len(shares), 1)
    marks: list[str] = []
    for index, pair in enumerate(shares):
        for place, (kind, share) in enumerate(zip(("before", "after"), pair, strict=True)):
            x, y = left + step * (index + 0.12 + 0.38 * place), y_of(share)
            marks.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{step * 0.36:.1f}" '
                f'height="{height - bottom - y:.1f}"><title>layer {index}: {share:.3g}</title></rect>'
            )
        if len(shares) <= 40 or index % 5 == 0:
            marks.append(f'<text x="{left + step * (index + 0.5):.1f}" y="{height - 8}">{index}</text>')
    for decade in range(low, high + 1):
        y = height - bottom - scale * (decade - low)
        marks.append(f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}">{10.0**decade:g}</text>')
    label = "Error by layer, rounded to nearest and as quantized"
    drawing = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(marks)}</svg>'
    return f'<div class="wide">{drawing}</div>'


def _head_and_tower(report: QuantizationReport) -> str:
    """Return the errors of the output head and the vision tower, as far as they are quantized."""
    parts: list[str] = []
    if report.head_error is not None:
        parts.append(f"<h2>Output head</h2><p>Relative error of the scores: <b>{report.head_error:.2%}</b>.</p>")
    if report.vision:
        mean = sum(branch.error for branch in report.vision) / len(report.vision)
        rows = [(branch.branch, _alpha(branch), f"{branch.error:.2%}") for branch in report.vision]
        parts.append(
            f"<h2>Vision tower</h2><p>Relative error of each branch's output, on average <b>{mean:.2%}</b>.</p>"
            f"<details><summary>By branch</summary>{_table(('branch', 'α', 'error'), rows)}</details>"
        )
    return "\n".join(parts)


def _alpha(branch: BranchReport) -> str:
    return "" if branch.alpha is None else f"{branch.alpha:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>'


def _cache(sizes: Sizes) -> str:
    if sizes.cache_bytes is None:
        return ""
    return f", {format_bytes(sizes.cache_bytes)} of KV cache for {sizes.context} tokens in 16 bits"


def _value(value: object) -> str:
    return ", ".join(map(str, cast("list[object]", value))) if isinstance(value, list) else str(value)


def format_bytes(count: int) -> str:
    """Return "1.23 GB" or "4.5 MB"."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
