"""Format `tinychat`: llm-awq's files are read as they are, written as it writes them, and converted without loss."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tests.quant.conftest import Recording, rounded, small_model, tensors_of, with_tensors
from torch import Tensor

import vila_core as vila
from vila_core.checkpoint import Checkpoint, convert, open_checkpoint
from vila_core.checkpoint.configs.language import read_language_config
from vila_core.checkpoint.json_files import read_section
from vila_core.checkpoint.tensors.headers import read_header
from vila_core.checkpoint.tensors.reading import read_tensors
from vila_core.cli.main import main
from vila_core.config import DecoderConfig
from vila_core.errors import CheckpointError
from vila_quant.formats.awq import AwqFormat
from vila_quant.linears.groupwise_linear import GroupwiseLinear

MEDIA = Path("examples/media")
UP = "model.layers.1.mlp.up_proj"


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    return (
        actual.dtype == expected.dtype
        and actual.shape == expected.shape
        and torch.equal(actual.flatten().clone().view(torch.uint8), expected.flatten().clone().view(torch.uint8))
    )


def same(actual: Checkpoint, expected: Checkpoint) -> bool:
    ours, theirs = tensors_of(actual), tensors_of(expected)
    return ours.keys() == theirs.keys() and all(same_bits(ours[name], theirs[name]) for name in ours)


def state_dict(folder: Path) -> dict[str, Tensor]:
    (file,) = folder.glob("**/*-w4-g128-awq-v2.pt")
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="session")
def tinychat_tiny(tmp_path_factory: pytest.TempPathFactory, awq_tiny: Checkpoint) -> Checkpoint:
    """The embedded model in four bits as TinyChat's; not to be changed."""
    return convert(awq_tiny, tmp_path_factory.mktemp("tinychat") / "vila-tiny", "tinychat")


@pytest.fixture
def folder(tinychat_tiny: Checkpoint, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(tinychat_tiny.path, tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, changed: dict[str, Tensor | None]) -> None:
    """Change, add or (None) take away tensors of TinyChat's file."""
    (file,) = folder.glob("**/*-v2.pt")
    tensors = state_dict(folder) | changed
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


@pytest.fixture
def around_recording(recording: Recording, tmp_path: Path) -> Path:
    """A folder of a whole model around the recorded language model, whose place the recorded file takes."""
    config = read_language_config(read_section(recording.path("*_awq_gemm") / "config.json"), 2048)
    assert isinstance(config, DecoderConfig)
    return small_model(tmp_path / "whole", config).path


@pytest.mark.parametrize("place", ["llm", ".", "instead of the whole weights"])
def test_the_recorded_file_is_read_and_written_to_the_bit(
    recording: Recording, around_recording: Path, tmp_path: Path, place: str
) -> None:
    file = recording.path("*-w4-g128-awq-v2.pt")
    shutil.copyfile(file, around_recording / (place if place in ("llm", ".") else "llm") / file.name)
    if place not in ("llm", "."):
        (around_recording / "llm" / "model.safetensors").unlink()
    read = open_checkpoint(around_recording)
    assert (read.format, read.quantization is not None) == ("tinychat", True)
    convert(read, tmp_path / "written", "tinychat")
    ours, recorded = state_dict(tmp_path / "written"), torch.load(file, weights_only=True)
    assert list(ours) == list(recorded)
    assert [name for name in recorded if not same_bits(ours[name], recorded[name])] == []


def test_the_recorded_file_becomes_the_recorded_checkpoint(
    recording: Recording, around_recording: Path, tmp_path: Path
) -> None:
    file = recording.path("*-w4-g128-awq-v2.pt")
    shutil.copyfile(file, around_recording / file.name)
    convert(around_recording, tmp_path / "awq", "awq")
    recorded = recording.path("*_awq_gemm") / "model.safetensors"
    expected = dict(read_tensors(recorded, read_header(recorded)))
    written = tmp_path / "awq" / "llm" / "model.safetensors"
    ours = dict(read_tensors(written, read_header(written)))
    assert ours.keys() == expected.keys()
    assert [name for name in expected if not same_bits(ours[name], expected[name])] == []
    own = read_section(tmp_path / "awq" / "llm" / "config.json").section("quantization_config").values
    stated = read_section(recording.path("*_awq_gemm") / "config.json").section("quantization_config").values
    assert own | {"modules_to_not_convert": None} == stated


def test_awq_to_tinychat_and_back_loses_nothing(
    awq_tiny: Checkpoint, tinychat_tiny: Checkpoint, tmp_path: Path
) -> None:
    assert not (tinychat_tiny.path / "llm" / "model.safetensors").exists()
    assert "quantization_config" not in read_section(tinychat_tiny.path / "llm" / "config.json")
    assert same(tinychat_tiny, awq_tiny)
    assert same(convert(tinychat_tiny, tmp_path / "awq", "awq"), awq_tiny)


def test_the_program_converts_and_describes_it(
    awq_tiny: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["convert", str(awq_tiny.path), str(tmp_path / "out"), "--format", "tinychat"],
        ["info", str(tmp_path / "out")],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "(tinychat)" in shown
    assert "TinyChat, 4 bits, groups of 128" in shown
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(tmp_path / "out"), str(tmp_path / "whole"), "--format", "vila"])
    assert stopped.value.code == 2
    assert "is quantized (TinyChat, 4 bits, groups of 128)" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "whole").exists()


def test_the_file_holds_what_llm_awq_writes(tinychat_tiny: Checkpoint) -> None:
    tensors = state_dict(tinychat_tiny.path)
    names = list(tensors)
    assert names[0] == "model.embed_tokens.weight"
    assert names[1:5] == [
        f"model.layers.0.self_attn.q_proj.{kind}" for kind in ("qweight", "scales", "scaled_zeros", "bias")
    ]
    assert names[-2:] == ["model.norm.weight", "lm_head.weight"]
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])  # TinyChat unties the model
    assert tensors[f"{UP}.qweight"].dtype == torch.int16
    assert tensors[f"{UP}.qweight"].shape == (160, 256)
    assert tensors[f"{UP}.scales"].shape == tensors[f"{UP}.scaled_zeros"].shape == (8, 640)


def test_it_loads_like_any_other_and_answers_as_awq_does(tinychat_tiny: Checkpoint, awq_tiny: Checkpoint) -> None:
    prompt = [vila.Image(MEDIA / "scene.png"), "What is in the picture?"]
    models = [vila.load(checkpoint.path, device="cpu") for checkpoint in (tinychat_tiny, awq_tiny)]
    assert isinstance(models[0].network.get_submodule(f"llm.{UP}"), GroupwiseLinear)
    ours, theirs = (model.generate(prompt, max_new_tokens=40) for model in models)
    assert ours == theirs


def test_it_is_written_whole_or_not_at_all(lite: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"'llm.model.layers.0.* has groups of 32 .*\(and 13 more\)\. Format 'awq' supports"
    ):
        convert(rounded(lite, 32), tmp_path / "out", "tinychat")
    assert list(tmp_path.iterdir()) == []


def test_what_tinychat_does_not_read_is_refused(awq_tiny: Checkpoint, whole_tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"every linear .*'llm.{UP}' is not quantized"):
        convert(rounded(whole_tiny, 128, skip=(f"llm.{UP}",)), tmp_path / "out", "tinychat")
    head: dict[str, Tensor | None] = {
        "llm.lm_head.weight": torch.zeros(1024, 256, dtype=torch.int8),
        "llm.lm_head.weight_scale": torch.ones(1024, 1),
    }
    with pytest.raises(CheckpointError, match=r"'llm\.lm_head' is int8"):
        convert(with_tensors(awq_tiny, head), tmp_path / "out", "tinychat")
    scales = tensors_of(awq_tiny)[f"llm.{UP}.scales"].clone()
    scales[0, 0] = 0
    with pytest.raises(CheckpointError, match=f"Layer '{UP}' .*zeros cannot be recovered"):
        convert(with_tensors(awq_tiny, {f"llm.{UP}.scales": scales}), tmp_path / "out", "tinychat")
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_the_nvila_layout_becomes_folders_and_comes_back(tmp_path: Path, lite: Checkpoint) -> None:
    config = lite.config.language_model.model_copy(
        update={"hidden_size": 128, "intermediate_size": 256, "head_dim": 64}
    )
    assert isinstance(config, DecoderConfig)
    source = rounded(small_model(tmp_path / "whole", config, "nvila"), 128)
    written = convert(source, tmp_path / "tinychat", "tinychat")
    assert written.config == source.config
    assert same(written, source)
    AwqFormat(layout="nvila").write(written, tmp_path / "back")
    assert same(open_checkpoint(tmp_path / "back"), source)


class Payload:
    """Pickled, it asks the reader to create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def test_code_in_the_file_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    (file,) = folder.glob("**/*-v2.pt")
    torch.save({"model.norm.weight": Payload(tmp_path / "ran")}, file)
    with pytest.raises(CheckpointError, match=r"was refused.*Nothing of it was executed"):
        open_checkpoint(folder)
    file.write_bytes(pickle.dumps({"model.norm.weight": Payload(tmp_path / "ran")}, protocol=2))
    with pytest.raises(CheckpointError, match=r"refused|not a torch file"):
        open_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scales": None}, rf"'{UP}.scales' is missing; expected F16 \[8, 640\]"),
        ({"scaled_zeros": torch.zeros(8, 640)}, r"scaled_zeros' is F32 \[8, 640\]; expected F16"),
        ({"scales": torch.ones(2, 640).half()}, r"scales' is F16 \[2, 640\]; expected F16 \[8, 640\]"),
        ({"qweight": torch.zeros(160, 32, dtype=torch.int32)}, "version 1 .*offline-weight-repacker"),
        ({"qweight": torch.zeros(160, 100, dtype=torch.int16)}, r"shape \[160, 100\]; expected \[N/4, K\]"),
        ({"qweight": torch.zeros(3, 256, dtype=torch.int16)}, "has 12 outputs; expected a multiple of 8"),
        ({"qweight": torch.zeros(160, 256)}, "qweight' is F32"),
        (
            {"other": torch.zeros(2, dtype=torch.complex128)},
            "other' has dtype torch.complex128, which is not supported",
        ),
    ],
)
def test_tensors_that_make_no_layer_are_named(folder: Path, changed: dict[str, Tensor | None], message: str) -> None:
    rewrite(folder, {f"{UP}.{kind}": tensor for kind, tensor in changed.items()})
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_zeros_that_are_not_whole_are_refused_as_they_are_read(folder: Path) -> None:
    rewrite(folder, {f"{UP}.scaled_zeros": torch.full((8, 640), 0.123).half()})
    with pytest.raises(CheckpointError, match=f"layer '{UP}': .*integer zeros from 0 to 15"):
        vila.load(folder, device="cpu")


def test_a_file_without_quantized_weights_is_refused(folder: Path) -> None:
    (file,) = folder.glob("**/*-v2.pt")
    torch.save({"model.norm.weight": torch.ones(4)}, file)
    with pytest.raises(CheckpointError, match="not what llm-awq writes"):
        open_checkpoint(folder)


def test_two_files_are_one_too_many(folder: Path, awq_tiny: Checkpoint, tmp_path: Path) -> None:
    (file,) = folder.glob("**/*-v2.pt")
    shutil.copyfile(file, folder / "other-w4-g128-awq-v2.pt")
    with pytest.raises(CheckpointError, match=r"must contain one TinyChat file .*; got llm/.*, other-w4"):
        open_checkpoint(folder)
    both = convert(awq_tiny, tmp_path / "both", "awq").path
    shutil.copyfile(file, both / file.name)
    with pytest.raises(CheckpointError, match="has AWQ weights and TinyChat's"):
        open_checkpoint(both)


def test_a_cut_file_is_refused(folder: Path) -> None:
    (file,) = folder.glob("**/*-v2.pt")
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="damaged or not a torch file"):
        open_checkpoint(folder)


def test_without_vila_quant_the_reader_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VILA_PLUGINS", "")
    with pytest.raises(CheckpointError, match=r"is quantized \(tinychat\).*Install vila-quant"):
        open_checkpoint(folder)
