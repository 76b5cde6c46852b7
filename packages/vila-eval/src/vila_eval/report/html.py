"""The report of a model: one self-contained HTML page, without scripts or network access."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from markupsafe import Markup

from vila_eval.data.hub import FIXTURE_REVISION
from vila_eval.errors import ResultsError
from vila_eval.metric import Measure
from vila_eval.records.schema import Counts, JudgeSummary, ModelIdentity, SampleRecord, TaskResult, Timings
from vila_eval.records.storage import (
    JUDGE_SUMMARY,
    REPORT,
    TIMINGS,
    find_results,
    read_record,
    read_result,
    read_samples,
    write_whole,
)
from vila_eval.report.failures import first_failure
from vila_eval.report.formatting import (
    format_difference,
    format_error,
    format_interval,
    format_measure,
    format_p_value,
    format_reference,
    format_settings,
    format_value,
    shorten,
    words,
)
from vila_eval.report.pictures import choose_wrong, picture_uri
from vila_eval.report.plots import axis_end, draw_bar
from vila_eval.texts import printable

FIRST_CARDS = 8
"""Number of wrong answers of a task shown at first; the others can be unfolded."""

LONGEST_TEXT = 700
"""Number of characters shown of a prompt or an answer: subtitles can be as long as a book."""


@dataclass(frozen=True)
class Bar:
    """One row of a plot: its label, its plot, and the number as text."""

    label: str
    plot: Markup
    measure: Measure
    link: str | None = None
    is_miniature: bool = False
    failed: str = ""


@dataclass(frozen=True)
class Plot:
    """Bars that share an axis; `ticks` are the labels of its start, middle and end."""

    title: str
    bars: Sequence[Bar]
    ticks: Sequence[str]


@dataclass(frozen=True)
class Breakdown:
    """The measures of each value of one dimension of the groups: the headline as a plot, all of them as a table."""

    plot: Plot
    names: Sequence[str]
    rows: Mapping[str, Mapping[str, Measure]]


@dataclass(frozen=True)
class Card:
    """A wrong answer in the gallery. `picture` is a data URI."""

    sample: SampleRecord
    prompt: str
    media: str
    picture: str | None
    reference: str
    value: str


@dataclass(frozen=True)
class Section:
    """One task's part of the page.

    `name` is its folder's name, which distinguishes runs with different numbers of frames.
    """

    name: str
    anchor: str
    result: TaskResult
    is_miniature: bool
    overall: Sequence[Measure]
    breakdowns: Sequence[Breakdown]
    settings: Mapping[str, str]
    timings: Timings | None
    speed: str | None
    judging: str | None
    cards: Sequence[Card]
    wrong: int
    failure: str | None = None


def write_report(model_folder: Path) -> Path:
    """Write `report.html` into a model's results folder from its tasks' folders, and return its path.

    The same results give the same bytes. Damaged results are named and left out. Raises `ResultsError` if there are no
    others.
    """
    folders = find_results(model_folder)
    if not folders:
        raise ResultsError(
            f"There are no results in '{model_folder}'. Name the folder of a model, such as results/vila-tiny."
        )
    sections: list[Section] = []
    damaged: dict[str, str] = {}
    for number, (name, folder) in enumerate(folders.items(), 1):
        try:
            sections.append(_read_section(name, folder, number))
        except ResultsError as error:
            damaged[name] = str(error)
    if not sections:
        raise ResultsError(next(iter(damaged.values())))
    models = list(dict.fromkeys(_identity(section.result.model) for section in sections))
    page = render(
        "report.html",
        models=models,
        sections=sections,
        damaged=damaged,
        facts=_run_facts(sections),
        overview=_overview(sections),
        miniatures=[section.name for section in sections if section.is_miniature],
        limits=sorted(
            {section.result.settings.limit for section in sections if section.result.settings.limit is not None}
        ),
        first_cards=FIRST_CARDS,
    )
    path = model_folder / REPORT
    write_whole(path, page)
    return path


def render(template: str, **values: Any) -> str:
    """Fill one of the package's templates. All texts are escaped, since answers and datasets are untrusted."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vila_eval.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_printable,
    )
    filters: dict[str, Any] = environment.filters
    filters |= {
        "breakable": breakable,
        "measure": format_measure,
        "number": format_value,
        "error": format_error,
        "interval": format_interval,
        "difference": format_difference,
        "p_value": format_p_value,
        "reference": format_reference,
        "shorten": shorten,
        "public": _public_source,
        "words": words,
    }
    return environment.get_template(template).render(**values, longest=LONGEST_TEXT)


def _printable(value: object) -> object:
    return printable(value) if type(value) is str else value  # markup is a subclass


def breakable(name: str) -> Markup:
    """Return a name that may be broken after "/", "_" and "-": task names can be longer than a phone's screen."""
    return Markup("<wbr>").join(re.split("(?<=[/_-])", printable(name)))


def _identity(model: ModelIdentity) -> tuple[str, str, str]:
    return model.name, model.source, model.digest


def _read_section(name: str, folder: Path, number: int) -> Section:
    result = read_result(folder)
    headline = result.headline
    timings = read_record(Timings, folder / TIMINGS)
    higher_is_better = headline is None or headline.higher_is_better is not False
    wrong, count = choose_wrong(read_samples(folder, result), higher_is_better=higher_is_better)
    return Section(
        name,
        f"task-{number}",
        result,
        result.data.get("revision") == FIXTURE_REVISION,
        [measure for measure in result.measures if measure.group is None],
        list(_breakdowns(result.measures)),
        format_settings(result.settings),
        timings,
        None if timings is None else _speed(timings),
        _judging(folder / JUDGE_SUMMARY),
        [_card(sample, folder, headline) for sample in wrong],
        count,
        first_failure(folder) if result.counts.failed else None,
    )


def _speed(timings: Timings) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in timings.versions.items())
    return (
        f"{timings.answered:,} answers in {timings.seconds:,.1f} s, batch size {timings.batch_size}, workers: "
        f"{timings.workers}. {versions}"
    )


def _run_facts(sections: Sequence[Section]) -> dict[str, str]:
    """Return when and how the tasks ran, for the top of the page; several values if they differ."""
    timings = [section.timings for section in sections if section.timings is not None]
    versions = [", ".join(f"{name} {number}" for name, number in one.versions.items()) for one in timings]
    facts = {
        "date": sorted({one.finished[:10] for one in timings}),
        "dtype": list(dict.fromkeys(map(_dtype, sections))),
        "versions": list(dict.fromkeys(versions)),
    }
    return {name: "; ".join(found) for name, found in facts.items() if any(found)}


def _dtype(section: Section) -> str:
    used = section.timings.dtype if section.timings is not None else ""
    return used or section.result.settings.dtype


def _public_source(source: str) -> str:
    """Return a model's path without the folders that lead to it: pages are published, local paths are not."""
    return " + ".join(
        PurePath(part).name if part.startswith(("/", "~", ".", "\\")) or re.match("[A-Za-z]:", part) else part
        for part in source.split(" + ")
    )


def _judging(path: Path) -> str | None:
    summary = read_record(JudgeSummary, path)
    if summary is None:
        return None
    cost = "" if summary.dollars is None else f", about {summary.dollars:.2f} US dollars"
    served = f" Served as {', '.join(summary.served_models)}." if summary.served_models else ""
    tokens = f"{summary.prompt_tokens:,} + {summary.completion_tokens:,} tokens"
    return (
        f"{summary.failed:,} of {summary.samples:,} samples without a verdict; {summary.requests:,} requests, "
        f"{tokens}{cost}.{served}"
    )


def _overview(sections: Sequence[Section]) -> Plot | None:
    """Plot the headlines that are shares, since these have a common axis."""
    found = [(section, section.result.headline) for section in sections]
    bars = [
        Bar(
            section.name,
            draw_bar(headline.value, headline.interval, 1.0),
            headline,
            f"#{section.anchor}",
            section.is_miniature,
            _failed(section.result.counts),
        )
        for section, headline in found
        if headline is not None and headline.unit == "share"
    ]
    return Plot("Headline of each task, in percent", bars, ("0", "50", "100 %")) if bars else None


def _failed(counts: Counts) -> str:
    """Return how many samples failed, for a mark beside the task's name; "" if none did."""
    if not counts.failed:
        return ""
    return "all failed" if counts.failed == counts.samples else f"{counts.failed:,} of {counts.samples:,} failed"


def _breakdowns(measures: Sequence[Measure]) -> Iterator[Breakdown]:
    dimensions = dict.fromkeys(measure.group[0] for measure in measures if measure.group is not None)
    for dimension in dimensions:
        rows: dict[str, dict[str, Measure]] = {}
        for measure in measures:
            if measure.group is not None and measure.group[0] == dimension:
                rows.setdefault(measure.group[1], {})[measure.name] = measure
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        plotted = {label: row[names[0]] for label, row in rows.items() if names[0] in row}
        yield Breakdown(_plot(f"{words(names[0])} by {words(dimension)}", plotted), names, rows)


def _plot(title: str, measures: Mapping[str, Measure]) -> Plot:
    unit = next(iter(measures.values())).unit
    end = (
        1.0
        if unit == "share"
        else axis_end(max(max(measure.value, *(measure.interval or (0.0,))) for measure in measures.values()))
    )
    bars = [Bar(label, draw_bar(measure.value, measure.interval, end), measure) for label, measure in measures.items()]
    ticks = ("0", "50", "100 %") if unit == "share" else ("0", f"{end / 2:g}", f"{end:g}")
    return Plot(title, bars, ticks)


def _card(sample: SampleRecord, folder: Path, headline: Measure | None) -> Card:
    picture = picture_uri(folder, sample.id)
    media = [part for part in sample.prompt if part.kind != "text"]
    value = next(iter((sample.values or {}).values()), None)
    return Card(
        sample,
        "\n".join(part.text.strip() for part in sample.prompt if part.text is not None),
        ", ".join(f"{part.kind} {part.file}" if part.file else part.kind for part in media),
        picture,
        format_reference(sample.reference),
        "" if value is None or headline is None else format_value(value, headline.unit),
    )
