"""Generation with VILA-U against its reference: codes exact, through the engine, with recorded random numbers."""

from pathlib import Path

import pytest
import torch
from tests.parity.vila_u_recordings import Recording, find
from tests.vila_u_checkpoint import complete_checkpoint
from torch import Tensor

import vila_core as vila
from vila_core.engine.drawing_settings import DrawingConfig
from vila_core.engine.image_generation import draw_pictures
from vila_core.engine.inputs import TextPrompt
from vila_core.generation.drawing_rows import seed_of_picture
from vila_core.generation.pictures import to_frames
from vila_core.generation.prompts import PicturePrompts
from vila_core.language import paged_step
from vila_core.ops.reference import choose_tokens, kept_tokens

LOGITS, PIXELS = 1e-4, 1e-2
TOP_K, TOP_P = 900, 0.96
"""What the reference always uses."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, patterns in {"drawn": ["t2i_*.npz", "t2v_*.npz"], "sampled": ["sampler_unit*.npz"]}.items():
        if name in metafunc.fixturenames:
            cases = [case for pattern in patterns for case in find(metafunc.config, pattern)]
            metafunc.parametrize(name, cases, ids=[case.name for case in cases])


class Recorded:
    """A `choose_tokens` that takes random numbers from a recording, or the likeliest code if it has none.

    Attributes:
        logits: with guidance, by position, depth and picture.
    """

    def __init__(self, pictures: int, q: Tensor | None, depth: int):
        self._numbers = {seed_of_picture(0, number): number for number in range(pictures)}
        self._q, self._depth = q, depth
        self.logits: dict[tuple[int, int, int], Tensor] = {}

    def __call__(self, logits: Tensor, ids: Tensor, positions: Tensor, *rest: Tensor) -> Tensor:
        seeds = rest[3].tolist()
        if not self._numbers.keys() & set(seeds):  # tokens of a text
            return choose_tokens(logits, ids, positions, *rest)  # pyright: ignore[reportArgumentType]
        chosen = torch.full_like(ids, -1)
        for row in (positions >= 0).nonzero()[:, 0].tolist():
            place = (*divmod(int(positions[row]), self._depth), self._numbers[seeds[row]])
            self.logits[place] = logits[row].clone()
            chosen[row] = ids[row] = logits[row].argmax() if self._q is None else draw(logits[row], self._q[place])
            positions[row] += 1
        return chosen


def draw(logits: Tensor, q: Tensor) -> Tensor:
    p = logits.masked_fill(~kept_tokens(logits, TOP_K, TOP_P), -torch.inf).softmax(dim=-1)
    return (p / q).argmax()


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, vila.Vila]:
    """Loaded checkpoints by the folder of their recordings."""

    class Models(dict[Path, vila.Vila]):
        def __missing__(self, home: Path) -> vila.Vila:
            folder = complete_checkpoint(home / "checkpoint", tmp_path_factory.mktemp("vila-u") / "checkpoint")
            self[home] = vila.load(folder, device="cpu", dtype="float32")
            return self[home]

    return Models()


def test_codes_and_pixels(drawn: Recording, model_of: dict[Path, vila.Vila], monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, info, model = drawn.arrays(), drawn.info, model_of[drawn.home]
    head = model.network.generation_head
    assert head is not None
    kind = "image" if drawn.name.startswith("t2i") else "video"
    n, guidance = int(info.get("generation_nums", 1)), float(info.get("cfg", 3.0))
    recorded = Recorded(n, arrays.get("code_q"), head.codes_per_position)
    monkeypatch.setattr(paged_step, "choose_tokens", recorded)
    model.__dict__.pop("engine", None)
    prompts = PicturePrompts(head, model.template, model.tokenizer, 1024)
    ids = [list(prompts.ids(kind, text)) for text in (info["prompt"], "")]
    for row, mask in enumerate(arrays.get("attention_mask", torch.empty(0))):
        assert arrays["input_ids"][row][mask.bool()].tolist() == ids[row // n]
    config = DrawingConfig(guidance=guidance, top_k=TOP_K, top_p=TOP_P, seed=0)
    prompts = [(TextPrompt(model.network.llm, ids[0]), number) for number in range(n)]
    pictures = draw_pictures(model.engine, head, kind, prompts, config, None, model.device)
    assert torch.equal(torch.tensor([one.codes for one in pictures]), arrays["codes"][:n])
    for (position, depth, number), logits in recorded.logits.items():
        if "guided_logits" in arrays:
            expected = arrays["guided_logits"][position, depth, number]
            torch.testing.assert_close(logits, expected, rtol=0, atol=LOGITS, msg=drawn.name)
    if "response" in arrays and _has_decoder(drawn.home):
        for picture, response in zip(pictures, arrays["response"], strict=True):
            (frame,) = to_frames(head, picture.codes, kind, model.device)
            pixels = torch.frombuffer(bytearray(frame.tobytes()), dtype=torch.uint8).view(*frame.size, 3)
            difference = (pixels.permute(2, 0, 1).float() - response).abs().max()
            assert difference <= 0.5 + PIXELS, "pixels are rounded"


def _has_decoder(home: Path) -> bool:
    from safetensors import safe_open

    with safe_open(home / "checkpoint" / "vision_tower" / "model.safetensors", "pt") as file:
        return any(name.startswith("rqvaesiglip.decoder.") for name in file.keys())  # noqa: SIM118


def test_top_k_top_p_and_the_draw(sampled: Recording) -> None:
    arrays = sampled.arrays()
    for row, logits in enumerate(arrays["logits"]):
        kept = kept_tokens(logits, TOP_K, TOP_P)
        probabilities = logits.masked_fill(~kept, -torch.inf).softmax(dim=-1)
        assert int(kept.sum()) == int(arrays["nonzero"][row])
        torch.testing.assert_close(probabilities, arrays["probs"][row], rtol=0, atol=1e-6)
        assert int(draw(logits, arrays["exponential"][row])) == int(arrays["samples"][row])
