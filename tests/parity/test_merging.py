"""Media in text, projection of merged dynamic-S2 features, and losses, against the reference."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import vila_core as vila
from vila_core.config import ProjectorConfig, S2Config
from vila_core.model import VilaModel
from vila_core.projectors import build_projector
from vila_core.prompt import PreparedMedium, PreparedPrompt
from vila_core.tiles import WHOLE, TileLayout, Tiles
from vila_train.labels import IGNORE_INDEX, expand_labels
from vila_train.loss import TimeTokens, cross_entropy_sum


@pytest.fixture
def tensors(golden: Path) -> dict[str, torch.Tensor]:
    file = golden / "embed_merge.safetensors"
    if not file.exists():
        pytest.skip("embed_merge is not among these recordings")
    return load_file(file)


@pytest.mark.parametrize("variant", ["nvila_lite_56", "nvila_56"])
def test_splice_and_loss(golden: Path, tensors: dict[str, torch.Tensor], variant: str):
    recorded = json.loads((golden / "embed_merge.json").read_text())[variant]
    model = vila.load(golden.parent / variant / "checkpoint", dtype="float32", device="cpu")
    network, tokenizer = model.network, model.tokenizer
    get = lambda name: tensors[f"{variant}.{name}"]  # noqa: E731
    images = [PreparedMedium("image", Tiles(image[None])) for image in get("images")]
    videos = [PreparedMedium("video", Tiles(get("video0")))]
    rows, labels = [], []
    with torch.inference_mode():
        for row, mask in enumerate(get("collated.attention_mask")):
            ids = get("collated.input_ids")[row][mask].tolist()
            has_video = tokenizer.media_token_ids["video"] in ids
            prompt = PreparedPrompt("", ids, videos if has_video else images)
            rows.append(network.embed(network.batch([prompt])))
            expanded = network.expand(prompt)
            of_text = get("collated.labels")[row][mask].tolist()
            labels.append(torch.tensor(expand_labels(ids, of_text, tokenizer.media_token_ids.values(), expanded)))
        embeds = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
        torch.testing.assert_close(embeds, get("eval_right.inputs_embeds"), atol=2e-5, rtol=1e-4)
        assert torch.equal(padded, get("eval_right.labels"))
        hidden = network.llm(embeds, lengths=get("eval_right.attention_mask").sum(-1))
        logits, padded = network.llm.logits(hidden)[:, :-1].flatten(0, 1), padded[:, 1:].flatten()
        loss = cross_entropy_sum(logits, padded) / (padded != IGNORE_INDEX).sum()
    assert loss.item() == pytest.approx(recorded["eval_right.loss_unpacked"], abs=1e-5)


def test_media_and_tokens_must_agree(golden: Path):
    model = vila.load(golden.parent / "nvila_lite_56" / "checkpoint", dtype="float32", device="cpu")
    network, tokenizer = model.network, model.tokenizer
    ids = [1, tokenizer.media_token_ids["image"], 2]
    image = PreparedMedium("image", Tiles(torch.zeros(1, 3, 56, 56)))
    with pytest.raises(vila.VilaError, match="no token"):
        network.batch([PreparedPrompt("", ids, [image, image])])
    with pytest.raises(vila.VilaError, match="more image tokens"):
        network.batch([PreparedPrompt("", ids)])


def test_soft_cross_entropy(golden: Path, tensors: dict[str, torch.Tensor]):
    recorded = json.loads((golden / "embed_merge.json").read_text())
    time_tokens = torch.tensor(recorded["soft_tokens"])
    for std in (1.0, 0.5):
        logits, labels = tensors["softce.logits"][:, :-1].flatten(0, 1), tensors["softce.targets"][:, 1:].flatten()
        logits, labels = logits[labels != IGNORE_INDEX], labels[labels != IGNORE_INDEX]
        loss = cross_entropy_sum(logits, labels, TimeTokens(time_tokens, std)) / len(labels)
        assert loss.item() == pytest.approx(recorded[f"soft_cross_entropy std={std}"], abs=1e-6)


def test_cross_entropy_without_time_tokens_among_the_labels():
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 7), torch.randint(0, 4, (10,))
    soft = cross_entropy_sum(logits, labels, TimeTokens(torch.tensor([5, 6])))
    assert soft.item() == pytest.approx(F.cross_entropy(logits, labels, reduction="sum").item())


def test_projection_of_merged_scales(golden: Path):
    """`encode_images` of the reference: merge features of tiles, split them, project them and merge again."""
    tensors = load_file(golden / "s2.safetensors")
    checked = 0
    for record in json.loads((golden / "s2.json").read_text()):
        if "merge" not in record:
            continue
        index = record["merge"]
        scales, scale_index = tuple(record["scales"]), record["resize_output_to_scale_idx"]
        config = S2Config(scales=scales, max_split_size=scales[0], resize_output_to_scale_idx=scale_index)
        features = tensors[f"merge{index}.in"]
        for name in ("mlp_downsample", "mlp_downsample_2x2_fix"):
            prefix = f"merge{index}.{name}."
            state = {
                key.removeprefix(prefix + "state."): value
                for key, value in tensors.items()
                if key.startswith(prefix + "state.")
            }
            if not state:
                continue
            width = len(config.scales) * features.shape[-1]
            projector = build_projector(
                ProjectorConfig(name=name, in_size=width, out_size=state["layers.4.bias"].shape[0])
            )
            projector.load_state_dict(state)
            part = SimpleNamespace(config=SimpleNamespace(dynamic_s2=config), mm_projector=projector)
            layouts = [TileLayout("merged", *block) if block else WHOLE for block in record["block_sizes"]]
            # `project_scales` reads the number of tiles only of media that are not merged, which have one.
            media = [PreparedMedium("image", Tiles(torch.empty(1), layout)) for layout in layouts]
            for number, tokens in enumerate(VilaModel.project_scales(part, features, media)):
                torch.testing.assert_close(tokens[0], tensors[f"{prefix}encoded{number}"], atol=2e-5, rtol=1e-4)
                checked += 1
    assert checked >= 8
