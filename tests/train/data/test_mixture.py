"""Mixtures: their grammar, weights and order."""

import json
import pickle
from collections import Counter
from pathlib import Path

import pytest

from vila_core.errors import ConfigError
from vila_train.config import DataConfig
from vila_train.data.mixture import Mixture, open_mixture
from vila_train.data.names import Item, parse_mixture
from vila_train.data.subsets import write_subset
from vila_train.errors import DatasetError


def write_questions(path: Path, count: int) -> Path:
    lines = (json.dumps({"question": f"Question {n}?", "answer": f"Answer {n}."}) for n in range(count))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    write_questions(tmp_path / "a.jsonl", 10)
    write_questions(tmp_path / "b.jsonl", 7)
    file = tmp_path / "registry.yaml"
    file.write_text(
        "datasets:\n  a: {path: a.jsonl}\n  b: {path: b.jsonl, subsets: {kept: b.kept}}\n"
        "mixtures:\n  both: [a, b*2]\n  nested: [both*2, a*0.5]\n"
    )
    return file


def open_named(mixture: str, registry: Path, seed: int = 0) -> Mixture:
    return open_mixture(DataConfig(mixture=mixture, registries=(registry,)), seed)


def counts(mixture: Mixture, epoch: int) -> Counter[str]:
    return Counter(mixture.conversation(epoch, position).name for position in range(len(mixture)))


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a", [Item("a")]),
        ("a+b", [Item("a"), Item("b")]),
        (" a + b*3 ", [Item("a"), Item("b", None, 3.0)]),
        ("a*0.5", [Item("a", None, 0.5)]),
        ("a*.25", [Item("a", None, 0.25)]),
        ("a@x", [Item("a", "x")]),
        ("a@x*2", [Item("a", "x", 2.0)]),
        ("a*2@x", [Item("a", "x", 2.0)]),
        ("llava-video/youtube-mc", [Item("llava-video/youtube-mc")]),
        ("a+a", [Item("a"), Item("a")]),
    ],
)
def test_grammar(text: str, items: list[Item]):
    assert parse_mixture(text) == items


@pytest.mark.parametrize(
    "text",
    ["", "  ", "+", "a+", "+a", "a++b", "*2", "@x", "a*", "a*x", "a*-1", "a*0", "a*nan", "a*inf", "a*1e3", "a*1_0",
     "a*10001", "a*2*3", "a@", "a@x@y", "a*٣", "a*2.", "a*" + "9" * 400, "a+" * 20_000, "a+" * 9000,
     "a" * 100_000 + "*x"],
)  # fmt: skip
def test_grammar_refuses(text: str):
    with pytest.raises(DatasetError, match="mixture"):
        parse_mixture(text)


@pytest.mark.parametrize("name", ["plain.jsonl", "with+plus.jsonl", "a*2.jsonl", "a@b.jsonl", "a b+c*d@e.jsonl"])
@pytest.mark.parametrize("suffix", ["", "*2", "*0.5"])
def test_paths_with_marks_in_their_names(tmp_path: Path, name: str, suffix: str):
    path = write_questions(tmp_path / name, 10)
    other = write_questions(tmp_path / "other+one.jsonl", 3)
    mixture = open_mixture(DataConfig(mixture=f"{path}{suffix}+{other}"), 0)
    assert [part.size for part in mixture.parts] == [10, 3]
    assert len(mixture) == {"": 13, "*2": 23, "*0.5": 8}[suffix]


def test_each_sample_once_per_epoch(registry: Path):
    mixture = open_named("a+b", registry)
    orders = [[mixture.locate(epoch, position) for position in range(17)] for epoch in range(3)]
    assert all(len(set(order)) == 17 for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] != [open_named("a+b", registry, seed=1).locate(0, position) for position in range(17)]
    assert orders[0] == [open_named("a+b", registry).locate(0, position) for position in range(17)]


def test_whole_weights_repeat_exactly(registry: Path):
    for epoch in range(3):
        found = counts(open_named("a*3+b", registry), epoch)
        assert found == Counter({f"a/{n}": 3 for n in range(10)}) + Counter({f"b/{n}": 1 for n in range(7)})


def test_fractions_take_turns(registry: Path):
    mixture = open_named("a*0.5", registry)
    first, second = counts(mixture, 0), counts(mixture, 1)
    assert len(first) == len(second) == 5
    assert set(first.values()) == set(second.values()) == {1}
    assert first + second == Counter({f"a/{n}": 1 for n in range(10)}), "the second epoch reads the other half"


def test_uneven_fractions_stay_even_over_epochs(registry: Path):
    mixture = open_named("b*1.5", registry)  # 10.5 samples, rounded to 10
    found: Counter[str] = Counter()
    for epoch in range(7):
        found += counts(mixture, epoch)
    assert set(found.values()) == {10}


def test_mixtures_of_mixtures(registry: Path):
    mixture = open_named("nested", registry)
    assert [(part.source.name, part.weight, part.samples) for part in mixture.parts] == [
        ("a", 2.0, 20), ("b", 4.0, 28), ("a", 0.5, 5)
    ]  # fmt: skip


def test_subsets(registry: Path, tmp_path: Path):
    import numpy as np

    write_subset(tmp_path / "b.kept", "b", 7, np.array([6, 1]))
    for name in ("b@kept", f"b@{tmp_path / 'b.kept'}"):
        assert counts(open_named(name, registry), 0) == Counter({"b/1": 1, "b/6": 1})
    assert len(open_named("b@kept*3", registry)) == 6


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("0\n", "no line"),
        ("# samples: 8\n0\n", "subset of 8 samples, but the dataset has 7"),
        ("# samples: x\n0\n", "subset of x"),
        ("# samples: 7\n", "keeps no samples"),
        ("# samples: 7\n7\n", "names sample 7"),
        ("# samples: 7\n-1\n", "expected a sample's number"),
        ("# samples: 7\n1.5\n", "expected a sample's number"),
        ("# samples: 7\nnan\n", "expected a sample's number"),
        ("# samples: 7\n" + "9" * 5000, "expected a sample's number"),
        ("# samples: 7\n1\n1\n", "twice"),
        ("# samples: 7\n٣\n", "expected a sample's number"),
    ],
)
def test_damaged_subsets(registry: Path, tmp_path: Path, content: str, problem: str):
    (tmp_path / "b.kept").write_text(content)
    with pytest.raises(DatasetError, match=problem):
        open_named("b@kept", registry)


def test_registered_datasets():
    mixture = open_mixture(DataConfig(mixture="drawn-world@count+drawn-world*0.001"), 0)
    assert mixture.parts[0].source.name == "drawn-world"
    conversation = mixture.conversation(0, 5)
    assert [message.role for message in conversation.messages] == ["user", "assistant"]
    again = pickle.loads(pickle.dumps(mixture)).conversation(0, 5)
    assert again.name == conversation.name
    assert again.messages[1] == conversation.messages[1]


def test_names_have_precedence_over_files(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "both", "drawn-world"):
        write_questions(tmp_path / name, 3)
    assert [part.size for part in open_named("a+both+./both", registry).parts] == [10, 10, 7, 3]
    assert open_named("drawn-world", registry).parts[0].size > 3
    assert open_mixture(DataConfig(mixture="both"), 0).parts[0].size == 3, "without the registry"


def test_unknown_names(registry: Path):
    with pytest.raises(DatasetError, match=r"Unknown dataset 'bath'. Known: .*both.* Did you mean 'both'"):
        open_named("a+bath", registry)
    with pytest.raises(DatasetError, match=r"'b' has no subset 'x'.*Known: kept"):
        open_named("b@x", registry)
    with pytest.raises(DatasetError, match="is a mixture"):
        open_named("both@x", registry)
    with pytest.raises(DatasetError, match="hf download owner/name --repo-type dataset"):
        open_named("owner/name", registry)
    with pytest.raises(ConfigError, match="Unknown subset"):
        open_named("drawn-world@x", registry)


def test_weight_that_leaves_nothing(registry: Path):
    with pytest.raises(DatasetError, match="leaves none"):
        open_named("a*0.01", registry)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("datasets: [", "not valid YAML"),
        ("- a", "expected a mapping"),
        ("datasets: {a: {path: x}}\ndatasets: {}", "stands twice"),
        ("datasets: {a: {path: x}, a: {path: y}}", "'a' stands twice"),
        ("x: &a [1]\ndatasets: *a", "alias"),
        ("1: 2", "not a text"),
        ("datasets: {a: {}}", "datasets.a.path is missing"),
        ("datasets: {a: {path: x, colour: red}}", "datasets.a.colour is not a known key"),
        ("datasets: {a: {path: x, format: lava}}", "datasets.a.format must be"),
        ("datasets: {a: {path: []}}", "must have 1 or more"),
        ("datasets: {'a+b': {path: x}}", r"has one of \+"),
        ("datasets: {'': {path: x}}", "is empty"),
        ("datasets: {a: {path: x}}\nmixtures: {a: [b]}", "both a dataset and a mixture"),
        ("mixtures: {m: [m]}", "holds itself: m -> m"),
        ("mixtures: {m: [n], n: [m*2]}", "holds itself: m -> n -> m"),
        ("mixtures: {m: []}", "mixtures.m must have 1 or more"),
        (
            "mixtures: {a: [x, x], "
            + ", ".join(f"{n}: [{a}, {a}]" for a, n in zip("abcdefghijklnopq", "bcdefghijklnopqm", strict=True))
            + "}",
            "more than 10,000",
        ),
        ("datasets: {m: {path: missing.jsonl}}", "missing.jsonl' is missing"),
        ("datasets: {m: {path: missing.jsonl}}", "Dataset 'm': "),
        ("datasets: {m: {path: '*.nothing'}}", "no file matches"),
        ("datasets: {m: {path: registry.yaml, media: nowhere}}", "'m': the media folder '.*nowhere' is missing"),
        ("datasets: {m: {path: data.jsonl, columns: {question: q}}}", "'m': 'columns' renames the columns of tables"),
        ("datasets: {m: {path: data.jsonl, subsets: {s: none.txt}}}\nmixtures: {n: [m@s]}", "none.txt' is missing"),
        ("datasets: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("[" * 2000, "not valid YAML"),
        ("datasets: 2024-13-45", "not valid YAML|must be"),
    ],
)
def test_damaged_registries(tmp_path: Path, content: str, problem: str):
    write_questions(tmp_path / "data.jsonl", 2)
    file = tmp_path / "registry.yaml"
    file.write_text(content)
    with pytest.raises(DatasetError, match=problem):
        open_named("n" if "m@s" in content else "m", file)


def test_two_registries_that_define_the_same_name(tmp_path: Path, registry: Path):
    other = tmp_path / "other.yaml"
    other.write_text("datasets: {a: {path: a.jsonl}}")
    with pytest.raises(DatasetError, match="both define 'a'"):
        open_mixture(DataConfig(mixture="a", registries=(registry, other)), 0)


def test_mixtures_are_small_to_send_to_workers(registry: Path):
    mixture = open_named("a+b", registry)
    mixture.conversation(0, 0)
    sent = pickle.dumps(mixture)
    assert len(sent) < 5000
    assert pickle.loads(sent).conversation(1, 3) == mixture.conversation(1, 3)
