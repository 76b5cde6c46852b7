"""Checkpoints to resume from: complete or not there, and the one before when the newest is damaged."""

import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.loop_runs import in_processes, kill_at, largest_difference, micro_config, read_losses, run
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from vila_core.errors import OutputError, VilaWarning
from vila_train import checkpoint_state, checkpoints
from vila_train.errors import TrainingError

FULL = OSError(28, "No space left on device")  # a write into an open file does not say its name


@pytest.fixture(scope="module")
def begun(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    """The folder of a run after 4 of 6 steps, with two checkpoints; and the losses of all steps."""
    folder = tmp_path_factory.mktemp("begun")
    losses = run(micro_config(micro_checkpoint), folder / "whole").losses

    def stop(step: int) -> None:
        if step == 5:
            os._exit(0)

    in_processes(micro_config(micro_checkpoint), folder / "run", folder / "losses", after=stop)
    assert names(folder / "run") == ["step-00000002", "step-00000004"]
    return folder / "run", losses


@pytest.fixture
def copy(begun: tuple[Path, dict[int, float]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun[0], tmp_path / "run"))


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def newest(out: Path) -> Path:
    return max((out / "checkpoints").glob("step-*"))


def resume(checkpoint: Path, out: Path) -> Any:
    return run(micro_config(checkpoint), out)


def cut_short(folder: Path) -> None:
    (file,) = folder.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-100])


def one_bit(folder: Path) -> None:
    (file,) = folder.glob("*.distcp")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(folder: Path) -> None:
    (file,) = folder.glob("*.distcp")
    file.write_bytes(b"")


def no_tensors(folder: Path) -> None:
    (file,) = folder.glob("*.distcp")
    file.unlink()


def no_metadata(folder: Path) -> None:
    (folder / ".metadata").unlink()


def damaged_metadata(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"\x80\x04.")


def no_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def half_a_state(folder: Path) -> None:
    text = (folder / "state.json").read_text()
    (folder / "state.json").write_text(text[: len(text) // 2])


def another_state(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": "four", "lanes": {}, "skipped": {}}')


def other_digits(folder: Path) -> None:
    """Valid JSON, but not what was written."""
    state = json.loads((folder / "state.json").read_text())
    state["lanes"]["0"]["position"] += 4
    (folder / "state.json").write_text(json.dumps(state))


def of_another_step(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "step-00000002", folder)


def a_pipe(folder: Path) -> None:
    (folder / ".metadata").unlink()
    os.mkfifo(folder / ".metadata")


def nothing(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [
    cut_short,
    one_bit,
    empty,
    no_tensors,
    no_metadata,
    damaged_metadata,
    no_state,
    half_a_state,
    another_state,
    other_digits,
    of_another_step,
    a_pipe,
    nothing,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_passed_over(
    micro_checkpoint: Path, begun: tuple[Path, dict[int, float]], copy: Path, damage: Callable[[Path], None]
):
    damage(newest(copy))
    with pytest.warns(VilaWarning, match="The checkpoint before it is used") as caught:
        recorder = resume(micro_checkpoint, copy)
    assert "step-00000004" in str(caught[0].message)
    assert recorder.losses == {step: loss for step, loss in begun[1].items() if step > 2}


def test_old_checkpoints_are_deleted_once_the_new_one_is_on_the_disk(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done: list[str] = []
    delete = shutil.rmtree

    def rmtree(path: Any, **settings: Any) -> None:
        if Path(path).parent.name == "checkpoints":
            done.append(f"delete {Path(path).name}")
        delete(path, **settings)

    for module in (checkpoints, checkpoint_state):
        monkeypatch.setattr(module, "flush", lambda path: done.append(f"flush {path.name}"))
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    run(micro_config(micro_checkpoint, **{"saving.keep": 1, "max_steps": 4}), tmp_path / "run")
    flushed = ["flush state.json", "flush .step-00000004.part", "flush checkpoints"]
    assert [one for one in done[-5:] if one.startswith("flush")] == flushed
    assert done[-1] == "delete step-00000002"


def test_only_damaged_checkpoints_are_an_error(micro_checkpoint: Path, copy: Path):
    for folder in (copy / "checkpoints").iterdir():
        one_bit(folder)
    with pytest.warns(VilaWarning), pytest.raises(TrainingError, match=r"is damaged.* No other checkpoint is left"):
        resume(micro_checkpoint, copy)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def code_instead_of_metadata(folder: Path, path: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Touch(path)))


def code_instead_of_a_tensor(folder: Path, path: Path) -> None:
    (file,) = folder.glob("*.distcp")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    saved = io.BytesIO()
    torch.save(Touch(path), saved)
    for index, info in metadata.storage_data.items():  # now values that torch would unpickle
        metadata.state_dict_metadata[index.fqn] = BytesStorageMetadata()
        info.offset, info.length = 0, len(saved.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    file.write_bytes(saved.getvalue())


def code_in_a_file_of_tensors(folder: Path, path: Path) -> None:
    (file,) = folder.glob("*.distcp")
    file.write_bytes(pickle.dumps(Touch(path)).ljust(file.stat().st_size, b"."))


def a_file_elsewhere(folder: Path, path: Path) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = f"../../{path.name}.distcp"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (code_instead_of_metadata, "names pathlib.*Path.*, which no checkpoint needs"),
        (code_instead_of_a_tensor, "BytesStorageMetadata, which no checkpoint needs"),
        (code_in_a_file_of_tensors, "one of its files holds something else than tensors"),
        (a_file_elsewhere, r"\.\./made.distcp is no file of a checkpoint"),
    ],
)
def test_a_checkpoint_runs_no_code(
    micro_checkpoint: Path, copy: Path, tmp_path: Path, tamper: Callable[[Path, Path], None], problem: str
):
    folder = newest(copy)
    tamper(folder, tmp_path / "made")
    progress = checkpoint_state.read_progress(folder)  # whoever tampers with files can also write their checksums
    checksums = {name: checkpoint_state.file_checksum(folder / name) for name in progress.files}
    checkpoint_state.write_progress(folder, progress, checksums)
    with pytest.raises(TrainingError, match=problem):
        resume(micro_checkpoint, copy)
    assert not (tmp_path / "made").exists()


def a_pipe_for_tensors(folder: Path) -> None:
    (file,) = folder.glob("*.distcp")
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (no_metadata, r"/\.metadata cannot be read: No such file"),
        (a_pipe, r"/\.metadata cannot be read: it is a named pipe"),
        (a_pipe_for_tensors, r"\.distcp is not a regular file"),
        (no_tensors, r"cannot be loaded: .*\.distcp' cannot be read: No such file"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_files_that_the_state_does_not_list_are_named(
    micro_checkpoint: Path, copy: Path, damage: Callable[[Path], None], problem: str
):
    folder = newest(copy)
    damage(folder)
    checkpoint_state.write_progress(folder, checkpoint_state.read_progress(folder), {})
    with pytest.raises(TrainingError, match=problem):
        resume(micro_checkpoint, copy)


def test_ranks_check_all_files_together(micro_checkpoint: Path, tmp_path: Path):
    config, whole = micro_config(micro_checkpoint), tmp_path / "whole"
    assert in_processes(config, whole, tmp_path / "losses", ranks=2, after=kill_at(5))[0] == -signal.SIGKILL
    for name in ("__0_0.distcp", "__1_0.distcp"):
        out = Path(shutil.copytree(whole, tmp_path / name))
        (newest(out) / name).write_bytes(b"damaged")
        assert in_processes(config, out, tmp_path / f"{name}.losses", ranks=2) == [0, 0]
        assert list(read_losses(tmp_path / f"{name}.losses")) == [3, 4, 5, 6]  # from the checkpoint before


def test_what_a_killed_run_left_is_removed(micro_checkpoint: Path, begun: tuple[Path, dict[int, float]], copy: Path):
    partial = copy / "checkpoints/.step-00000006.part"
    partial.mkdir()
    (partial / "__0_0.distcp").write_bytes(b"half")
    assert resume(micro_checkpoint, copy).losses == {step: begun[1][step] for step in (5, 6)}
    assert names(copy) == ["step-00000004", "step-00000006"]


def test_no_checkpoint_starts_from_the_beginning(
    micro_checkpoint: Path, begun: tuple[Path, dict[int, float]], copy: Path
):
    shutil.rmtree(copy / "checkpoints")
    assert resume(micro_checkpoint, copy).losses == begun[1]


def test_skipped_samples_are_not_counted_twice(
    micro_checkpoint: Path, begun: tuple[Path, dict[int, float]], copy: Path
):
    resume(micro_checkpoint, copy)
    expected = (begun[0].parent / "whole/skipped.jsonl").read_text()
    assert (copy / "skipped.jsonl").read_text() == expected


@pytest.mark.parametrize("place", ["tensors", "state", "rename", "folder"])
def test_a_full_disk_leaves_the_checkpoint_before(
    micro_checkpoint: Path,
    begun: tuple[Path, dict[int, float]],
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
):
    def fail(*arguments: Any, **settings: Any) -> None:
        raise FULL

    target = {"tensors": "save_tensors", "state": "write_progress", "folder": "make_folder"}
    with monkeypatch.context() as patch:
        if place == "rename":
            patch.setattr(Path, "rename", fail)
        else:
            patch.setattr(checkpoints, target[place], fail)
        message = r"step 6 was not saved\. The one before is intact.*step-00000006' was not written: the disk is full"
        with pytest.raises(OutputError, match=message):
            resume(micro_checkpoint, copy)
    assert names(copy) == ["step-00000002", "step-00000004"]
    assert resume(micro_checkpoint, copy).losses == {step: begun[1][step] for step in (5, 6)}


@pytest.mark.parametrize("size", [1, 20_000, 300_000])
def test_a_limit_on_the_size_of_files(
    micro_checkpoint: Path, copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], size: int
):
    """The system refuses to write more into a file, as a full disk does, at another place of the file each time."""

    def limit() -> None:
        original = checkpoints.save_tensors

        def write(tensors: Any, **settings: Any) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                original(tensors, **settings)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        checkpoints.save_tensors = write

    config = micro_config(micro_checkpoint)
    assert in_processes(config, copy, tmp_path / "losses", before=limit) == [1]
    message = capfd.readouterr().err
    assert re.search(r"OutputError: The checkpoint of step 6 was not saved\. The one before is intact", message)
    assert "File too large" in message
    assert names(copy) == ["step-00000002", "step-00000004"]


def test_all_ranks_hear_of_a_full_disk(micro_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Only rank 1 cannot write."""

    def fill() -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter

        original = FileSystemWriter.write_data

        def write_data(self: Any, plan: Any, planner: Any) -> Any:
            if os.environ["RANK"] == "1":
                raise FULL
            return original(self, plan, planner)

        FileSystemWriter.write_data = write_data

    config = micro_config(micro_checkpoint)
    assert in_processes(config, tmp_path / "run", tmp_path / "losses", ranks=2, before=fill) == [1, 1]
    assert capfd.readouterr().err.count("OutputError: The checkpoint of step 2 was not saved. There is no earlier") == 2
    assert names(tmp_path / "run") == []


def test_ranks_without_a_common_folder_are_told(
    micro_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    def hide() -> None:
        """Remove what rank 1 has written, as if it were on another machine."""
        original = checkpoints.save_tensors

        def write(tensors: Any, checkpoint_id: Path, **settings: Any) -> None:
            original(tensors, checkpoint_id=checkpoint_id, **settings)
            (checkpoint_id / "__1_0.distcp").unlink(missing_ok=True)

        checkpoints.save_tensors = write

    config = micro_config(micro_checkpoint)
    assert in_processes(config, tmp_path / "run", tmp_path / "losses", ranks=2, before=hide) == [1, 1]
    assert "choose --out on a file system that they share" in capfd.readouterr().err


@pytest.mark.parametrize(("keep", "expected"), [(1, [6]), (2, [4, 6]), (10, [2, 4, 6])])
def test_the_newest_are_kept(micro_checkpoint: Path, tmp_path: Path, keep: int, expected: list[int]):
    config = micro_config(micro_checkpoint, **{"saving.keep": keep})
    run(config, tmp_path / "run")
    assert names(tmp_path / "run") == [f"step-{step:08}" for step in expected]


def test_frozen_weights_are_not_saved(micro_checkpoint: Path, tmp_path: Path):
    sizes: list[int] = []
    for index, tune in enumerate([("projector",), ("vision_tower", "projector", "language_model")]):
        run(micro_config(micro_checkpoint, tune=tune, max_steps=1), tmp_path / f"{index}")
        sizes.append(sum(file.stat().st_size for file in newest(tmp_path / f"{index}").glob("*.distcp")))
    assert sizes[0] < sizes[1] / 4


def test_a_resumed_run_has_the_optimizer_of_the_one_before(
    micro_checkpoint: Path, begun: tuple[Path, dict[int, float]], copy: Path
):
    """Without its moments, the next losses differ by far more than rounding."""
    losses = resume(micro_checkpoint, copy).losses
    assert losses == {step: begun[1][step] for step in (5, 6)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "_set_optimizer_tensors", lambda *arguments: None)
        shutil.copytree(begun[0], copy.parent / "again")
        again = resume(micro_checkpoint, copy.parent / "again").losses
    assert largest_difference([again[6]], [losses[6]]) > 1e-4
