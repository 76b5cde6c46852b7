"""Every recorded prompt through the public interface, stage by stage. conftest prints a table of the errors.

Tolerances are those of the recordings' READMEs: ids, prompts, tiles and pixels exact; float32 within what two ways of
adding allow.
"""

from typing import Any

import pytest
import torch
from tests.parity.conftest import ERRORS, STAGES, Case
from torch import Tensor

import vila_core as vila

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
TEMPLATES = {
    "vila15_llama_384": "vicuna_v1",
    "vila15_llama3_384": "llama_3",
    "vila15_yi_intern_448": "hermes-2",
    "vila15_clip_336": "vicuna_v1",
    "vila15_clip_112_pad": "vicuna_v1",
    "vila15_s2_98": "vicuna_v1",
}
ATOL = dict(zip(STAGES, (1e-4, 2e-5, 2e-5, 2e-4, 3e-4), strict=True))
FP16_ATOL = dict(zip(STAGES, (1e-2, 3e-3, 3e-3, 4e-2, 5e-2), strict=True))
RTOL = 1e-4
# Config overrides of a case that are missing from its record.
UNRECORDED_OVERRIDES = {"vila15_yi_intern_448/odd_640x427_pad_error": {"image_aspect_ratio": "pad"}}


def load(case: Case) -> vila.Vila:
    dtype = "float16" if case.record["case"].startswith("fp16") else "float32"
    options: dict[str, Any] = dict(case.record.get("config_overrides") or UNRECORDED_OVERRIDES.get(case.name, {}))
    has_video = any(part["type"] in ("video", "frames") for turn in case.record["turns"] for part in turn["parts"])
    if has_video and case.record.get("extract_media") == "head":
        options["video_as_images"] = True
    return vila.load(
        case.checkpoint, device="cpu", dtype=dtype, chat_template=TEMPLATES.get(case.record["variant"]), **options
    )


def to_part(part: dict[str, Any], case: Case) -> str | vila.Image | vila.Video:
    if part["type"] == "text":
        return part["text"]
    if part["type"] == "image":
        return vila.Image(case.inputs / part["file"])
    if part["type"] == "frames":
        return vila.Video([str(case.inputs / name) for name in part["files"]])
    return vila.Video(case.inputs / part["path"])


def to_messages(case: Case) -> list[vila.Message]:
    return [
        vila.Message(ROLES[turn["from"]], [to_part(part, case) for part in turn["parts"]])
        for turn in case.record["turns"]
    ]


def expected(case: Case, name: str, got: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of `got` that were recorded, and the recording."""
    tensors = case.tensors
    width = got.shape[-1]
    got = got.float().reshape(-1, width)
    if f"{name}_rows" in tensors:
        stored = case.record["tensors"][name]["stored"]  # "rows [::3] of reshape(-1,64)"
        step = int(stored.split("::")[1].split("]")[0])
        return got[::step], tensors[f"{name}_rows"].float()
    return got, tensors[name].float().reshape(-1, width)


def compare(case: Case, stage: str, got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape, f"{stage}: {tuple(got.shape)} is not {tuple(want.shape)}"
    errors = ERRORS.setdefault(case.name, {})
    errors[stage] = max(errors.get(stage, 0.0), (got - want).abs().max().item())
    atol = (FP16_ATOL if case.record["case"].startswith("fp16") else ATOL)[stage]
    torch.testing.assert_close(got, want, atol=atol, rtol=RTOL, msg=lambda text: f"{case.name} {stage}: {text}")


def test_case(case: Case):
    model = load(case)
    messages = to_messages(case)
    if case.record.get("expect_error"):
        with pytest.raises(vila.VilaError):
            model.inspect(messages)
        return
    seen = model.inspect(messages)
    assert seen.prompt_text == case.record["prompt"]
    assert seen.input_ids == case.tensors["input_ids"].reshape(-1).tolist()
    blocks = case.record.get("block_sizes", {}).get("image")
    if blocks:
        merged = [medium.tiles.layout.grid for medium in seen.media if medium.tiles.layout.kind == "merged"]
        assert [list(grid) for grid in merged] == [block for block in blocks if block]
    assert len(seen.inputs_embeds) == case.record["seq_len"]

    kinds = [medium.kind for medium in seen.media for _ in range(medium.tiles.num_placeholders)]
    images_first = [
        block
        for kind in ("image", "video")
        for of, block in zip(kinds, seen.media_embeddings, strict=True)
        if of == kind
    ]
    names = [name for name in ("media_embeds_image", "media_embeds_video") if name in case.record["tensors"]]
    if images_first:
        lengths = [length for name in names for length in case.record["tensors"][name]["lengths"]]
        assert [len(block) for block in images_first] == lengths
        start = 0
        for name in names:
            stop = start + sum(case.record["tensors"][name]["lengths"])
            compare(case, "media_embeddings", *expected(case, name, torch.cat(images_first)[start:stop]))
            start = stop
    compare(case, "inputs_embeds", *expected(case, "inputs_embeds", seen.inputs_embeds))
    compare(case, "last_hidden", *expected(case, "last_hidden", seen.last_hidden))

    # Vocabulary rows added at load are random in the reference.
    assert model.checkpoint is not None
    vocabulary = model.checkpoint.config.language_model.vocab_size
    want = case.tensors["logits_last4"].float().reshape(-1, case.tensors["logits_last4"].shape[-1])[:, :vocabulary]
    compare(case, "logits", seen.logits[-len(want) :, :vocabulary].float(), want)

    stops = (case.record.get("generation_overrides") or {}).get("eos_token_id") or []
    done = model.complete(messages, max_new_tokens=case.record["max_new_tokens"], stop_token_ids=stops)
    recorded = case.tensors["generated_ids"].reshape(-1).tolist()
    assert done.token_ids == recorded[: len(done.token_ids)]
    assert len(done.token_ids) >= len(recorded) - 1, "only the stop token itself may be missing"


def test_tower_features(case: Case):
    """Vision tower features, if they were recorded."""
    if case.record.get("expect_error") or "tower_out_0" not in case.record["tensors"]:
        pytest.skip("no media")
    model = load(case)
    prepared = model.prepare(to_messages(case))
    weight = next(model.network.vision_tower.parameters())
    with torch.inference_mode():
        of_kind = [[medium for medium in prepared.media if medium.kind == kind] for kind in ("image", "video")]
        for index, group in enumerate(filter(None, of_kind)):
            if f"tower_out_{index}" not in case.record["tensors"]:
                continue
            pixels = torch.cat([medium.tiles.pixels for medium in group]).to(weight.dtype)
            features = model.network.features(pixels)
            if features.shape[-1] != case.record["tensors"][f"tower_out_{index}"]["shape"][-1]:
                continue
            compare(case, "features", *expected(case, f"tower_out_{index}", features))
