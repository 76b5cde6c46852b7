"""The results of a dry run as text."""

from collections.abc import Mapping
from statistics import mean, median

from vila_core.errors import listed
from vila_train.dry_run.measuring import Measured
from vila_train.estimates.memory import gigabytes
from vila_train.estimates.time import ASSUMED_MFU, hours_by_gpu
from vila_train.loss import Counts
from vila_train.packing.lanes import expected_padding
from vila_train.plan import row_length

MUCH_PADDING = 0.03
"""Share of rows. Where two samples seldom fit a row, no choice of samples fills it."""

Report = Mapping[str, Mapping[str, str]]
"""Titles -> names -> values."""


def describe(measured: Measured) -> Report:
    """Return the report by section."""
    return {
        "Data": _data(measured),
        f"Samples (the first {len(measured.encoded):,})": _samples(measured),
        "Model": _model(measured),
        "Steps": _steps(measured),
        f"Memory of each GPU, {measured.world_size} in all": _memory(measured),
        f"Time at {ASSUMED_MFU:.0%} of the GPU's peak": _time(measured),
    }


def _data(measured: Measured) -> Mapping[str, str]:
    counts = {
        part.source.name: f"{part.samples:,} samples per epoch"
        + ("" if part.weight == 1 else f" ({part.size:,} times {part.weight:g})")
        for part in measured.mixture.parts
    }
    return {**counts, "all": f"{len(measured.mixture):,} samples per epoch"}


def _samples(measured: Measured) -> Mapping[str, str]:
    lengths = sorted(len(one.sample) for one in measured.encoded)
    tokens, room = sum(lengths), len(measured.rows) * row_length(measured.config)
    counts = sum((one.sample.counts for one in measured.encoded), Counts())
    drawn = f", and {counts.positions:,} positions of pictures that are drawn" if counts.positions else ""
    media = [medium for one in measured.encoded for medium in one.sample.prompt.media]
    tiles = sum(len(medium.tiles) for medium in media)
    facts = {
        "tokens": f"{mean(lengths):,.0f} on average, {median(lengths):,.0f} median, {lengths[0]:,} to {lengths[-1]:,}",
        "learned": f"{counts.tokens:,} of {tokens:,} tokens ({counts.tokens / tokens:.1%}){drawn}",
        "media": f"{len(media):,} images and videos, {tiles:,} tiles",
        "packing": f"{len(measured.rows):,} row{'' if len(measured.rows) == 1 else 's'} of "
        f"{row_length(measured.config):,} tokens, "
        f"{measured.samples_per_row:.1f} samples in each, {_padding(measured, 1 - tokens / room)}",
    }
    if measured.skipped:
        reasons = [f"{count} {reason}" for reason, count in measured.skipped.most_common()]
        facts["skipped"] = f"{listed(reasons, 5)}. {measured.messages[0]}"
    if truncated := sum(one.sample.truncated for one in measured.encoded):
        facts["truncated"] = f"{truncated:,} longer than data.max_length = {measured.config.data.max_length:,}"
    return facts


def _padding(measured: Measured, as_packed: float) -> str:
    """Return the padding to expect, and a length of rows that leaves less if it is much."""
    data, length = measured.config.data, row_length(measured.config)
    if len(measured.rows) < 2:
        return f"{as_packed:.1%} padding (too few samples to fill a row)"
    if not data.packing:
        return f"{as_packed:.1%} padding"
    lengths = [len(one.sample) for one in measured.encoded]
    padding = expected_padding(lengths, length, data.lookahead)
    if padding <= MUCH_PADDING:
        return f"{padding:.1%} padding"
    longer = expected_padding(lengths, 2 * length, data.lookahead)
    return f"{padding:.1%} padding; data.row_length={2 * length} would leave {longer:.1%}"


def _model(measured: Measured) -> Mapping[str, str]:
    config = measured.opened.network.config
    return {
        "weights": f"{measured.parameters / 1e6:,.1f} million, {measured.trained / 1e6:,.1f} million trained",
        "template": measured.opened.template.name,
        "projector": config.projector.name + (" (new)" if measured.opened.has_new_projector else ""),
        "images": f"{config.preprocess.image_aspect_ratio}, at most {config.preprocess.max_tiles} tiles, "
        f"{measured.opened.network.tokens_per_tile} tokens per tile",
    }


def _steps(measured: Measured) -> Mapping[str, str]:
    plan, data = measured.plan, measured.config.data
    samples = plan.rows_per_step * measured.samples_per_row
    length = f"epochs: {measured.config.epochs:g}" if measured.config.max_steps is None else "max_steps"
    return {
        "rows per step": f"{plan.rows_per_step:,}, which hold about {samples:,.0f} samples "
        f"(data.samples_per_step is {data.samples_per_step:,})",
        "steps": f"{plan.total_steps:,} ({length})",
    }


def _memory(measured: Measured) -> Mapping[str, str]:
    parts = {name: gigabytes(value) for name, value in measured.memory.parts.items()}
    needed = {
        "at the peak": f"{gigabytes(measured.memory.peak)}; use a GPU with {gigabytes(measured.memory.gpu_bytes)}"
    }
    less = {"less with": "; ".join(map(str, measured.suggestions))} if measured.suggestions else {}
    return {**parts, **needed, **less}


def _time(measured: Measured) -> Mapping[str, str]:
    hours = hours_by_gpu(measured.flops, measured.world_size)
    return {f"{measured.world_size} x {name}": _duration(value) for name, value in hours.items()}


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else "less than a minute"
