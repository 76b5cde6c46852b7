"""VILA-U against its reference, at the tolerances of the recordings' README: codes and ids exact.

Arrays that a recording leaves out are not compared.
"""

import json
from pathlib import Path

import pytest
import torch
from tests.parity.vila_u_recordings import Arrays, Recording, find, folders
from tests.vila_u_checkpoint import RECORDED, complete_checkpoint
from torch import Tensor
from torch.nn import functional as F

import vila_core as vila
from vila_core.checkpoint.configs.vila_u import read_rq_siglip
from vila_core.checkpoint.formats.vila_u import canonical_name
from vila_core.checkpoint.json_files import Section, read_section
from vila_core.checkpoint.tensors.index import WeightIndex, index_folder
from vila_core.preprocess import plain_image
from vila_core.towers.rq_siglip.decoder import to_bytes
from vila_core.towers.rq_siglip.quantizer import squared_distances
from vila_core.towers.rq_siglip.tower import RQSiglipTower

FEATURES, LOGITS, PIXELS, LOSS = 1e-5, 1e-4, 1e-4, 1e-5
IMAGE = -200
"""The id of a picture in the recordings."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    patterns = {
        "forced": ["tf_*.npz", "loss_*_eval.npz"],
        "understood": ["i2t_*.npz", "v2t_*.npz"],
        "tower_folder": [],
    }
    for name, globs in patterns.items():
        if name not in metafunc.fixturenames:
            continue
        if name == "tower_folder":
            found = [file.parent for folder in folders(metafunc.config) for file in folder.glob("tower_*/golden.npz")]
            metafunc.parametrize(name, found, ids=[folder.name for folder in found])
        else:
            cases = [case for pattern in globs for case in find(metafunc.config, pattern)]
            metafunc.parametrize(name, cases, ids=[case.name for case in cases])


@pytest.fixture(scope="module")
def home(pytestconfig: pytest.Config) -> Path:
    """The folder with the checkpoint and the inputs."""
    return next((folder for folder in folders(pytestconfig) if (folder / "checkpoint").exists()), RECORDED)


@pytest.fixture(scope="module")
def model(home: Path, tmp_path_factory: pytest.TempPathFactory) -> vila.Vila:
    folder = complete_checkpoint(home / "checkpoint", tmp_path_factory.mktemp("vila-u") / "checkpoint")
    return vila.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def has_decoder(home: Path) -> bool:
    """Whether the checkpoint has the decoder that the pictures were recorded with."""
    return any(name.startswith("rqvaesiglip.decoder.") for name in index_folder(home / "checkpoint" / "vision_tower"))


def arrays_of(config: pytest.Config, name: str) -> Arrays:
    """Return a recording; skip the test if it is not among those given."""
    found = find(config, f"{name}.npz")
    if not found:
        pytest.skip(f"no recording {name}")
    return found[0].arrays()


def close(got: Tensor, want: Tensor, atol: float, what: str) -> None:
    torch.testing.assert_close(
        got.float().reshape(want.shape), want.float(), atol=atol, rtol=0, msg=lambda text: f"{what}: {text}"
    )


def check_tower(tower: RQSiglipTower, want: Arrays, *, has_decoder: bool = True) -> None:
    pixels = want["pixel_values"]
    with torch.no_grad():
        features = tower.features(pixels)
        codes = tower.encode(pixels)
        close(features, want["features"], FEATURES, "features")
        assert torch.equal(codes, want["codes"])
        close(tower(pixels), want["z_q"], FEATURES, "z_q")
        close(tower.embed_codes(codes), want["embed_code"], FEATURES, "embed_code")
        if "quant_cumulative" in want:
            close(tower.cumulative(codes), want["quant_cumulative"], FEATURES, "quant_cumulative")
        if "commitment_loss" in want:
            errors = want["features"][..., None, :] - tower.cumulative(codes)
            close(errors.square().mean(dim=(0, 1, 2, 4)).mean(), want["commitment_loss"], LOSS, "commitment_loss")
        if "distances" in want:
            first = squared_distances(features.flatten(0, 1), tower.quantizer.codebook(0).embeddings)
            close(first, want["distances"][..., 0, :], 1e-3, "distances of the first depth")
        if "reconstruction" in want and has_decoder:
            close(tower.decode_features(want["z_q"]), want["reconstruction"], PIXELS, "reconstruction")
            decoded = tower.decode(codes)
            close(decoded, want["reconstruction_from_codes"], PIXELS, "reconstruction_from_codes")
            bytes_of = to_bytes(decoded).permute(0, 3, 1, 2).int()
            assert (bytes_of - want["reconstruction_uint8"].int()).abs().max() <= 1


def test_tower(model: vila.Vila, pytestconfig: pytest.Config, has_decoder: bool):
    tower = model.network.vision_tower
    assert isinstance(tower, RQSiglipTower)
    check_tower(tower, arrays_of(pytestconfig, "tower_a"), has_decoder=has_decoder)


def test_another_tower(tower_folder: Path):
    folder = tower_folder / "vision_tower"
    entries = {canonical_name(f"vision_tower.{name}"): entry for name, entry in index_folder(folder).items()}
    weights = {name.removeprefix("vision_tower."): entry for name, entry in entries.items()}
    config = read_rq_siglip(read_section(folder / "config.json"), Section({}, "none"), tower_folder, weights, None)
    tower = RQSiglipTower(config)
    stored = dict(WeightIndex(weights).shards())
    tower.load_state_dict({name: tensor for name, tensor in stored.items() if name in tower.state_dict()})
    case = Recording("golden", tower_folder / "golden.npz", tower_folder)
    check_tower(tower, case.arrays())


def test_tower_in_bfloat16(model: vila.Vila, pytestconfig: pytest.Config, home: Path, has_decoder: bool):
    want = arrays_of(pytestconfig, "tower_a_bf16")
    if not has_decoder:
        pytest.skip("no decoder weights")
    tower = vila.load_image_tokenizer(home / "checkpoint", device="cpu", dtype="bfloat16").tower
    embedded = want["embed_code"].to(torch.bfloat16)
    with torch.no_grad():
        decoded = tower.decode_features(embedded.reshape(-1, *tower.grid, embedded.shape[-1]))
    recorded = want["reconstruction_from_codes"].reshape(decoded.shape)
    assert (decoded.float() - recorded).abs().max() < 0.06  # bfloat16 itself is 0.06 off from float32
    assert (decoded.float() - recorded).abs().mean() < 0.008


def test_projector(model: vila.Vila, pytestconfig: pytest.Config):
    want = arrays_of(pytestconfig, "projector")
    with torch.no_grad():
        close(model.network.mm_projector(want["input"]), want["output"], FEATURES, "projector")


def test_depth_transformer(model: vila.Vila, pytestconfig: pytest.Config):
    want = arrays_of(pytestconfig, "depth_transformer")
    head = model.network.generation_head
    assert head is not None
    codes = want["codes"].flatten(0, -2)
    hidden = want["embed_from_body"].flatten(0, -2)
    seen: list[Tensor] = []

    def replay(depth: int, logits: Tensor) -> Tensor:
        seen.append(logits)
        return codes[:, depth]

    with torch.no_grad():
        close(head.logits(hidden, codes), want["logits"], LOGITS, "teacher forced")
        assert torch.equal(head.choose(hidden, replay), codes)
    close(torch.stack(seen, dim=1), want["logits"], LOGITS, "cached")


def test_prompts(model: vila.Vila, home: Path):
    """The prompts of understanding, of text and of drawing: strings, and ids exactly."""
    cases = json.loads((home / "prompts.json").read_text())["cases"]
    picture = model.tokenizer.media_token_ids["image"]
    for name, case in cases.items():
        ids = model.tokenizer.encode_split(case["prompt"])
        assert [IMAGE if token == picture else token for token in ids] == case["ids"], name


def frames(home: Path) -> list[vila.Image]:
    return [vila.Image(file) for file in sorted((home / "inputs" / "frames").glob("*.png"))]


def test_understanding(understood: Recording, model: vila.Vila, home: Path):
    want = understood.arrays()
    is_video = understood.name.startswith("v2t")
    cases = json.loads((home / "prompts.json").read_text())["cases"]
    case = cases["video_understanding_8" if is_video else "image_understanding"]
    medium = (
        vila.Video([str(image.source) for image in frames(home)])
        if is_video
        else vila.Image(home / "inputs" / "image_1.png")
    )
    prompt = [medium, case["value"].replace("<image>\n", "")]
    seen = model.inspect(prompt, num_logits=10_000)
    picture = model.tokenizer.media_token_ids["image"]
    assert seen.prompt_text == case["prompt"]
    assert [IMAGE if token == picture else token for token in seen.input_ids] == want["input_ids"][0].tolist()
    if "prefill_logits" in want:
        rows = want["prefill_logits"][0]
        close(seen.logits[:, : rows.shape[-1]], rows, LOGITS, "prefill")
    answer = want["output_ids"][0, 1:]  # the reference puts <s> first
    rows = want["step_logits"][0]
    with torch.no_grad():
        embeds = torch.cat([seen.inputs_embeds, model.network.llm.embed(answer[None, :-1])[0]])
        logits = model.network.llm.logits(model.network.llm(embeds[None])[0, -len(rows) :])
    close(logits[:, : rows.shape[-1]], rows, LOGITS, "step by step")
    if understood.name.endswith("greedy"):
        done = model.complete(prompt, max_new_tokens=len(answer), temperature=0)
        assert list(done.token_ids) == answer.tolist()


def test_text_alone(model: vila.Vila):
    """The reference raises IndexError here."""
    assert model.complete("Is the sky blue?", max_new_tokens=4).usage.completion_tokens == 4


def images_of(case: Recording) -> list[vila.Image]:
    """Return the pictures of a batch, in the order of its rows."""
    inputs = case.home / "inputs"
    pictures = {
        "t2i": [vila.Image(inputs / "image_0.png")],
        "i2t": [vila.Image(inputs / "image_1.png")],
        "t2v": frames(case.home),
    }
    return [image for sample in case.info["samples"] for image in pictures.get(sample, [])]


def expand(model: vila.Vila, case: Recording, want: Arrays) -> tuple[Tensor, list[range], Tensor]:
    """Return the embeddings `[B, L, H]`, the positions of each picture in its row, and the pictures' codes."""
    network = model.network
    tower, head = network.vision_tower, network.generation_head
    assert isinstance(tower, RQSiglipTower)
    assert head is not None
    loaded = [image.load() for image in images_of(case)]
    pixels = [plain_image(one, model.config.pixels, model.config.preprocess) for one in loaded]
    codes = torch.zeros(0, *tower.grid, tower.code_depth, dtype=torch.int64)
    if pixels:
        codes = tower.encode(torch.stack(pixels).float() / 127.5 - 1)
    tokens = network.mm_projector(tower.embed_codes(codes).flatten(1, 2))  # [N, P, H]
    rows: list[Tensor] = []
    places: list[range] = []
    remaining = iter(tokens)
    for ids, mask in zip(want["input_ids"], want["attention_mask"].bool(), strict=True):
        parts: list[Tensor] = []
        length = 0
        for token in ids[mask].tolist():
            part = next(remaining) if token == IMAGE else network.llm.embed(torch.tensor([[token]]))[0]
            if token == IMAGE:
                places.append(range(length, length + len(part)))
            parts.append(part)
            length += len(part)
        rows.append(torch.cat(parts))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), places, codes


def test_teacher_forcing(forced: Recording, model: vila.Vila):
    want = forced.arrays()
    network, head = model.network, model.network.generation_head
    assert head is not None
    with torch.no_grad():
        embeds, _, _ = expand(model, forced, want)
        hidden = network.llm(embeds)
        kept = want["expanded_mask"].bool()
        vocabulary = want["logits"].shape[-1] if "logits" in want else 400
        logits = network.llm.logits(hidden)[..., :vocabulary]
        labels = want["expanded_labels"]
        if "logits" in want:
            close(logits[:, : kept.shape[1]][kept], want["logits"][kept], LOGITS, "logits")
        text = labels[..., 0].masked_fill(labels[..., 0] >= vocabulary, -100)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
        if "image_codes" in want and want["image_codes"].numel():
            is_code = labels[:, 1:, 0] >= vocabulary
            targets = labels[:, 1:][is_code] - vocabulary  # [T, D], row by row
            recorded = want["image_codes"].flatten(0, 1)
            assert torch.equal(targets.sort(0).values, recorded.sort(0).values)
            close(
                head.logits(want["image_hidden"].flatten(0, 1), recorded),
                want["image_logits"].flatten(0, 1),
                LOGITS,
                "image logits",
            )
            scores = head.logits(hidden[:, :-1][is_code], targets)
            if len(want["image_hidden"]) == 1:
                close(hidden[:, :-1][is_code], want["image_hidden"], LOGITS, "image hidden")
            loss = loss + F.cross_entropy(scores.flatten(0, 1), targets.flatten())
    if "loss" in want:
        close(loss, want["loss"], LOSS, "loss")
