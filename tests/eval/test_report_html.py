"""The report page: its content, its safety against hostile texts, and its plots against values computed by hand."""

import hashlib
import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vila_eval.errors import ResultsError
from vila_eval.metric import Measure, Score, Scored, exact, mean_measures
from vila_eval.records.schema import (
    Counts,
    ModelIdentity,
    PromptPart,
    RunSettings,
    SampleRecord,
    TaskResult,
    Timings,
)
from vila_eval.records.storage import RESULTS, SAMPLES, TIMINGS, write_record, write_records
from vila_eval.report.formatting import (
    format_difference,
    format_error,
    format_p_value,
    format_reference,
    format_value,
    shorten,
)
from vila_eval.report.html import write_report
from vila_eval.report.pictures import picture_path
from vila_eval.report.plots import axis_end, draw_bar, draw_difference
from vila_eval.task import Question

ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</style>&amp;",
)


class Page(HTMLParser):
    """The page as a browser sees it: tags, attributes, and the text outside of them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, tag: str, name: str) -> list[str | None]:
        return [value for found, attribute, value in self.attributes if (found, attribute) == (tag, name)]


def record(name: str, index: int, value: float | None, **fields: Any) -> SampleRecord:
    prompt = (
        PromptPart(kind="image", digest="0" * 64, file="pic.png"),
        PromptPart(kind="text", text=fields.pop("text", "What is it?")),
    )
    return SampleRecord(
        id=name,
        index=index,
        row=index,
        key="k",
        prompt=prompt,
        values=None if value is None else {"accuracy": value},
        **fields,
    )


def write_task(
    folder: Path, samples: Sequence[SampleRecord], measures: Sequence[Measure] | None = None, **fields: Any
) -> Path:
    scored = [
        Scored(Question(s.id, (), groups=s.groups), s.answer, Score(s.values)) for s in samples if s.values is not None
    ]
    found = mean_measures(scored) if measures is None else measures
    given = {
        "settings": RunSettings(max_new_tokens=8),
        "data": {"repository": "acme/shapes", "revision": "abc"},
        "metric": "accuracy",
    } | fields
    result = TaskResult(
        task=folder.name,
        task_version=3,
        distribution="vila-eval 0.1.0",
        model=ModelIdentity(name="my-model", source="/models/my-model", digest="d1g35t"),
        measures=tuple(found),
        counts=given.pop("counts", Counts(samples=len(samples))),
        **given,
    )
    write_records(folder / SAMPLES, samples)
    write_record(folder / RESULTS, result)
    return folder


def open_report(model: Path) -> tuple[str, Page]:
    text = write_report(model).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.mark.parametrize(
    ("asked", "used", "shown"),
    [("auto", "bfloat16", "bfloat16"), ("auto", "", "auto"), ("float16", "float16", "float16")],
)
def test_the_page_shows_the_dtype_that_was_used(asked: str, used: str, shown: str, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "shapes", [record("s", 0, 1.0)], settings=RunSettings(max_new_tokens=8, dtype=asked))
    timings = Timings(
        started="2026-01-01", finished="2026-01-02", answered=1, seconds=1, batch_size=1, workers=1, dtype=used
    )
    write_record(folder / TIMINGS, timings)
    _, page = open_report(tmp_path)
    assert re.search(rf"dtype\s*{shown}\b", page.text)


def test_the_page_shows_the_results(tmp_path: Path) -> None:
    samples = [
        record("s1", 0, 1.0, answer="circle", groups={"kind": "plain"}),
        record(
            "s2", 1, 0.0, answer="oval", parsed="o", reference=["circle", "ring", "circle"], groups={"kind": "plain"}
        ),
        record("s3", 2, 1.0, groups={"kind": "hard"}),
        record("s4", 3, 0.0, error="The file 'x.png' is not there.", groups={"kind": "hard"}),
    ]
    write_task(tmp_path / "deep/shapes", samples, counts=Counts(samples=4, failed=1, truncated=2))
    write_task(tmp_path / "sent", [record("s", 0, None)], measures=[], metric=None, submission="answers.json")
    text, page = open_report(tmp_path)
    assert page.tags.count("h1") == 1
    assert "my-model" in page.text
    assert "d1g35t" in page.text
    assert "abc" in page.text
    # Mean 1/2, error sqrt(4/4 / 3 / 4) = 0.2887.
    assert '<b>50.0</b></td><td class="error">15.0–85.0</td>' in text
    assert "Wrong answers: 2 of 2" in page.text
    for said in ("oval", "circle (2×) | ring", "read as", "The file 'x.png' is not there.", "kind: hard", "version 3"):
        assert said in page.text
    assert "answers.json" in page.text
    assert "accuracy by kind" in page.text
    assert '<td class="bad">1</td>' in text  # failed
    assert "not benchmark results" not in page.text


def test_hostile_texts_neither_run_nor_fetch_anything(tmp_path: Path) -> None:
    samples = [
        record(attack, index, 0.0, text=attack, answer=attack, reference=attack, parsed=f"{attack}!", unread=attack,
               error=attack, options=(attack,), groups={attack: attack})
        for index, attack in enumerate(ATTACKS)
    ]  # fmt: skip
    folder = write_task(
        tmp_path / "shapes",
        samples,
        data={ATTACKS[0]: ATTACKS[1], "revision": ATTACKS[0]},
        settings=RunSettings(max_new_tokens=8, stop=(ATTACKS[1],), chat_template=ATTACKS[0]),
        judge=ATTACKS[0],
        metric=ATTACKS[1],
    )
    for attack in ATTACKS:
        path = picture_path(folder, attack)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"picture")
    text, page = open_report(tmp_path)
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    sources = [value for _, name, value in page.attributes if name in ("src", "srcset", "poster", "data", "action")]
    assert sources
    assert all(value is not None and value.startswith("data:image/jpeg;base64,") for value in sources)
    assert all(value is not None and value.startswith("#") for value in page.values("a", "href"))
    assert page.tags.count("style") == 1
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    for attack in ATTACKS:
        assert attack in page.text  # shown unchanged, neither run nor lost
    (policy,) = [value for value in page.values("meta", "content") if value and "default-src" in value]
    assert "default-src 'none'" in policy


def test_images_are_embedded_and_have_alternative_texts(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "shapes", [record("s1", 0, 0.0), record("s2", 1, 0.0)])
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(file, "JPEG")
    picture_path(folder, "s1").parent.mkdir()
    picture_path(folder, "s1").write_bytes(file.getvalue())
    _, page = open_report(tmp_path)
    assert page.tags.count("img") == 1
    assert page.values("img", "alt") == ["Media of sample s1: image pic.png"]
    assert "no image: image pic.png" in page.text


def test_every_table_names_its_columns_and_rows(tmp_path: Path) -> None:
    write_task(
        tmp_path / "shapes",
        [record("s1", 0, 0.0, groups={"kind": "plain"}), record("s2", 1, 1.0, groups={"kind": "hard"})],
    )
    text, page = open_report(tmp_path)
    assert page.values("html", "lang") == ["en"]
    assert page.tags.count("table") == page.tags.count("caption") == 5  # overview twice, measures, groups twice
    assert page.tags.count("th") == len(page.values("th", "scope"))
    assert page.values("section", "aria-labelledby") == ["overview", "task-1"]
    assert 'id="task-1"' in text
    assert page.values("meta", "name")[0] == "viewport"


def test_fixtures_and_limits_are_announced(tmp_path: Path) -> None:
    write_task(
        tmp_path / "a",
        [record("s", 0, 1.0)],
        data={"revision": "fixture"},
        settings=RunSettings(max_new_tokens=8, limit=5),
    )
    _, page = open_report(tmp_path)
    assert "Made-up data, not benchmark results. All tasks ran on" in page.text
    assert "limit of 5 rows" in page.text
    write_task(tmp_path / "b", [record("s", 0, 1.0)])
    text, page = open_report(tmp_path)
    assert "not benchmark results. a ran on" in page.text
    assert "a made-up data" in page.text
    assert "b made-up data" not in page.text
    assert text.count('<tr class="miniature">') == 1  # its bar is pale


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_task(tmp_path / name, [record(str(number), number, 0.0) for number in range(30)])
    first = write_report(tmp_path).read_bytes()
    assert hashlib.sha256(write_report(tmp_path).read_bytes()).digest() == hashlib.sha256(first).digest()
    text = first.decode()
    assert text.index('id="task-1">a<') < text.index('id="task-2">b<')
    assert text.count('class="card"') == 2 * 24
    assert "Wrong answers: 24 of 30" in text


def test_a_long_prompt_is_cut(tmp_path: Path) -> None:
    write_task(tmp_path / "a", [record("s", 0, 0.0, text="word " * 20_000)])
    assert len(open_report(tmp_path)[0]) < 40_000


def test_points_have_their_own_axis(tmp_path: Path) -> None:
    measures = [Measure("score", exact(1450.0, 2), unit="points")]
    measures += [
        Measure("score", exact(value, 1), unit="points", group=("category", name))
        for name, value in (("color", 165.0), ("count", 90.0))
    ]
    write_task(tmp_path / "mme", [record("s", 0, 0.0)], measures)
    text, page = open_report(tmp_path)
    assert "1450.0" in page.text
    assert "Headline of each task" not in page.text  # there is no share to plot
    assert '<rect class="bar" x="0" y="5" width="82.5%"' in text  # 165 of 200
    assert '<rect class="bar" x="0" y="5" width="45.0%"' in text


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no results"):
        write_report(tmp_path)


def test_bars_by_hand() -> None:
    bar = draw_bar(0.6, (0.5, 0.7), 1.0)
    assert 'width="60.0%"' in bar
    assert 'x1="50.0%" x2="70.0%"' in bar
    assert 'class="error"' not in draw_bar(0.6, None, 1.0)
    assert 'x1="90.0%" x2="100.0%"' in draw_bar(0.95, (0.9, 1.1), 1.0)
    worse = draw_difference(-0.05, 0.025, 0.1, is_better=False)
    assert 'class="loss" x="25.0%" y="5" width="25.0%"' in worse
    assert 'x1="12.5%" x2="37.5%"' in worse
    assert 'class="gain" x="50.0%" y="5" width="50.0%"' in draw_difference(0.1, None, 0.1, is_better=True)


@pytest.mark.parametrize(
    ("largest", "end"), [(165, 200), (200, 200), (0.07, 0.08), (0, 1), (4.2, 5), (10, 10), (1.2, 1.5)]
)
def test_axes_end_at_round_numbers(largest: float, end: float) -> None:
    assert axis_end(largest) == pytest.approx(end)


def test_number_formats() -> None:
    assert format_value(0.7134, "share") == "71.3"
    assert format_value(3.14159, "points") == "3.14"
    assert format_value(1450.26, "points") == "1450.3"
    assert (format_error(0.012, "share"), format_error(None, "share")) == ("± 1.2", "")
    assert [format_difference(value, "share") for value in (0.012, -0.012, 0.0)] == ["+1.2", "−1.2", "0.0"]
    assert [format_p_value(value) for value in (None, 0.0004, 0.0316)] == ["–", "< 0.001", "0.032"]
    assert format_reference(None) == ""
    assert format_reference([1, 2.5]) == "[1, 2.5]"
    assert format_reference(["a", "b", "a"]) == "a (2×) | b"
    assert shorten("abcdef", 3) == "abc … (3 more characters)"
