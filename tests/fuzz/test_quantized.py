"""Hostile quantized checkpoints, search results and calibration files: an answer or a one-line error, within bounds."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fuzz.bounded import assert_bounded
from tests.quant.conftest import rounded

import vila_core as vila
from vila_core.checkpoint import convert, open_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_quant.quantizing.options import QuantizationOptions
from vila_quant.quantizing.pipeline import quantize_model

pytestmark = pytest.mark.slow

VALUES = (
    *(None, True, -1, 0, 1, 3, 7, 10**12, 10**400, 0.5, 1e308, "", "x", "4", "\x00", "\ud800", "gemm", "GEMM"),
    *([], [None], ["llm"] * 1000, [[[]]], {}, {"a": {}}, {"bits": 4}),
)
"""Values for any key of a config."""


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded model in four bits, by format. Asked once, because compiling the kernels takes half a minute."""
    folder = tmp_path_factory.mktemp("quantized")
    checkpoint = rounded(open_checkpoint(embedded_model()), 128)
    paths = {form: convert(checkpoint, folder / form, form).path for form in ("awq", "tinychat")}
    for path in paths.values():
        answer(path)
    return paths


def answer(folder: Path) -> str:
    model = vila.load(folder, device="cpu")
    return model.generate("What is this?", max_new_tokens=2)


def changed(source: Path, target: Path, change: Callable[[Path], object]) -> str:
    """Answer with a changed copy of a checkpoint."""
    shutil.copytree(source, target, copy_function=_link)
    change(target)
    return answer(target)


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def rewrite(folder: Path, name: str, content: bytes) -> None:
    (folder / name).unlink()
    (folder / name).write_bytes(content)


def test_hostile_quantization_configs(quantized: dict[str, Path], tmp_path: Path) -> None:
    source = quantized["awq"]
    config = json.loads((source / "llm" / "config.json").read_text())
    stated = config["quantization_config"]

    def write(key: str | None, value: object, folder: Path) -> None:
        new = value if key is None else {**stated, key: value}
        rewrite(folder, "llm/config.json", json.dumps({**config, "quantization_config": new}).encode())

    keys = [None, *stated, "desc_act", "zero_point", "quant_method", "group_size", "version", "modules_to_not_convert"]
    assert_bounded(
        {
            f"{key} = {value!r:.60}": partial(
                changed, source, tmp_path / f"{number}-{index}", partial(write, key, value)
            )
            for number, key in enumerate(dict.fromkeys(keys))
            for index, value in enumerate(VALUES)
        }
    )


def test_hostile_tensors(quantized: dict[str, Path], tmp_path: Path) -> None:
    source = quantized["awq"]
    tensors = load_file(source / "llm" / "model.safetensors")
    layer = "model.layers.0.mlp.up_proj"

    def write(new: dict[str, torch.Tensor], folder: Path) -> None:
        (folder / "llm" / "model.safetensors").unlink()
        save_file(new, folder / "llm" / "model.safetensors", metadata={"format": "pt"})

    cases: dict[str, Callable[[], object]] = {}
    for name, new in _hostile_layers(tensors, layer):
        target = tmp_path / str(len(cases))
        cases[name] = partial(changed, source, target, partial(write, new))
    assert_bounded(cases)


def _hostile_layers(tensors: dict[str, torch.Tensor], layer: str) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    for kind in ("qweight", "qzeros", "scales"):
        name = f"{layer}.{kind}"
        own = tensors[name]
        yield f"without {kind}", {other: tensor for other, tensor in tensors.items() if other != name}
        variants = {
            "scalar": own.flatten()[0].clone(),
            "flat": own.flatten(),
            "three dimensions": own[None],
            "empty": own[:0],
            "transposed": own.T.contiguous(),
            "one row less": own[:-1].clone(),
            "one column less": own[:, :-1].contiguous(),
            "bool": own.to(torch.bool),
            "float64": own.double(),
            "int8": own.to(torch.int8),
        }
        if kind == "scales":
            variants |= {text: torch.full_like(own, float(text)) for text in ("nan", "inf", "-inf", "0", "-1")}
        for text, tensor in variants.items():
            yield f"{kind} {text}", {**tensors, name: tensor}
    yield "stored twice", {**tensors, f"{layer}.weight": torch.zeros(640, 256, dtype=torch.float16)}
    yield "unknown layer", {**tensors, "model.layers.9.mlp.up_proj.qweight": tensors[f"{layer}.qweight"].clone()}
    yield "int8 without scale", {**tensors, "lm_head.weight": torch.zeros(1024, 256, dtype=torch.int8)}
    yield (
        "a head for more tokens",
        {
            **tensors,
            "lm_head.weight": torch.zeros(4096, 256, dtype=torch.int8),
            "lm_head.weight_scale": torch.ones(4096, 1),
        },
    )


def test_damaged_tinychat_files(quantized: dict[str, Path], tmp_path: Path) -> None:
    source = quantized["tinychat"]
    (file,) = source.rglob("*.pt")
    name, content = str(file.relative_to(source)), file.read_bytes()
    rng = random.Random(0)
    damaged = {f"cut at {size}": content[:size] for size in (0, 1, 4, 100, 10_000, len(content) // 2, len(content) - 1)}
    for number in range(40):
        flipped = bytearray(content)
        for _ in range(rng.choice((1, 10, 1000))):
            flipped[rng.choice((rng.randrange(4096), rng.randrange(len(content)), -rng.randrange(1, 4096)))] ^= (
                1 << rng.randrange(8)
            )
        damaged[f"flipped {number}"] = bytes(flipped)
    assert_bounded(
        {
            text: partial(changed, source, tmp_path / str(index), partial(rewrite, name=name, content=data))
            for index, (text, data) in enumerate(damaged.items())
        }
    )


def quantize(out: Path, **options: object) -> None:
    quick = {"sequences": 1, "sequence_length": 64, "search": "nearest", **options}
    quantize_model(embedded_model(), out, QuantizationOptions.model_validate(quick), device="cpu")


def test_hostile_search_results(tmp_path: Path) -> None:
    ones = torch.ones(256)
    previous, linears = "model.layers.0.input_layernorm", ("model.layers.0.self_attn.q_proj",)
    contents: dict[str, object] = {
        **{f"{value!r:.40}": value for value in VALUES},
        "no clip": {"scale": []},
        "unknown module": {"scale": [("evil", linears, ones)], "clip": []},
        "self reference": {"scale": [(previous, (previous,), ones)], "clip": []},
        **{
            f"scales {text}": {"scale": [(previous, linears, scales)], "clip": []}
            for text, scales in {
                "nan": ones * torch.nan,
                "zero": ones * 0,
                "negative": -ones,
                "inf": ones * torch.inf,
                "expanded": torch.ones(1).expand(10**9),
                "short": ones[:5],
                "scalar": torch.tensor(1.0),
                "int": ones.long(),
                "text": "x",
            }.items()
        },
        "clips": {"scale": [], "clip": [("model.layers.0.mlp.up_proj", torch.ones(1).expand(10**9, 1, 1))]},
        "many": {"scale": [(previous, linears * 10**5, ones)], "clip": []},
    }
    cases: dict[str, Callable[[], object]] = {}
    for index, (text, content) in enumerate(contents.items()):
        path = tmp_path / f"{index}.pt"
        torch.save(content, path)
        cases[text] = partial(quantize, tmp_path / f"out-{index}", search=str(path))
    assert_bounded(cases)


def test_hostile_calibration_files(tmp_path: Path) -> None:
    rows: list[object] = [
        {key: value} for key in ("prompt", "image", "images", "video", "answer", "x") for value in VALUES
    ]
    cases: dict[str, Callable[[], object]] = {}
    for index, row in enumerate([*rows, *VALUES]):
        path = tmp_path / f"{index}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        cases[f"{row!r:.80}"] = partial(quantize, tmp_path / f"out-{index}", calibration=str(path))
    for index, content in enumerate(
        (b"", b"\xff", b"\x00" * 1000, b"[" * 10**5, b"{" * 10**5, b'{"prompt": "' + b"a" * 10**7)
    ):
        path = tmp_path / f"bytes-{index}.jsonl"
        path.write_bytes(content)
        cases[f"{content[:40]!r}"] = partial(quantize, tmp_path / f"out-bytes-{index}", calibration=str(path))
    assert_bounded(cases)


def test_an_unchanged_copy_answers(quantized: dict[str, Path], tmp_path: Path) -> None:
    for form, source in quantized.items():
        assert isinstance(changed(source, tmp_path / form, lambda folder: None), str)
    (tmp_path / "good.jsonl").write_text('{"prompt": "' + "What is in this picture? " * 40 + '"}\n')
    quantize(tmp_path / "out", calibration=str(tmp_path / "good.jsonl"))
