"""Losses and gradients of VILA-U's training, from conversations to gradients, against its reference."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.test_vila_u import IMAGE, frames
from tests.parity.vila_u_recordings import find, folders
from tests.vila_u_checkpoint import RECORDED, complete_checkpoint

import vila_core as vila
from vila_core.chat import Message
from vila_core.media import MediaLimits
from vila_train.loop.step import Trainee
from vila_train.loss import Counts, Losses
from vila_train.packing import HostRow
from vila_train.samples import Encoder, TrainingSample

LOSS, GRADIENTS = 1e-5, 1e-4
CPU = torch.device("cpu")
TRAINED = ("llm", "mm_projector", "generation")
NAMES = {"generation.": "vision_tower.vision_tower.rqtransformer.", "vision_tower.": "vision_tower.vision_tower."}
"""Beginnings of names -> those in the recordings."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loss_run" in metafunc.fixturenames:
        info = json.loads((home_of(metafunc.config) / "manifest.json").read_text())["info"]
        metafunc.parametrize(
            "loss_run", [name for name, facts in info.items() if "samples" in facts and "text_loss" in facts]
        )


def home_of(config: pytest.Config) -> Path:
    """Return the folder with the checkpoint, the inputs and what the manifest says of all runs."""
    return next((folder for folder in folders(config) if (folder / "checkpoint").exists()), RECORDED)


@pytest.fixture(scope="module")
def home(pytestconfig: pytest.Config) -> Path:
    return home_of(pytestconfig)


@pytest.fixture(scope="module")
def info(home: Path) -> dict[str, Any]:
    """What the manifest says of each run."""
    return json.loads((home / "manifest.json").read_text())["info"]


@pytest.fixture(scope="module")
def model(home: Path, tmp_path_factory: pytest.TempPathFactory) -> vila.Vila:
    folder = complete_checkpoint(home / "checkpoint", tmp_path_factory.mktemp("vila-u") / "checkpoint")
    return vila.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def encoder(model: vila.Vila) -> Encoder:
    return Encoder(model.network, model.tokenizer, model.template, MediaLimits())


def recorded_samples(home: Path) -> dict[str, Any]:
    return json.loads((home / "prompts.json").read_text())["training_samples"]


def media_of(kind: str, home: Path) -> list[vila.Image | vila.Video]:
    inputs = home / "inputs"
    return {
        "t2i": [vila.Image(inputs / "image_0.png")],
        "i2t": [vila.Image(inputs / "image_1.png")],
        "t2v": [vila.Video([str(image.source) for image in frames(home)])],
    }.get(kind, [])


def messages_of(kind: str, home: Path) -> list[Message]:
    """Return a recorded conversation as a data set gives it: without start and end tokens, a video as one."""
    media = media_of(kind, home)
    messages: list[Message] = []
    for turn in recorded_samples(home)[kind]["conversation"]:
        text = turn["value"]
        has_media = "<image>" in text
        for token in ("<im_start>", "<im_end>", "<vi_start>", "<vi_end>", "<image>"):
            text = text.replace(token, "")
        parts = [*(media if has_media else ()), *([text.strip()] if text.strip() else ())]
        messages.append(Message("user" if turn["from"] == "human" else "assistant", parts))
    return messages


def encode(kinds: Sequence[str], home: Path, encoder: Encoder) -> list[TrainingSample]:
    samples = [encoder.encode(kind, messages_of(kind, home)) for kind in kinds]
    # The last tokens of a conversation, which no data set gives: they fill a row of the reference to the end.
    lengths = [len(recorded_samples(home)[kind]["input_ids"]) for kind in kinds]
    return [
        end_of(sample, length) if kind == "text_tail" else sample
        for kind, sample, length in zip(kinds, samples, lengths, strict=True)
    ]


def end_of(sample: TrainingSample, length: int) -> TrainingSample:
    prompt, expanded = sample.prompt, sample.expanded
    return replace(
        sample,
        prompt=replace(prompt, input_ids=prompt.input_ids[-length:]),
        expanded=replace(expanded, ids=expanded.ids[-length:]),
        labels=sample.labels[-length:],
    )


@pytest.mark.parametrize("kind", ["t2i", "i2t", "text", "t2v", "text_full", "text_tail"])
def test_ids_and_labels(kind: str, home: Path, encoder: Encoder):
    want = recorded_samples(home)[kind]
    (sample,) = encode([kind], home, encoder)
    picture = encoder.tokenizer.media_token_ids["image"]
    assert [IMAGE if token == picture else token for token in sample.prompt.input_ids] == want["input_ids"]
    learned = [label for label in want["labels"] if label not in (-100, IMAGE)]
    assert [label for label in sample.labels if label != -100] == learned
    pictures = sum(label == IMAGE for label in want["labels"])
    assert sample.counts == Counts(len(learned), 16 * pictures)


def losses_of(model: vila.Vila, rows: Sequence[Sequence[TrainingSample]], *, trains: bool = True) -> Losses:
    """Return both means over all samples; with `trains`, the gradients of their sum are computed."""
    network = model.network.eval()  # without the dropout of the depth transformer
    network.zero_grad()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trains and name.split(".")[0] in TRAINED)
    counts = sum((sample.counts for samples in rows for sample in samples), Counts())
    trainee = Trainee(network, always_sees=trains)
    found: list[Losses] = []
    for samples in rows:
        with torch.set_grad_enabled(trains):
            shares = trainee(HostRow.of(samples).to(CPU)).over(counts)
        if trains:
            shares.total.backward()
        found.append(Losses(shares.text.detach(), shares.codes.detach()))
    return Losses(*(torch.stack(of_kind).sum() for of_kind in zip(*found, strict=True)))


def gradients_of(model: vila.Vila) -> dict[str, torch.Tensor]:
    """Return all gradients by the reference's names. The rows of this project's own tokens are left out."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.network.named_parameters():
        if parameter.grad is not None:
            start = next((start for start in NAMES if name.startswith(start)), "")
            rows = 400 if name.endswith(("embed_tokens.weight", "lm_head.weight")) else None
            found[NAMES.get(start, "") + name.removeprefix(start)] = parameter.grad[:rows].clone()
    return found


def test_losses_and_gradients(
    loss_run: str, info: dict[str, Any], pytestconfig: pytest.Config, model: vila.Vila, encoder: Encoder, home: Path
):
    """A packed row has the loss of its samples in evaluation: the reference leaks in `loss_packleak_train`."""
    trains = info[loss_run]["train"]
    found = losses_of(model, [encode(info[loss_run]["samples"], home, encoder)], trains=trains)
    want = info[loss_run.removesuffix("_train") + "_eval"] if trains else info[loss_run]
    assert found.total.item() == pytest.approx(want["loss"], abs=LOSS)
    assert found.text.item() == pytest.approx(want["text_loss"], abs=LOSS)
    assert found.codes.item() == pytest.approx(want["image_loss"] or 0.0, abs=LOSS)
    if not trains or "packleak" in loss_run:
        return
    gradients = gradients_of(model)
    for name, norm in info.get(f"{loss_run}_grad_norms", {}).items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=GRADIENTS, abs=1e-6), name
    for recording in find(pytestconfig, f"{loss_run}.npz"):
        for name, expected in recording.arrays().items():
            if name.startswith("grad|"):
                got = gradients[name.removeprefix("grad|")]
                torch.testing.assert_close(
                    got, expected, rtol=GRADIENTS, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
                )


ROWS = {
    "other rows": [["t2v", "text"], ["i2t", "t2i"]],
    "one by one": [["t2i"], ["i2t"], ["text"], ["t2v"]],
    "text apart": [["text", "i2t"], ["t2v", "t2i"]],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_rows_change_neither_losses_nor_gradients(
    rows: list[list[str]], model: vila.Vila, encoder: Encoder, home: Path
):
    together = losses_of(model, [encode(["t2i", "i2t", "text", "t2v"], home, encoder)])
    of_together = gradients_of(model)
    apart = losses_of(model, [encode(kinds, home, encoder) for kinds in rows])
    of_apart = gradients_of(model)
    for ours, theirs in zip(apart, together, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), abs=LOSS)
    assert of_apart.keys() == of_together.keys()
    for part in ("llm.", "mm_projector.", NAMES["generation."]):
        names = [name for name in of_together if name.startswith(part)]
        theirs = torch.cat([of_together[name].flatten() for name in names])
        ours = torch.cat([of_apart[name].flatten() for name in names])
        assert theirs.norm() > 1e-4
        assert (ours - theirs).norm() / theirs.norm() < GRADIENTS, part
