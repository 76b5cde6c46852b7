"""Losses, gradients and AdamW steps of training, against the reference's packed training.

The reference mislabels some tokens (quirk 26), so its own labels are used here; `test_labels` compares labels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.parity.conftest import recordings

import vila_core as vila
from vila_core.chat import Message
from vila_core.media import MediaLimits
from vila_core.model import VilaModel
from vila_train.data.formats.llava import LlavaReader
from vila_train.data.media_files import MediaFolder
from vila_train.labels import expand_labels
from vila_train.loop.step import clip_gradients
from vila_train.loss import TimeTokens
from vila_train.packing import PackedRow, packed_loss
from vila_train.packing.rows import hidden_states
from vila_train.samples import Encoder, TrainingSample

STAGES = {"align": ("P",), "stage1.5": ("P", "V"), "pretrain": ("P", "L"), "sft": ("P", "V", "L")}
PARTS = {"V": "vision_tower", "P": "mm_projector", "L": "llm"}


@dataclass(frozen=True)
class Run:
    """A recorded training run."""

    record: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    checkpoint: Path
    inputs: Path


def find_runs(config: pytest.Config) -> list[tuple[str, Path]]:
    files = [file for home in recordings(config) for file in sorted((home / "training").glob("*.json"))]
    return [(file.stem, file) for file in files if not file.stem.startswith("instances")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "run_file" in metafunc.fixturenames:
        runs = find_runs(metafunc.config)
        metafunc.parametrize("run_file", [file for _, file in runs], ids=[name for name, _ in runs])


def open_run(file: Path) -> Run:
    record = json.loads(file.read_text())
    home = file.parent.parent
    homes = [home, *(folder for folder in sorted(home.parent.iterdir()) if folder != home)]
    stated = Path(record["checkpoint"])  # "nvila_56", "nvila_56/checkpoint" or "../golden/nvila_56/checkpoint"
    variant = stated.parent.name if stated.name == "checkpoint" else stated.name
    checkpoint = next(path for home in homes if (path := home / variant / "checkpoint").exists())
    inputs = next(path for home in homes if (path := home / "inputs").exists())
    return Run(record, load_file(file.with_suffix(".safetensors")), checkpoint, inputs)


def messages_of(instance: dict[str, Any], inputs: Path) -> Sequence[Message]:
    """Return an instance as a dataset gives it: media first, then the text of the first message."""
    return LlavaReader(MediaFolder(inputs)).read(instance)


def open_model(run: Run) -> vila.Vila:
    settings = {key: value for key, value in run.record["data_args"].items() if key != "image_aspect_ratio"}
    as_images = run.record["media_semantics"] == "head"
    model = vila.load(
        run.checkpoint, dtype="float32", device="cpu", chat_template=run.record["conversation_mode"],
        image_aspect_ratio=run.record["data_args"]["image_aspect_ratio"], video_as_images=as_images, **settings,
    )  # fmt: skip
    if time_tokens := time_tokens_of(run):
        weights = {"embed_tokens": "model.embed_tokens.weight", "lm_head": "lm_head.weight"}
        with torch.no_grad():
            for name, weight in weights.items():
                model.network.llm.get_parameter(weight)[time_tokens.ids] = run.tensors[f"time_rows.{name}"]
    return model


def encode(run: Run, model: vila.Vila) -> list[TrainingSample]:
    """Return the recorded samples with the reference's labels."""
    network, tokenizer = model.network, model.tokenizer
    encoder = Encoder(network, tokenizer, model.template, MediaLimits())
    samples: list[TrainingSample] = []
    for recorded in run.record["samples"]:
        sample = encoder.encode(recorded["id"], messages_of(recorded["instance"], run.inputs))
        assert sample.prompt.input_ids == recorded["input_ids"], recorded["id"]
        media_ids = tokenizer.media_token_ids.values()
        labels = expand_labels(recorded["input_ids"], recorded["labels"], media_ids, sample.expanded)
        samples.append(replace(sample, labels=labels))
    return samples


def time_tokens_of(run: Run) -> TimeTokens | None:
    if "time_token_ids" not in run.record:
        return None
    first, last = run.record["time_token_ids"]
    return TimeTokens(torch.arange(first, last + 1), run.record["soft_ce_std"])


def name_in_reference(name: str) -> str:
    return name.replace("vision_tower.", "vision_tower.vision_tower.", 1) if name.startswith("vision_tower.") else name


def test_training_steps(run_file: Path):
    run = open_run(run_file)
    model = open_model(run)
    network, time_tokens = model.network, time_tokens_of(run)
    samples = encode(run, model)
    row = PackedRow.of(samples, torch.device("cpu"))
    assert list(row.batch.lengths) == [length for length in run.record["packed_seqlens"] if length > 1]
    assert row.num_labels == run.record["n_label_tokens"]
    check_losses(network, row, samples, run)
    start = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    compared: set[str] = set()
    for stage, recorded in run.record["stages"].items():
        trained = [PARTS[part] for part in STAGES[stage]]
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in trained)
            parameter.grad = None
        loss = mean_loss(network, row, time_tokens)
        assert loss.item() == pytest.approx(recorded["loss"], abs=1e-5), stage
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        compared |= check_gradients(gradients, recorded, run, stage)
        for clip, after in ((0.0, "loss_after_step"), (1.0, "loss_after_clipped_step")):
            if after in recorded:
                take_step(network, gradients, clip, recorded)
                if not clip:
                    compared |= check_step(network, start, gradients, run)
                loss = mean_loss(network, row, time_tokens)
                assert loss.item() == pytest.approx(recorded[after], abs=1e-4), (stage, after)
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    parameter.copy_(start[name])
    assert compared == {key for key in run.tensors if key.startswith(("grad.", "adamw_delta."))}


def mean_loss(network: VilaModel, row: PackedRow, time_tokens: TimeTokens | None) -> torch.Tensor:
    return packed_loss(network, row, time_tokens) / row.num_labels


@torch.no_grad()
def check_losses(network: VilaModel, row: PackedRow, samples: Sequence[TrainingSample], run: Run) -> None:
    """Compare the loss of each token, of each sample in a row of its own, and with soft targets of several widths."""
    hidden = hidden_states(network, network.embed(row.batch), row.batch.lengths)[row.predicting]
    log_p = network.llm.logits(hidden).log_softmax(-1).gather(-1, row.targets[:, None])[:, 0]
    torch.testing.assert_close(log_p, run.tensors["label_logprobs"], atol=3e-4, rtol=0)
    alone = sum(packed_loss(network, PackedRow.of([sample], torch.device("cpu"))).item() for sample in samples)
    assert alone / row.num_labels == pytest.approx(run.record["eval_unpacked_loss"], abs=1e-5)
    for stated, expected in run.record.get("soft_ce", {}).items():
        (time_tokens,) = [replace(one, std=float(stated.removeprefix("std="))) for one in [time_tokens_of(run)] if one]
        assert mean_loss(network, row, time_tokens).item() == pytest.approx(expected, abs=1e-5), stated


def check_gradients(gradients: Mapping[str, torch.Tensor], recorded: dict[str, Any], run: Run, stage: str) -> set[str]:
    """Return which recorded tensors were compared."""
    gradients = {name_in_reference(name): gradient for name, gradient in gradients.items()}
    for name, norm in recorded["grad_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), (stage, name)
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    assert total == pytest.approx(recorded["total_grad_norm"], rel=1e-4), stage
    names = {key: key.removeprefix("grad.").removesuffix("_rows") for key in run.tensors if key.startswith("grad.")}
    found = {key: name for key, name in names.items() if name in gradients}
    for key, name in found.items():
        rows = rows_of(gradients[name], key, run)
        torch.testing.assert_close(
            rows, run.tensors[key], atol=5e-5, rtol=1e-3, msg=lambda m, n=name: f"{stage}: {n}: {m}"
        )
    return set(found)


def rows_of(tensor: torch.Tensor, key: str, run: Run) -> torch.Tensor:
    """Return the rows of a tensor that were recorded: `rows [::7] of reshape(-1,432)`."""
    if not key.endswith("_rows"):
        return tensor
    stated = run.record["rows"][key.removesuffix("_rows")]
    step = int(stated.split("[::")[1].split("]")[0])
    return tensor.reshape(-1, tensor.shape[-1])[::step]


def take_step(network: VilaModel, gradients: Mapping[str, torch.Tensor], clip: float, recorded: dict[str, Any]) -> None:
    """Take one step of AdamW with these gradients."""
    parameters = {name: network.get_parameter(name) for name in gradients}
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].clone()
    norm = clip_gradients([*parameters.values()], clip)
    if clip:
        assert norm.item() == pytest.approx(recorded["clip_total_norm"], rel=1e-4)
    torch.optim.AdamW(parameters.values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0).step()
    for parameter in parameters.values():
        parameter.grad = None


def check_step(
    network: VilaModel, start: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor], run: Run
) -> set[str]:
    """Compare what a step changed, and return which recorded tensors were compared."""
    prefix = "adamw_delta."
    names = {key: key.removeprefix(prefix).removesuffix("_rows") for key in run.tensors if key.startswith(prefix)}
    for key, name in names.items():
        delta = rows_of(network.get_parameter(name).detach() - start[name], key, run)
        certain = rows_of(gradients[name], key, run).abs() > 1e-6  # others may flip
        torch.testing.assert_close(delta[certain], run.tensors[key][certain], atol=2e-5, rtol=0)
    return set(names)
