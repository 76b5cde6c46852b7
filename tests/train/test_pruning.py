"""DeltaLoss pruning: scores of two models, the samples that are kept, and runs that are stopped or fail."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fork_server import run_in_processes

import vila_core
from vila_core.checkpoint.embedded import embedded_model
from vila_core.errors import CheckpointError, ConfigError, VilaError
from vila_train.cli import main
from vila_train.config import DataConfig
from vila_train.data.mixture import open_mixture
from vila_train.data.subsets import read_subset
from vila_train.errors import DatasetError, TrainingError
from vila_train.pruning import prune as pruning
from vila_train.pruning import scoring
from vila_train.pruning.prune import PruneOptions, delta_losses, file_name, prune
from vila_train.pruning.scoring import AnswerScore, read_scores
from vila_train.pruning.selection import select
from vila_train.tiny.dataset import DrawnWorld

NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "options", "kept"),
    [
        ([0.1, 0.9, 0.5, 0.7], {}, [1, 3]),
        ([0.1, 0.9, 0.5], {}, [1, 2]),  # rounded up
        (np.arange(30.0), {"keep": 0.1}, [27, 28, 29]),
        ([0.1, 0.9, 0.5, 0.7], {"drop_hardest": 0.25}, [2, 3]),
        ([0.1, 0.9, 0.5, 0.7], {"keep": 1.0}, [0, 1, 2, 3]),
        ([-1.0, -0.1, 0.0, 0.2], {"keep": 0.75}, [1, 2, 3]),  # whatever their sign
        ([-1.0, -0.1, 0.0, 0.2], {"keep": 0.75, "min_score": 0.0}, [2, 3]),
        ([-1.0, -0.1, 0.0, 0.2], {"keep": 0.25, "min_score": 0.0}, [3]),
        ([-1.0, -0.1, 0.0, 0.2], {"keep": 1.0, "drop_hardest": 0.25, "min_score": 0.0}, [2]),
        ([NAN, 3.0, NAN, 1.0], {}, [1]),  # half of those with a score
        ([2.0, 2.0, 2.0, 2.0], {}, [0, 1]),  # equal scores in the order of the data
        ([math.inf, 1.0, -math.inf, 2.0], {"keep": 1.0}, [1, 3]),
        ([0.3], {"keep": 0.01}, [0]),
        ([NAN, NAN], {}, []),
        ([], {}, []),
        ([1.0, 2.0], {"keep": 1.0, "drop_hardest": 0.99}, []),
    ],
)
def test_the_highest_scores_are_kept(scores: Any, options: dict[str, float], kept: list[int]) -> None:
    found = select(np.array(scores), **options)
    assert found.kept.tolist() == kept
    known = sum(math.isfinite(score) for score in scores)
    assert (found.scored, found.distracting + found.easy + found.hardest + len(kept)) == (known, known)


def test_dropped_samples_are_counted_by_what_is_wrong_with_them() -> None:
    found = select(np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]), keep=0.5, drop_hardest=1 / 6)
    assert found.kept.tolist() == [2, 3, 4]
    assert (found.hardest, found.easy, found.distracting, found.kept_distracting) == (1, 0, 2, 0)
    found = select(np.array([-2.0, -1.0, 0.0, 1.0]), keep=0.75)
    assert (found.hardest, found.easy, found.distracting, found.kept_distracting) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("keep", "hardest"), [(0.0, 0.0), (1.1, 0.0), (-0.5, 0.0), (0.5, 1.0), (0.5, -0.1), (NAN, 0.0)]
)
def test_shares_out_of_range_are_refused(keep: float, hardest: float) -> None:
    with pytest.raises(ConfigError, match="Expected 0 < keep <= 1"):
        select(np.ones(3), keep, hardest)


def test_a_score_is_the_logarithm_of_a_ratio() -> None:
    small = [AnswerScore(0, math.log(0.1), 2), AnswerScore(1, math.log(0.9), 1), AnswerScore(2, reason="damaged")]
    large = [AnswerScore(0, math.log(0.8), 4), AnswerScore(1, math.log(0.3), 1), AnswerScore(2, -1.0, 1)]
    whole = delta_losses(small, large, per_token=False)
    assert whole[:2] == pytest.approx([math.log(8), math.log(1 / 3)])
    assert math.isnan(whole[2])
    assert delta_losses(small, large, per_token=True)[0] == pytest.approx(math.log(0.8) / 4 - math.log(0.1) / 2)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("mine", "mine"), ("data/my set.jsonl", "my_set"), ("a b", "a_b"), ("../../etc/passwd", "passwd"), ("x*y", "x_y")],
)
def test_a_dataset_gives_its_name_to_its_files(dataset: str, expected: str) -> None:
    assert file_name(dataset) == expected


QUESTIONS = ("attribute", "count", "position", "word")


def write_data(folder: Path, rows: list[tuple[PIL.Image.Image | str | None, str, str]]) -> Path:
    """Write questions in LLaVA's format: (picture or its name, question, answer)."""
    folder.mkdir(exist_ok=True)
    records: list[dict[str, Any]] = []
    for number, (picture, question, answer) in enumerate(rows):
        name = picture if isinstance(picture, str) else f"{number}.png"
        if isinstance(picture, PIL.Image.Image):
            picture.save(folder / name)
        human = question if picture is None else f"<image>\n{question}"
        turns = [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]
        records.append({"id": str(number), "conversations": turns} | ({} if picture is None else {"image": name}))
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def drawn(count: int) -> list[tuple[PIL.Image.Image, str, str]]:
    """Return questions on drawn pictures, every second one with the answer to another."""
    samples = [DrawnWorld().sample("test", QUESTIONS[index % len(QUESTIONS)], index) for index in range(count)]
    wrong = [sample.answer for sample in samples[4:] + samples[:4]]
    return [
        (sample.prompt[0].source, str(sample.prompt[1]), wrong[index] if index % 2 else sample.answer)
        for index, sample in enumerate(samples)
    ]


@pytest.fixture(scope="module")
def worse_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vila-tiny with noise in the weights of its language model."""
    folder = tmp_path_factory.mktemp("worse") / "model"
    shutil.copytree(embedded_model(), folder)
    generator = torch.Generator().manual_seed(0)
    for path in (folder / "llm").glob("*.safetensors"):
        noisy = {
            name: tensor + 0.5 * tensor.float().std() * torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 2
            else tensor
            for name, tensor in load_file(path).items()
        }
        save_file({name: tensor.to(torch.bfloat16).contiguous() for name, tensor in noisy.items()}, path)
    return folder


def test_the_samples_that_only_the_large_model_knows_are_kept(tmp_path: Path, worse_tiny: Path) -> None:
    path = write_data(tmp_path / "data", drawn(16))
    options = PruneOptions(str(worse_tiny), "vila-tiny", str(path))
    (found,) = prune(options, tmp_path / "out", keep=0.5, device="cpu")
    kept = found.selection.kept
    right = {0, 2, 4, 6, 8, 10, 12, 14}
    assert len(set(kept.tolist()) & right) >= 0.8 * len(kept)
    assert read_subset(found.path, 16).tolist() == kept.tolist()
    mixture = open_mixture(DataConfig(mixture=f"{path}@{found.path}"), seed=0)
    assert len(mixture) == len(kept)


def test_the_same_model_twice_leaves_nothing(tmp_path: Path, micro_checkpoint: Path) -> None:
    path = write_data(tmp_path / "data", [(None, "red", "blue"), (None, "blue", "red")])
    options = PruneOptions(str(micro_checkpoint), str(micro_checkpoint), str(path))
    with pytest.raises(TrainingError, match=r"of 2 samples 2 have a score, and none is above 0. Is the large model"):
        prune(options, tmp_path / "out", device="cpu")


def test_limits_that_leave_nothing_are_named(tmp_path: Path, micro_checkpoint: Path, other_micro: Path) -> None:
    path = write_data(tmp_path / "data", texts(6))
    options = PruneOptions(str(micro_checkpoint), str(other_micro), str(path))
    with pytest.raises(TrainingError, match=r"Nothing of .* is left: .* Change --drop-hardest or --min-score"):
        prune(options, tmp_path / "out", min_score=1e9, device="cpu")


@pytest.fixture(scope="module")
def other_micro(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model with other weights."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(micro_checkpoint, folder)
    for path in folder.rglob("*.safetensors"):
        save_file({name: (2.0 * tensor).contiguous() for name, tensor in load_file(path).items()}, path)
    return folder


def texts(count: int) -> list[tuple[None, str, str]]:
    words = ["red", "blue", "green", "left", "right", "one", "two"]
    return [(None, f"{words[i % 7]} {words[i // 7 % 7]}", words[(3 * i) % 7]) for i in range(count)]


def test_damaged_samples_are_counted_and_never_kept(tmp_path: Path, micro_checkpoint: Path, other_micro: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "broken.png").write_bytes(b"no picture")
    rows: list[Any] = [
        *texts(6),
        ("missing.png", "What?", "red"),
        ("broken.png", "What?", "red"),
        (None, "red", "one " * 300),
    ]
    path = write_data(tmp_path / "data", rows)
    options = PruneOptions(str(micro_checkpoint), str(other_micro), str(path), max_length=64)
    (found,) = prune(options, tmp_path / "out", keep=1.0, device="cpu")
    assert sum(found.failed.values()) == 3
    assert found.failed["too long"] == 1
    assert set(found.selection.kept.tolist()) <= set(range(6))
    assert found.selection.scored == 6
    named = [score.message for score in read_scores(tmp_path / "out" / "mine.small.jsonl") if score.reason]
    assert any(message and "missing.png" in message for message in named)


@pytest.mark.parametrize(
    "tail", ["", '{"index": 4, "log', '{"index": 4}\n{"ind', "nonsense\n", '{"index": "x", "log_p": 1.0}\n', "[]\n"]
)
def test_a_stopped_run_continues(
    tmp_path: Path, micro_checkpoint: Path, other_micro: Path, tail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_data(tmp_path / "data", texts(8))
    options = PruneOptions(str(micro_checkpoint), str(other_micro), str(path))
    (whole,) = prune(options, tmp_path / "whole", keep=1.0, device="cpu")
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_text((tmp_path / "whole" / "settings.json").read_text())
    kept = (tmp_path / "whole" / "mine.small.jsonl").read_text().splitlines(keepends=True)[:4]
    (out / "mine.small.jsonl").write_text("".join(kept) + tail)
    losses: list[int] = []
    original = pruning.score_answers

    def counting(model: Any, source: Any, file: Path, *rest: Any) -> Any:
        losses.append(len(list(read_scores(file))))
        return original(model, source, file, *rest)

    monkeypatch.setattr(pruning, "score_answers", counting)
    (resumed,) = prune(options, out, keep=1.0, device="cpu")
    assert losses == [4, 0]
    assert resumed.selection.kept.tolist() == whole.selection.kept.tolist()
    assert sorted(s.index for s in read_scores(out / "mine.small.jsonl")) == list(range(8))


def test_other_shares_need_no_model(
    tmp_path: Path, micro_checkpoint: Path, other_micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_data(tmp_path / "data", texts(8))
    options = PruneOptions(str(micro_checkpoint), str(other_micro), str(path))
    (more,) = prune(options, tmp_path / "out", keep=1.0, device="cpu")
    monkeypatch.setattr(pruning.vila_core, "load", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    (fewer,) = prune(options, tmp_path / "out", keep=0.2, device="cpu")
    assert set(fewer.selection.kept.tolist()) <= set(more.selection.kept.tolist())
    assert len(fewer.selection.kept) <= 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "no_such_data"}, "no_such_data"),
        ({"data": ""}, "The mixture is empty"),
        ({"data": "{path}@half.txt"}, "is a part of a dataset"),
        ({"small": "/no/such/model"}, "/no/such/model"),
        ({"large": "/no/such/model"}, "/no/such/model"),
        ({"registries": ("/no/such/file.yaml",)}, "/no/such/file.yaml"),
    ],
)
def test_mistakes_are_reported_before_a_model_is_loaded(
    tmp_path: Path, micro_checkpoint: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning.vila_core, "load", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    path = write_data(tmp_path / "data", texts(2))
    model = str(micro_checkpoint)
    values: dict[str, Any] = {"small": model, "large": model, "data": str(path), **changes}
    values["data"] = values["data"].replace("{path}", str(path))
    with pytest.raises(VilaError, match=message):
        prune(PruneOptions(**values), tmp_path / "out", device="cpu")


def test_scores_of_other_models_are_not_mixed(tmp_path: Path, micro_checkpoint: Path, other_micro: Path) -> None:
    path = write_data(tmp_path / "data", texts(4))
    prune(PruneOptions(str(micro_checkpoint), str(other_micro), str(path)), tmp_path / "out", keep=1.0, device="cpu")
    swapped = PruneOptions(str(other_micro), str(micro_checkpoint), str(path))
    with pytest.raises(ConfigError, match="holds scores of something else: small"):
        prune(swapped, tmp_path / "out", device="cpu")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        prune(swapped, tmp_path / "data", device="cpu")


def test_scores_of_changed_models_or_data_are_not_mixed(
    tmp_path: Path, micro_checkpoint: Path, other_micro: Path
) -> None:
    """They are at the same paths; the folder's scores are of the earlier ones."""
    path, large = write_data(tmp_path / "data", texts(4)), tmp_path / "large"
    shutil.copytree(other_micro, large)
    options = PruneOptions(str(micro_checkpoint), str(large), str(path))
    prune(options, tmp_path / "out", keep=1.0, device="cpu")
    weights = large / "llm/model.safetensors"
    save_file({name: 1.001 * tensor for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(ConfigError, match=r"scores of something else: files.large.model/llm/model.safetensors was"):
        prune(options, tmp_path / "out", keep=1.0, device="cpu")
    shutil.copytree(other_micro, large, dirs_exist_ok=True)
    write_data(tmp_path / "data", texts(5))
    with pytest.raises(ConfigError, match=r"scores of something else: samples.*mine.jsonl was 4 and is 5"):
        prune(options, tmp_path / "out", keep=1.0, device="cpu")
    for rows in (texts(4)[::-1], [*texts(3), (None, "red", "up")]):
        write_data(tmp_path / "data", rows)
        with pytest.raises(
            ConfigError, match=r"scores of something else: data_fingerprints.*mine.jsonl was .*Restore it"
        ):
            prune(options, tmp_path / "out", keep=1.0, device="cpu")
    write_data(tmp_path / "data", texts(4))
    prune(options, tmp_path / "out", keep=1.0, device="cpu")
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    for name in ("files", "samples", "data_fingerprints"):
        del settings[name]  # as an earlier version wrote them
    (tmp_path / "out/settings.json").write_text(json.dumps(settings))
    prune(options, tmp_path / "out", keep=1.0, device="cpu")


def test_a_folder_without_scores_takes_other_models(
    tmp_path: Path, micro_checkpoint: Path, other_micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call named the wrong model, and scored nothing."""
    path = write_data(tmp_path / "data", texts(4))

    def fail(*_: Any, **__: Any) -> Any:
        raise CheckpointError("The GPU is lost.")

    wrong = PruneOptions(str(other_micro), str(other_micro), str(path))
    with monkeypatch.context() as patched:
        patched.setattr(pruning.vila_core, "load", fail)
        with pytest.raises(CheckpointError, match="lost"):
            prune(wrong, tmp_path / "out", device="cpu")
    options = PruneOptions(str(micro_checkpoint), str(other_micro), str(path))
    (found,) = prune(options, tmp_path / "out", keep=1.0, device="cpu")
    assert found.selection.scored == 4


def test_datasets_of_one_name_are_refused(tmp_path: Path, micro_checkpoint: Path) -> None:
    one, two = (write_data(tmp_path / name, texts(2)) for name in ("one", "two"))
    options = PruneOptions(str(micro_checkpoint), str(micro_checkpoint), f"{one}+{two}")
    with pytest.raises(DatasetError, match=r"Two datasets would be written to mine.txt"):
        prune(options, tmp_path / "out", device="cpu")


def test_the_command_says_what_to_train_on(
    tmp_path: Path, micro_checkpoint: Path, other_micro: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_data(tmp_path / "data", texts(8))
    arguments = ["prune", "--small", str(micro_checkpoint), "--large", str(other_micro), "--data", str(path)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(tmp_path / "out"), "--device", "cpu", "--keep", "1"])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert f"--data '{path}@{tmp_path / 'out' / 'mine.txt'}'" in printed.replace("\n", "")
    assert "of 8 kept; dropped" in printed


def test_answers_are_scored_as_training_computes_their_loss(
    tmp_path: Path, micro_checkpoint: Path, other_micro: Path
) -> None:
    """The same sums as `packed_loss` of all samples in one row."""
    from vila_train.packing.rows import PackedRow, packed_loss
    from vila_train.samples import Encoder

    path = write_data(tmp_path / "data", texts(5))
    options = PruneOptions(str(micro_checkpoint), str(other_micro), str(path))
    prune(options, tmp_path / "out", keep=1.0, device="cpu")
    model = vila_core.load(str(micro_checkpoint), device="cpu")
    mixture = open_mixture(DataConfig(mixture=str(path)), seed=0)
    encoder = Encoder(model.network, model.tokenizer, model.template, model.limits)
    samples = [encoder.fit(mixture.conversation(0, index), 999, "drop") for index in range(5)]
    with torch.no_grad():
        loss = float(packed_loss(model.network, PackedRow.of(samples, torch.device("cpu"))))
    scores = list(read_scores(tmp_path / "out" / "mine.small.jsonl"))
    assert -sum(score.log_p or 0 for score in scores) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    "line",
    [
        '{"index": -1, "log_p": -1.0, "tokens": 3}',
        '{"index": 1, "log_p": NaN, "tokens": 3}',
        '{"index": 1, "log_p": -1.0, "tokens": 0}',
        '{"index": 1, "log_p": -1.0, "tokens": "three"}',
        '{"index": true, "log_p": -1.0, "tokens": 3}',
        '{"index": 1, "log_p": null, "reason": 5}',
    ],
)
def test_scores_that_no_model_gave_are_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.small.jsonl"
    path.write_text(f'{{"index": 0, "log_p": -2.5, "tokens": 3}}\n{line}\n')
    assert [score.index for score in read_scores(path)] == [0]


@pytest.mark.parametrize("place", ["settings.json", "scores", "mine.txt"])
def test_a_killed_run_starts_again(tmp_path: Path, micro_checkpoint: Path, other_micro: Path, place: str) -> None:
    path = write_data(tmp_path / "data", texts(6))
    options = PruneOptions(str(micro_checkpoint), str(other_micro), str(path))
    (expected,) = prune(options, tmp_path / "whole", keep=0.5, device="cpu")

    def killed() -> None:
        def kill(*_: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        replace = Path.replace
        if place == "scores":
            scoring.packed_loss = kill
        else:
            Path.replace = lambda self, target: kill() if target.name == place else replace(self, target)  # type: ignore[method-assign]
        prune(options, tmp_path / "out", keep=0.5, device="cpu")

    assert run_in_processes([killed]) == [-signal.SIGKILL]
    (found,) = prune(options, tmp_path / "out", keep=0.5, device="cpu")
    assert found.path.read_text() == expected.path.read_text()
    assert not [*(tmp_path / "out").glob(".*.part")]


def test_a_model_that_gives_nan_has_no_scores(tmp_path: Path, micro_checkpoint: Path, other_micro: Path) -> None:
    nan = tmp_path / "nan"
    shutil.copytree(micro_checkpoint, nan)
    for path in nan.rglob("*.safetensors"):
        save_file({name: tensor * NAN for name, tensor in load_file(path).items()}, path)
    data = write_data(tmp_path / "data", texts(3))
    with pytest.raises(TrainingError, match=r"none of 3 samples has a score \(3 not finite\)"):
        prune(PruneOptions(str(nan), str(other_micro), str(data)), tmp_path / "out", device="cpu")
