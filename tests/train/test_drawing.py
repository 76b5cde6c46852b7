"""Training of models that draw: what a sample is, runs from start to export, and what is said of wrong data."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from tests.train.drawing_samples import Drawings, conversation, picture
from tests.train.loop_runs import in_processes, micro_config, read_losses, run
from tests.vila_u_checkpoint import RECORDED

import vila_core as vila
from vila_core.chat import Message
from vila_core.errors import CheckpointError
from vila_core.generation.prompts import PicturePrompts
from vila_core.media import MediaLimits
from vila_train.caption_dropout import CaptionDropout, without_prompt
from vila_train.compute.flops import ModelFlops
from vila_train.config import TrainConfig
from vila_train.data.conversations import SampleError
from vila_train.data.formats.chat import ChatReader
from vila_train.data.formats.llava import LlavaReader
from vila_train.data.media_files import MediaFolder
from vila_train.drawing import DrawnPictures, square
from vila_train.dry_run.measuring import measure
from vila_train.errors import TrainingError
from vila_train.estimates.memory import RowLoad, estimate_memory
from vila_train.evaluation.evaluator import HeldOut
from vila_train.loss import LOGITS_AT_ONCE, Counts, code_loss
from vila_train.packing import PackedRow, packed_loss
from vila_train.packing.rows import packed_losses
from vila_train.samples import Encoder

CPU = torch.device("cpu")
TUNED = ("projector", "language_model", "generation_head")


@pytest.fixture(scope="module")
def model(tiny_u: Path) -> vila.Vila:
    return vila.load(tiny_u, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def encoder(model: vila.Vila) -> Encoder:
    return Encoder(model.network, model.tokenizer, model.template, MediaLimits())


def config_of(tiny_u: Path, **changes: Any) -> TrainConfig:
    return micro_config(tiny_u, **{"tune": TUNED, "data.max_length": 320, "max_steps": 4, **changes})


def save(folder: Path, name: str, size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    PIL.Image.fromarray(values).save(folder / name)


@pytest.mark.parametrize("answer", ["<image>", "<im_start><image><im_end>", "<image>\n"])
def test_a_picture_in_an_answer_is_drawn(answer: str, encoder: Encoder, tmp_path: Path):
    save(tmp_path, "a.png", (60, 40))
    turns = [{"from": "human", "value": "A snowy mountain."}, {"from": "gpt", "value": answer}]
    llava = LlavaReader(MediaFolder(tmp_path)).read({"image": "a.png", "conversations": turns})
    parts = [{"type": "image", "image": "a.png"}]
    chat = ChatReader(MediaFolder(tmp_path)).read(
        {"messages": [{"role": "user", "content": "A snowy mountain."}, {"role": "assistant", "content": parts}]}
    )
    recorded = json.loads((RECORDED / "prompts.json").read_text())["training_samples"]["t2i"]["input_ids"]
    for messages in (llava, chat):
        sample = encoder.encode("a", messages)
        image = encoder.tokenizer.media_token_ids["image"]
        assert [-200 if token == image else token for token in sample.prompt.input_ids] == recorded
        assert sample.counts.positions == 16
        assert sample.drawn == [True]


def test_pictures_that_are_seen_are_no_targets(encoder: Encoder):
    sample = encoder.encode(
        "edit", [Message("user", [picture(0), "Brighter."]), Message("assistant", ["Here:", picture(1)])]
    )
    assert sample.drawn == [False, True]
    assert sample.counts.positions == 16
    assert sample.prompt.turns[0].text == "<im_start><image><im_end>\nBrighter."
    assert sample.prompt.turns[1].text == "Here:<im_start><image><im_end>"


def test_pictures_to_draw_are_square():
    columns = np.arange(60, dtype=np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    wide = square(PIL.Image.fromarray(columns))
    tall = square(PIL.Image.fromarray(columns.transpose(1, 0, 2)))
    assert (wide.size, tall.size) == ((40, 40), (40, 40))
    assert (np.asarray(wide)[0, [0, -1], 0].tolist(), np.asarray(tall)[[0, -1], 0, 0].tolist()) == ([10, 49], [0, 39])


def test_documents_have_nothing_around_their_pictures(encoder: Encoder):
    sample = encoder.encode_document("page", [Message("assistant", ["A cat.", picture(0), "It sleeps."])])
    assert sample.prompt.text == "A cat.<image>It sleeps.</s>"
    assert sample.counts.positions == 0


def with_picture(part: Any) -> list[Message]:
    return [Message("user", "Draw."), Message("assistant", [part])]


@pytest.mark.parametrize("part", [picture(0), vila.Video([picture(0), picture(1)])], ids=["image", "video"])
def test_a_model_without_a_head_refuses_pictures_in_answers(part: Any):
    model = vila.load("vila-tiny", device="cpu")
    encoder = Encoder(model.network, model.tokenizer, model.template, MediaLimits())
    with pytest.raises(SampleError, match="draws no pictures: it has no generation head") as caught:
        encoder.encode("set/3", with_picture(part))
    assert (caught.value.sample, caught.value.reason) == ("set/3", "picture in an answer")


@pytest.mark.parametrize("video", [vila.Video([picture(i) for i in range(7)]), vila.Video([picture(0)] * 9, frames=4)])
def test_a_video_has_as_many_frames_as_the_model_draws(video: vila.Video, encoder: Encoder):
    with pytest.raises(SampleError, match=r"has [74] frames, but this model draws 8"):
        encoder.encode("set/3", with_picture(video))


def test_frames_of_a_long_video_are_sampled(encoder: Encoder):
    frames = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), dtype=np.uint8)
    sample = encoder.encode("set/3", with_picture(vila.Video(frames)))
    assert sample.counts.positions == 8 * 16


def test_a_tokenizer_without_the_tokens_is_another_models(model: vila.Vila):
    plain = vila.load("vila-tiny", device="cpu")
    with pytest.raises(CheckpointError, match="no token <im_start>"):
        DrawnPictures.of(model.network, plain.tokenizer)


@pytest.mark.parametrize("number", [0, 3], ids=["image", "video"])
def test_without_its_text_a_sample_is_the_prompt_that_guidance_uses(number: int, model: vila.Vila, encoder: Encoder):
    head = model.network.generation_head
    assert head is not None
    emptied = without_prompt(conversation(number))
    assert emptied is not None
    sample = encoder.encode("empty", emptied.messages)
    prompts = PicturePrompts(head, model.template, model.tokenizer, 1024)
    expected = list(prompts.ids("image" if number == 0 else "video", ""))
    assert list(sample.expanded.ids[: len(expected)]) == expected
    assert sample.positions[0] == len(expected)


@pytest.mark.parametrize("number", [1, 2, 4], ids=["seen", "text", "two questions"])
def test_other_samples_keep_their_text(number: int):
    assert without_prompt(conversation(number)) is None


def test_dropout_depends_on_seed_epoch_and_position_only():
    def dropped(seed: int, epoch: int, share: float = 0.3) -> list[bool]:
        order = CaptionDropout(Drawings(5000), share, seed)
        return [order.conversation(epoch, at).messages[0].content == "" for at in range(0, 5000, 5)]

    assert dropped(0, 0) == dropped(0, 0)
    assert dropped(0, 0) != dropped(0, 1)
    assert dropped(0, 0) != dropped(1, 0)
    assert 250 < sum(dropped(0, 0)) < 350
    assert not any(dropped(0, 0, 0.0))
    assert all(dropped(0, 0, 1.0))


def test_codes_are_scored_in_chunks(model: vila.Vila, monkeypatch: pytest.MonkeyPatch):
    """Loss and gradients as without chunks."""
    network, head = model.network.requires_grad_(True), model.network.generation_head
    assert head is not None
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 64, (23, 4), generator=draw)

    def gradients(loss: torch.Tensor, hidden: torch.Tensor) -> list[torch.Tensor]:
        found = torch.autograd.grad(loss, [hidden, *network.generation.parameters()])  # pyright: ignore
        return list(found)

    hidden = torch.randn(23, 64, generator=draw, requires_grad=True)
    logits = head.logits(hidden, codes)
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum") / 4
    monkeypatch.setattr("vila_train.loss.LOGITS_AT_ONCE", 5 * 4 * 64)
    assert LOGITS_AT_ONCE > 23 * 4 * 64
    loss = code_loss(head, hidden, codes)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    for ours, theirs in zip(gradients(loss, hidden), gradients(whole, hidden), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_held_out_loss_is_the_sum_of_both_means(model: vila.Vila, encoder: Encoder):
    order: Any = Drawings(10)
    held_out = HeldOut(order, 10, lambda one: encoder.fit(one, 320, "error"))
    found = held_out.losses(model.network, CPU)
    row = PackedRow.of([held_out.encode(conversation(number)) for number in range(10)], CPU)
    with torch.no_grad():
        means = packed_losses(model.network.eval(), row).over(row.counts)
    assert row.counts == Counts(row.num_labels, 2 * 16 + 2 * 8 * 16 + 2 * 16)
    assert found["loss/text"] == pytest.approx(means.text.item(), abs=1e-5)
    assert found["loss/codes"] == pytest.approx(means.codes.item(), abs=1e-5)
    assert found["loss"] == pytest.approx(means.total.item(), abs=1e-5)
    assert packed_loss(model.network, row).item() == pytest.approx(means.text.item() * row.num_labels, rel=1e-5)


@pytest.fixture(scope="module")
def whole_run(tiny_u: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(config_of(tiny_u), folder, Drawings()).losses


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_trains_the_head_and_exports_a_model_that_draws(tiny_u: Path, whole_run: tuple[Path, dict[int, float]]):
    folder, _ = whole_run
    before, after = vila.load(tiny_u, device="cpu"), vila.load(folder / "model", device="cpu")
    changed = {
        name.split(".")[0]
        for (name, old), new in zip(
            before.network.state_dict().items(), after.network.state_dict().values(), strict=True
        )
        if not torch.equal(old, new)
    }
    assert changed == {"mm_projector", "llm", "generation"}
    assert after.generate_image("A cat.", seed=0)[0].size == (64, 64)
    stored = json.loads((folder / "model" / "config.json").read_text())
    assert (stored["model_type"], stored["vila_kit"]["knows_empty_prompt"]) == ("vila_u_llama", True)


def test_both_losses_are_logged(whole_run: tuple[Path, dict[int, float]]):
    folder, losses = whole_run
    for record in logged(folder):
        assert record["losses"].keys() == {"text", "codes"}
        assert sum(record["losses"].values()) == pytest.approx(record["loss"], rel=1e-5)
        assert record["loss"] == losses[record["step"]]
        assert set(record["learning_rates"]) == set(TUNED)
    assert any(record["drawn_positions"] for record in logged(folder))


def test_each_loss_is_the_mean_over_its_own_targets(tiny_u: Path, tmp_path: Path, encoder: Encoder):
    """A step that reads each sample once, beside one sample after another."""
    order, network = Drawings(10), encoder.network
    with torch.no_grad():
        rows = [PackedRow.of([encoder.encode("", conversation(number).messages)], CPU) for number in range(10)]
        sums = [packed_losses(network, row) for row in rows]
    tokens, positions = sum(row.num_labels for row in rows), sum(row.counts.positions for row in rows)
    assert tokens != positions
    changes = {"data.packing": False, "data.rows_per_step": 10, "data.lanes": 10, "data.caption_dropout": 0}
    tune = ("projector", "language_model")  # the head has dropout while it is trained
    run(config_of(tiny_u, max_steps=1, tune=tune, **changes), tmp_path / "run", order)
    (record,) = logged(tmp_path / "run")
    assert record["losses"]["text"] == pytest.approx(sum(one.text.item() for one in sums) / tokens, rel=1e-5)
    assert record["losses"]["codes"] == pytest.approx(sum(one.codes.item() for one in sums) / positions, rel=1e-5)


def test_a_resumed_run_is_the_same(tiny_u: Path, tmp_path: Path, whole_run: tuple[Path, dict[int, float]]):
    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config_of(tiny_u), tmp_path / "run", Drawings(), after=stop)
    again = run(config_of(tiny_u), tmp_path / "run", Drawings())
    assert sorted(again.losses) in ([3, 4], [4])
    assert all(loss == whole_run[1][step] for step, loss in again.losses.items())


def test_two_ranks_give_the_losses_of_one(tiny_u: Path, tmp_path: Path, whole_run: tuple[Path, dict[int, float]]):
    """Rows without pictures to draw, or without any, stand beside rows with them."""
    codes = in_processes(config_of(tiny_u), tmp_path / "run", tmp_path / "losses", ranks=2, order=Drawings())
    assert codes == [0, 0]
    found = read_losses(tmp_path / "losses")
    assert found.keys() == whole_run[1].keys()
    for step, loss in whole_run[1].items():
        assert found[step][0] == pytest.approx(loss, abs=1e-5)


def test_lora_on_the_language_model_beside_the_head(tiny_u: Path, tmp_path: Path):
    changes = {"adapter": {"method": "lora", "rank": 4}, "max_steps": 2}
    recorder = run(config_of(tiny_u, **changes), tmp_path / "run", Drawings())
    assert len(recorder.losses) == 2
    before = vila.load(tiny_u, device="cpu").network.state_dict()
    after = vila.load(tmp_path / "run" / "model", device="cpu").network.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("generation."))
    assert any(not torch.equal(before[name], after[name]) for name in before if "q_proj" in name and "llm" in name)


def test_a_head_that_is_not_there_cannot_be_trained(micro_checkpoint: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match="names generation_head, but this model has none"):
        run(micro_config(micro_checkpoint, tune=("generation_head",), max_steps=1), tmp_path / "run")


def test_memory_and_operations_count_the_head(model: vila.Vila, encoder: Encoder):
    network = model.network.requires_grad_(True)
    compute = config_of(Path()).compute
    drawn = encoder.encode("drawn", conversation(0).messages)
    row = PackedRow.of([drawn], CPU)
    flops = ModelFlops.of(network)
    assert flops.generation is not None
    linears = [module for module in network.generation.modules() if isinstance(module, torch.nn.Linear)]  # pyright: ignore
    products = sum(2 * linear.weight.numel() for linear in linears) * 4 * 16
    silent = PackedRow.of([encoder.encode("seen", conversation(1).messages)], CPU)
    assert flops.generation.step(row.counts.positions) == 3 * products
    assert flops.generation.step(silent.counts.positions) == 0
    load, more = RowLoad(512, 2, 100), RowLoad(512, 2, 100, positions=512)
    assert estimate_memory(network, compute, more).logits > estimate_memory(network, compute, load).logits


def write_lines(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "data.jsonl"


def test_a_dry_run_counts_what_is_drawn(tiny_u: Path, tmp_path: Path):
    from vila_train.dry_run.report import describe
    from vila_train.run_folder import RunFolder

    save(tmp_path, "a.png", (64, 64))
    turns = [{"from": "human", "value": "A cat."}, {"from": "gpt", "value": "<image>"}]
    file = write_lines(tmp_path, [{"image": "a.png", "conversations": turns}] * 3)
    measured = measure(config_of(tiny_u, **{"data.mixture": str(file)}), RunFolder(tmp_path / "run"))
    assert measured.load.positions == 3 * 16
    report = describe(measured)
    assert "48 positions of pictures that are drawn" in report["Samples (the first 3)"]["learned"]
