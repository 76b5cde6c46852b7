"""Write the report of a run and the model card into the quantized checkpoint's folder."""

import json
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from vila_core.checkpoint import Checkpoint
from vila_core.checkpoint.json_files import read_json
from vila_core.errors import CheckpointError
from vila_quant.quantizing.report import REPORT, QuantizationReport
from vila_quant.quantizing.report_page import format_bytes, report_page

ORIGINAL_CARD = "README.original.md"
"""The original's model card, unchanged."""


def write_report(report: QuantizationReport, source: Checkpoint, folder: Path) -> None:
    """Write the report as JSON and HTML, and the model card, into `folder`."""
    content = {**report.model_dump(mode="json"), "remaining_loss": report.remaining}
    (folder / f"{REPORT}.json").write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (folder / f"{REPORT}.html").write_text(report_page(report), encoding="utf-8")
    if (folder / "README.md").exists():
        (folder / "README.md").rename(folder / ORIGINAL_CARD)  # it may contain license terms
    (folder / "README.md").write_text(
        model_card(report, source, has_original=(folder / ORIGINAL_CARD).exists()), encoding="utf-8"
    )


def read_report(folder: Path) -> QuantizationReport | None:
    """Return the report of a finished run in `folder`; None if there is none, or it is another version's."""
    try:
        content = read_json(folder / f"{REPORT}.json")
        content.pop("remaining_loss", None)
        return QuantizationReport.model_validate(content)
    except (CheckpointError, ValidationError):
        return None


def model_card(report: QuantizationReport, source: Checkpoint, *, has_original: bool) -> str:
    """Return the model card. It contains nothing that differs from run to run."""
    name = " with ".join(part for part in (report.model, report.adapter) if part is not None)
    options, calibration, sizes = report.options, report.calibration, report.sizes
    skipped = [f"`{pattern}`" for pattern in cast("list[str]", options["skip"])]
    head = {"none": "16 bits", "int8": "int8 by rows", "int4": f"4 bits, groups of {options['group_size']}"}[
        str(options["lm_head"])
    ]
    tower = {"none": "16 bits", "int8": "int8, activations too (SmoothQuant)", "fp8": "fp8, activations too"}[
        str(options["vision"])
    ]
    front = ["library_name: vila-kit", "tags: [vila, quantized, awq, 4-bit]", *_license(source.license)]
    if "/" in report.model:  # a hub id
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
| size | {format_bytes(sizes.before)} → {format_bytes(sizes.after)} |

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
