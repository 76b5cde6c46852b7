"""JSON lists and JSON Lines: samples are found by their place, whatever the file looks like."""

import json
import os
import pickle
import random
from pathlib import Path

import pytest

from vila_train.data.conversations import SampleError
from vila_train.data.records import json_records
from vila_train.data.records.json_records import JsonRecords
from vila_train.data.records.spans import index_files
from vila_train.errors import DatasetError

TEXTS = [
    "\\\\",
    '\\\\"',
    "ends with \\",
    "plain",
    'a "quoted" one',
    "br[ack]{et}s, commas",
    "\\",
    "ü – 猫",
    '\\"}]',
    "",
]
SAMPLES = [{"n": n, "text": text} for n, text in enumerate(TEXTS)]


def records_of(tmp_path: Path, data: bytes | str, name: str = "data.json") -> JsonRecords:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return JsonRecords(path)


@pytest.mark.parametrize("indent", [None, 0, 1, 4])
@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("before", ["", " \n\t", "\ufeff"])
def test_lists(tmp_path: Path, indent: int | None, ascii: bool, before: str):
    records = records_of(tmp_path, before + json.dumps(SAMPLES, indent=indent, ensure_ascii=ascii) + "\n")
    assert [records[n] for n in range(len(records))] == SAMPLES


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n \t\n"])
@pytest.mark.parametrize("last", ["", "\n", "\n\n  "])
@pytest.mark.parametrize("before", ["", "\n", "\ufeff"])
def test_lines(tmp_path: Path, end: str, last: str, before: str):
    records = records_of(tmp_path, before + end.join(json.dumps(sample) for sample in SAMPLES) + last)
    assert [records[n] for n in range(len(records))] == SAMPLES


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1000])
def test_chunks_may_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int):
    monkeypatch.setattr(json_records, "CHUNK_BYTES", chunk)
    as_list = records_of(tmp_path, json.dumps(SAMPLES, indent=1), "list.json")
    as_lines = records_of(tmp_path, "\n".join(map(json.dumps, SAMPLES)), "lines.jsonl")
    assert [as_list[n] for n in range(len(as_list))] == SAMPLES
    assert [as_lines[n] for n in range(len(as_lines))] == SAMPLES


def test_nested_samples(tmp_path: Path):
    rng = random.Random(0)

    def value(depth: int) -> object:
        kind = rng.randrange(6 if depth else 3)
        if kind < 3:
            return [rng.random(), rng.choice(TEXTS), None][kind]
        return [value(depth - 1) for _ in range(rng.randrange(4))] if kind < 5 else {"k": value(depth - 1)}

    samples = [{"v": value(4)} for _ in range(200)]
    for indent in (None, 2):
        records = records_of(tmp_path, json.dumps(samples, indent=indent), f"{indent}.json")
        assert [records[n] for n in range(len(records))] == samples


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": 1', "damaged JSON"),
        ("{'a': 1}", "damaged JSON"),
        ("null", "damaged JSON"),
        ('"text"', "damaged JSON"),
        ("[1]", "damaged JSON"),
        ('{"a": NaN}', "damaged JSON"),
        ('{"a": 1e999}', "damaged JSON"),
        ('{"a": 1, "a": 2}', "damaged JSON"),
        ('{"a": "\\ud800"}', "damaged JSON"),
        ('{"a": "\\u0000"}', "damaged JSON"),
        ('{"a": "\x00"}', "damaged JSON"),
        ('{"a": "\x01"}', "damaged JSON"),
        ('{"a": 1}{"b": 2}', "damaged JSON"),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "damaged JSON"),
        ('{"a": ' + "9" * 400 + "}", "damaged JSON"),
        ("\x00" * 100, "damaged JSON"),
        ("<html>", "damaged JSON"),
    ],
)
def test_damaged_lines(tmp_path: Path, line: str, reason: str):
    records = records_of(tmp_path, f'{{"n": 0}}\n{line}\n{{"n": 2}}\n', "data.jsonl")
    assert len(records) == 3
    with pytest.raises(SampleError, match=r"'data.jsonl', sample 2 \(byte 9\)") as raised:
        records[1]
    assert raised.value.reason == reason
    assert (records[0], records[2]) == ({"n": 0}, {"n": 2})


def test_line_that_is_not_utf_8(tmp_path: Path):
    records = records_of(tmp_path, b'{"a": "\xff\xfe"}\n{"a": "caf\xe9"}\n{"a": 1}\n', "data.jsonl")
    for number in range(2):
        with pytest.raises(SampleError, match="not valid JSON"):
            records[number]
    assert records[2] == {"a": 1}


def test_too_long_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_records, "MAX_RECORD_BYTES", 1000)
    records = records_of(tmp_path, '{"a": "%s"}\n{"a": 1}\n' % ("x" * 2000), "data.jsonl")
    with pytest.raises(SampleError, match="the limit is 1,000") as raised:
        records[0]
    assert raised.value.reason == "too large"
    assert records[1] == {"a": 1}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("[]", "holds no samples"),
        ("[ \n ]", "holds no samples"),
        ("\n\n", "holds no samples"),
        ('[{"a": 1}, {"a": 2}', "not complete: it ends inside the list, after 1 samples"),
        ('[{"a": 1}, {"a": "x', "not complete"),
        ('[{"a": 1}', "not complete"),
        ("[", "not complete"),
        ('[{"a": 1}] [2]', "something follows the list"),
        ('[{"a": 1}]}', "something follows the list"),
        ('[{"a": [1}]', "not complete"),
        ('[{"a": 1}, "b\\"]', "not complete"),
        ('\xff\xfe[\x00'.encode("latin-1"), "UTF-16"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, data: str | bytes, problem: str):
    with pytest.raises(DatasetError, match=problem):
        len(records_of(tmp_path, data))


def test_brackets_that_do_not_match_damage_their_own_sample(tmp_path: Path):
    records = records_of(tmp_path, '[{"a": [1}], {"a": 2}, {"a": [3})], {"a": 4}]'.replace(")", ""))
    assert records[1] == {"a": 2}
    assert records[3] == {"a": 4}
    for number in (0, 2):
        with pytest.raises(SampleError, match="not valid JSON"):
            records[number]


def test_list_with_elements_that_are_no_objects(tmp_path: Path):
    records = records_of(tmp_path, '[1, "a,b", null, [{"a": 1}], {"a": 1}, ]')
    assert len(records) == 6
    assert records[4] == {"a": 1}
    for number in (0, 1, 2, 3, 5):
        with pytest.raises(SampleError):
            records[number]


def test_missing_file(tmp_path: Path):
    with pytest.raises(DatasetError, match="No such file"):
        len(JsonRecords(tmp_path / "none.json"))


def test_folder_pipe_and_device(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(DatasetError, match="not a regular file"):
            len(JsonRecords(path))


def test_index_is_kept_and_renewed(tmp_path: Path):
    records = records_of(tmp_path, '{"n": 0}\n{"n": 1}\n', "data.jsonl")
    assert len(records) == 2
    (index,) = (file for file in index_files(records.path, "samples") if file.exists())
    assert index == tmp_path / ".data.jsonl.samples.npy"
    before = index.stat().st_mtime_ns
    assert len(JsonRecords(records.path)) == 2
    assert index.stat().st_mtime_ns == before, "read, not written again"
    with records.path.open("a") as file:
        file.write('{"n": 2}\n')
    assert len(JsonRecords(records.path)) == 3
    replaced = '{"n": 3}\n' * 3  # of the same size
    os.utime(records.path, ns=(1, 1))
    records.path.write_text(replaced)
    assert JsonRecords(records.path)[0] == {"n": 3}


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"x" * 500])
def test_damaged_index(tmp_path: Path, damage: bytes):
    records = records_of(tmp_path, '{"n": 0}\n{"n": 1}\n', "data.jsonl")
    assert len(records) == 2
    index = index_files(records.path, "samples")[0]
    index.write_bytes(damage)
    assert [JsonRecords(records.path)[n] for n in range(2)] == [{"n": 0}, {"n": 1}]
    index.unlink()
    index.mkdir()
    assert JsonRecords(records.path)[1] == {"n": 1}


def test_index_of_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from vila_core.errors import OutputError
    from vila_train.data.records import spans

    home = tmp_path / "home"
    monkeypatch.setattr(Path, "home", lambda: home)
    real = spans.new_file

    def refusing(path: Path):
        if path.parent == tmp_path:
            raise OutputError("read-only")
        return real(path)

    monkeypatch.setattr(spans, "new_file", refusing)
    records = records_of(tmp_path, '{"n": 0}\n', "data.jsonl")
    assert records[0] == {"n": 0}
    assert len(list((home / ".cache" / "vila-train").iterdir())) == 1
    monkeypatch.setattr(spans, "new_file", lambda path: refusing(tmp_path / "x"))  # pyright: ignore
    assert records_of(tmp_path, '{"n": 1}\n', "other.jsonl")[0] == {"n": 1}, "also without any place for an index"


def test_file_that_shrinks_while_it_is_read(tmp_path: Path):
    records = records_of(tmp_path, '{"n": 0}\n{"n": 1}\n', "data.jsonl")
    assert records[0] == {"n": 0}
    os.truncate(records.path, 9)
    with pytest.raises(SampleError, match="beyond the end"):
        records[1]


def test_forked_and_pickled_readers(tmp_path: Path):
    records = records_of(tmp_path, "\n".join(json.dumps({"n": n}) for n in range(1000)), "data.jsonl")
    assert records[3] == {"n": 3}
    assert len(pickle.dumps(records)) < 500
    assert pickle.loads(pickle.dumps(records))[999] == {"n": 999}


def test_many_lines_take_little_memory(tmp_path: Path):
    import tracemalloc

    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"question": "What is it?", "answer": "A cat."}\n' * 300_000)
    tracemalloc.start()
    records = JsonRecords(path)
    assert len(records) == 300_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert records[299_999]["answer"] == "A cat."
    assert peak < 60e6
