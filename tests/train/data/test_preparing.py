"""Public data sets in their published layouts, and the commands `vila-train data`."""

import io
import json
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import pytest
from typer.testing import CliRunner

from vila_core.errors import VilaError
from vila_train.cli import app
from vila_train.config import DataConfig
from vila_train.data.mixture import open_mixture
from vila_train.data.preparing import prepare_public_set
from vila_train.data.public_sets import public_sets
from vila_train.data.registry import read_registry
from vila_train.errors import DatasetError

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Yes."}]


def save_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 6), "red").save(path, "PNG")


def save_list(path: Path, records: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))


def save_lines(path: Path, records: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def save_tar(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    PIL.Image.new("RGB", (8, 6)).save(picture, "JPEG")
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            for suffix, data in (("jpg", picture.getvalue()), ("txt", b"Caption"), ("json", b'{"url": "x"}')):
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def publish(name: str, folder: Path) -> None:
    """Write a tiny copy of a public data set in its published layout."""
    if name == "cc3m_595k":
        save_picture(folder / "images" / "GCC_train_1.jpg")
        save_list(folder / "chat.json", [{"image": "GCC_train_1.jpg", "conversations": TURNS}] * 3)
    elif name == "coyo_25m":
        save_tar(folder / "00000.tar", 2)
        save_tar(folder / "00001.tar", 1)
        (folder / "00000_stats.json").write_text("{}")
    elif name == "mmc4_core":
        save_picture(folder / "images" / "1.png")
        pictures = [{"image_name": "1.png", "matched_text_index": 0, "raw_url": "https://example.org/1.png"}]
        document = {"text_list": ["One.", "Two."], "image_info": pictures, "similarity_matrix": [[0.3, 0.2]]}
        save_lines(folder / "docs_shard_0_v3.jsonl", [document] * 2)
        save_lines(folder / "docs_shard_1_v3.jsonl", [document])
    elif name.startswith(("sharegpt4v_", "llava_v1_5")):
        file = public_sets()[name].files[0].removeprefix("**/")
        save_picture(folder / "data" / "coco" / "train2017" / "1.jpg")
        save_list(folder / file, [{"image": "coco/train2017/1.jpg", "conversations": TURNS}] * 3)
    elif name == "m3it":
        text = PIL.Image.new("RGB", (8, 6))
        picture = io.BytesIO()
        text.save(picture, "PNG")
        import base64

        record = {"instruction": "What?", "inputs": "", "outputs": "Yes."}
        record["image_base64_str"] = base64.b64encode(picture.getvalue()).decode()
        save_lines(folder / "data" / "captioning" / "coco" / "train.jsonl", [record] * 2)
        save_lines(folder / "data" / "captioning" / "coco" / "val.jsonl", [record])
        save_lines(folder / "data" / "vqa" / "gqa" / "gqa_train.jsonl", [record])
    elif name == "vflan":
        save_lines(folder / "cot_data" / "part.jsonl", [{"inputs": "Hi", "targets": "Ho"}] * 3)
    elif name == "llava_video_178k":
        for part in ("0_30_s_academic_v0_1", "1_2_m_youtube_v0_1"):
            (folder / part / "videos").mkdir(parents=True)
            (folder / part / "videos" / "1.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
            save_list(folder / part / f"{part}_cap_processed.json", [{"video": "videos/1.mp4", "conversations": TURNS}])
        record = {"video": "videos/1.mp4", "conversations": TURNS}
        save_list(folder / "0_30_s_academic_v0_1" / "0_30_s_academic_oe_v0_1_qa_processed.json", [record])
    elif name == "sharegpt4video":
        (folder / "videos").mkdir(parents=True)
        (folder / "videos" / "abc.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
        captions = [{"idx": "1", "content": "A part."}, {"idx": "-1", "content": "All."}]
        save_lines(folder / "sharegpt4video_40k.jsonl", [{"video_id": "abc", "captions": captions}] * 3)


@pytest.mark.parametrize("name", sorted(public_sets()))
@pytest.mark.parametrize("inside", ["", "a [copy]+of*it"])
def test_every_public_set(tmp_path: Path, name: str, inside: str):
    folder = tmp_path / inside if inside else tmp_path
    publish(name, folder)
    prepared = prepare_public_set(name, folder, None, decode=False)
    assert (prepared.findings.size, prepared.findings.usable, prepared.findings.bad) == (3, 3, {})
    mixture = open_mixture(DataConfig(mixture=name, registries=(prepared.registry,)), 0)
    names = {mixture.conversation(0, position).name for position in range(3)}
    assert names == {f"{name}/{number}" for number in range(3)}


def test_documents_and_videos(tmp_path: Path):
    for name in ("coyo_25m", "mmc4_core", "llava_video_178k", "sharegpt4video"):
        publish(name, tmp_path / name)
        registry = prepare_public_set(name, tmp_path / name, None, decode=False).registry
        conversation = open_mixture(DataConfig(mixture=name, registries=(registry,)), 0).conversation(0, 0)
        assert conversation.is_document == (name in ("coyo_25m", "mmc4_core"))


def test_a_registry_keeps_its_other_sets(tmp_path: Path):
    for name in ("sharegpt4v_pretrain", "sharegpt4v_sft"):
        publish(name, tmp_path)
        registry = prepare_public_set(name, tmp_path, None, decode=True).registry
    assert list(read_registry(registry).datasets) == ["sharegpt4v_pretrain", "sharegpt4v_sft"]  # pyright: ignore


def test_a_registry_keeps_its_mixtures(tmp_path: Path):
    publish("sharegpt4v_pretrain", tmp_path)
    (tmp_path / "vila-datasets.yaml").write_text("mixtures: {all: [sharegpt4v_pretrain*2]}")
    registry = prepare_public_set("sharegpt4v_pretrain", tmp_path, None, decode=False).registry
    assert read_registry(registry).mixtures == {"all": ("sharegpt4v_pretrain*2",)}
    assert [*read_registry(registry).datasets] == ["sharegpt4v_pretrain"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [("mixtures: {coyo_25m: [a]}", "mixture that is called coyo_25m"), ("[]", "expected a mapping")],
)
def test_a_registry_that_cannot_be_extended_is_known_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, problem: str
):
    publish("coyo_25m", tmp_path)
    monkeypatch.setattr("vila_train.data.preparing.check_source", lambda *_: pytest.fail("samples were checked"))
    registry = tmp_path / "vila-datasets.yaml"
    registry.write_text(content)
    with pytest.raises(DatasetError, match=problem):
        prepare_public_set("coyo_25m", tmp_path, None, decode=False)
    assert registry.read_text() == content


def test_files_are_indexed_by_several_processes(tmp_path: Path):
    publish("coyo_25m", tmp_path)
    prepared = prepare_public_set("coyo_25m", tmp_path, None, decode=False, processes=2)
    assert prepared.findings.usable == 3
    assert len(list(tmp_path.glob(".*.members.npy"))) == 2
    (tmp_path / "00002.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DatasetError, match=r"00002.tar' is not a tar archive"):
        prepare_public_set("coyo_25m", tmp_path, None, decode=False, processes=2)


def test_evenly_spread_subset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_lines(tmp_path / "cot_data" / "part.jsonl", [{"inputs": f"{n}", "targets": "Ho"} for n in range(100)])
    small = public_sets()["vflan"].model_copy(update={"evenly": 10})
    monkeypatch.setitem(public_sets(), "vflan", small)
    prepared = prepare_public_set("vflan", tmp_path, None, decode=False)
    assert prepared.names == ("vflan", "vflan@10")
    mixture = open_mixture(DataConfig(mixture="vflan@10", registries=(prepared.registry,)), 0)
    found = sorted(int(mixture.conversation(0, n).name.split("/")[1]) for n in range(len(mixture)))
    assert found == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]


def test_prepare_explains_what_is_missing(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"Unknown public data set 'coyo'.*Did you mean 'coyo_25m'"):
        prepare_public_set("coyo", tmp_path, None, decode=False)
    with pytest.raises(DatasetError, match=r"is no folder. cc3m_595k is downloaded with: hf download"):
        prepare_public_set("cc3m_595k", tmp_path / "none", None, decode=False)
    (tmp_path / "images.zip").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"has no file \*\*/chat.json or .*only images.zip"):
        prepare_public_set("cc3m_595k", tmp_path, None, decode=False)
    save_list(tmp_path / "chat.json", [{"image": "GCC_train_1.jpg", "conversations": TURNS}] * 3)
    with pytest.raises(DatasetError, match=r"No sample .* can be used. The first: cc3m_595k/0: .* is missing"):
        prepare_public_set("cc3m_595k", tmp_path, None, decode=False)


def test_public_set_without_a_copy():
    with pytest.raises(
        DatasetError, match=r"There is no such file either. Did you mean the public data set 'coyo_25m'"
    ):
        open_mixture(DataConfig(mixture="coyo_25"), 0)
    with pytest.raises(DatasetError, match=r"'coyo_25m' is a public data set. Download a copy, run vila-train data"):
        open_mixture(DataConfig(mixture="coyo_25m"), 0)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_check_command(tmp_path: Path):
    save_picture(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good = {"image": "a.png", "conversations": TURNS}
    lines = [good, {"image": "none.png", "conversations": TURNS}, {**good, "conversations": []},
             {"image": "broken.png", "conversations": TURNS}]  # fmt: skip
    save_lines(tmp_path / "data.jsonl", lines)
    text = run("check", f"{tmp_path / 'data.jsonl'}*2")
    assert "4 samples; 8 per epoch (weight 2)" in text
    assert "4 checked, 2 can be used" in text
    assert "1 × missing media file" in text
    assert "1 × empty conversation" in text
    assert "data.jsonl/1: its image" in text
    (found,) = json.loads(run("check", tmp_path / "data.jsonl", "--decode", "--json"))
    assert found["bad"] == {"missing media file": 1, "empty conversation": 1, "unreadable medium": 1}
    assert (found["samples"], found["usable"], found["images"]) == (4, 1, 1)
    assert len(found["first_bad"]) == 3


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_check_fails_if_no_sample_of_a_dataset_can_be_used(tmp_path: Path, options: tuple[str, ...]):
    save_lines(tmp_path / "good.jsonl", [{"question": "x", "answer": "y"}, {"question": "x", "answer": ""}])
    save_lines(tmp_path / "bad.jsonl", [{"question": "x", "answer": ""}] * 2)
    for mixture, code in (("good.jsonl", 0), ("good.jsonl+bad.jsonl", 1)):
        names = "+".join(str(tmp_path / name) for name in mixture.split("+"))
        assert CliRunner().invoke(app, ["data", "check", names, *options]).exit_code == code


def test_files_of_our_own_are_not_listed_as_what_a_folder_holds(tmp_path: Path):
    (tmp_path / ".chat.json.samples.npy").touch()
    with pytest.raises(DatasetError, match=r"has no file .*, only nothing\."):
        prepare_public_set("m3it", tmp_path, None, decode=False)


def test_check_reads_evenly_spread_samples(tmp_path: Path):
    save_lines(tmp_path / "data.jsonl", [{"question": "x", "answer": "y" if n % 2 else ""} for n in range(1000)])
    (found,) = json.loads(run("check", tmp_path / "data.jsonl", "--samples", 10, "--json"))
    assert (found["samples"], found["checked"], found["bad"]) == (1000, 10, {"empty message": 10})
    (found,) = json.loads(run("check", tmp_path / "data.jsonl", "--samples", 0, "--json"))
    assert (found["checked"], found["usable"]) == (1000, 500)
    assert len(found["first_bad"]) == 5


def test_list_and_prepare_commands(tmp_path: Path):
    publish("cc3m_595k", tmp_path)
    text = run("prepare", "cc3m_595k", tmp_path)
    assert "3 samples of 595,375 published" in text
    assert "595,372 samples fewer than were published" in text
    assert f"--registry {tmp_path / 'vila-datasets.yaml'} --data cc3m_595k" in text
    listed = run("list", "--registry", tmp_path / "vila-datasets.yaml")
    assert "cc3m_595k            dataset of a registry" in listed or "dataset of a registry" in listed
    assert "drawn-world" in listed
    assert "public: Web images" in listed
    names = [row["name"] for row in json.loads(run("list", "--json"))]
    assert {"coyo_25m", "mmc4_core", "m3it", "vflan", "drawn-world"} <= set(names)


def test_commands_explain_errors(tmp_path: Path):
    for arguments in (("check", "nothing"), ("check", tmp_path / "x.jsonl"), ("prepare", "x", tmp_path),
                      ("list", "--registry", tmp_path / "x.yaml")):  # fmt: skip
        with pytest.raises(VilaError):
            run(*arguments)


@pytest.mark.parametrize("subset", ["", "@some"])
def test_check_compares_the_number_of_samples_with_the_registry(tmp_path: Path, subset: str):
    sample = {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}
    (tmp_path / "data.jsonl").write_text((json.dumps(sample) + "\n") * 3)
    (tmp_path / "some.txt").write_text("# samples: 3\n0\n")
    registry = tmp_path / "my.yaml"
    for stated, matches in ((3, False), (4, True)):
        registry.write_text(
            f"datasets:\n  mine: {{path: data.jsonl, samples: {stated}, subsets: {{some: some.txt}}}}\n"
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run("check", f"mine{subset}", "--registry", registry)
        told = [str(one.message) for one in caught]
        assert any("'mine' has 3 samples, but its registry says 4" in one for one in told) == matches, told
