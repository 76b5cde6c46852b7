"""The search against recordings: losses, choices, clips, and errors of blocks and logits on held-out tokens.

B sequences, T tokens, D width
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.quant.conftest import COMMITTED, Recording
from torch import Tensor

from vila_core.checkpoint.configs.language import read_language_config
from vila_core.checkpoint.json_files import Section, read_section
from vila_core.language.decoder import Decoder
from vila_quant.awq.block import LINEARS, BlockInputs, linear, record_inputs, run_block, scale_groups
from vila_quant.awq.clips import apply_clips, sample_tokens, search_clips
from vila_quant.awq.method import BlockOptions, BlockQuantizer
from vila_quant.awq.methods import METHODS
from vila_quant.awq.reference import UNCLIPPED, round_to_nearest
from vila_quant.awq.scales import (
    ScaleChoice,
    activation_scale,
    apply_scales,
    mean_squared_error,
    reference_candidates,
    search_scales,
)
from vila_quant.packing.groupwise import fake_quantize

KINDS = ("gqa", "mha")

CLAIM = 0.95
"""`best` leaves at most this share of the error that the reference leaves, on any model."""
REACHED = {COMMITTED.name: 0.6}
"""By recording, what `best` was seen to leave of its blocks' error: it is kept."""


@dataclass(frozen=True)
class Quality:
    """Of a quantized model on held-out tokens, under the names of `b_metrics.json`."""

    block_mse_same_input: list[float]
    block_mse_propagated: list[float]
    logits_mse: float
    kl: float
    ce: float

    @classmethod
    def recorded(cls, metrics: dict[str, object]) -> "Quality":
        fields = Section(metrics, "b_metrics.json")
        lists = [fields.values["block_mse_same_input"], fields.values["block_mse_propagated"]]
        return cls(*lists, fields.number("logits_mse"), fields.number("logits_kl_fp32||q"), fields.number("ce"))  # pyright: ignore

    def assert_close(self, other: "Quality", tolerance: float) -> None:
        for name, value in vars(self).items():
            assert value == pytest.approx(vars(other)[name], rel=tolerance), name


@dataclass(frozen=True)
class RecordedSearch:
    """A recorded search, and the model that it was run on."""

    kind: str
    model: Path
    results: dict[str, Tensor]
    history: list[dict[str, object]]
    metrics: dict[str, dict[str, dict[str, object]]]
    calibration: Tensor
    evaluation: Tensor

    def decoder(self) -> Decoder:
        config = read_language_config(read_section(self.model / "config.json"), 2048)
        decoder = Decoder(config)
        decoder.load_state_dict(
            {name: tensor.float() for name, tensor in load_file(self.model / "model.safetensors").items()}
        )
        return decoder.eval().requires_grad_(False)

    @property
    def group_size(self) -> int:
        name, clips = next(
            (key.removeprefix("clip|"), tensor) for key, tensor in self.results.items() if key.startswith("clip|")
        )
        return self.decoder().get_submodule(name).weight.shape[1] // clips.shape[1]

    @property
    def reached(self) -> float:
        return REACHED.get(self.model.parent.name, CLAIM)

    def clips(self, layer: int, name: str) -> Tensor | None:
        return self.results.get(f"clip|model.layers.{layer}.{name}")

    def choices(self, decoder: Decoder, layer: int) -> list[ScaleChoice]:
        """Return the recorded scales of a layer."""
        prefix = f"model.layers.{layer}."
        return [
            ScaleChoice(
                group,
                self.results[f"scale|{prefix}{group.previous}|{','.join(prefix + name for name in group.linears)}"],
                0,
                (),
            )
            for group in scale_groups(decoder.model.layers[layer])
        ]

    def block_inputs(self, decoder: Decoder, dtype: torch.dtype = torch.float32) -> BlockInputs:
        return BlockInputs(decoder.model.rotary(torch.arange(self.calibration.shape[1])[None], dtype))

    @torch.no_grad()
    def quality(self, quantized: Decoder) -> Quality:
        whole = self.decoder()
        around = BlockInputs(whole.model.rotary(torch.arange(self.evaluation.shape[1])[None], torch.float32))
        x = own = whole.embed(self.evaluation)
        same, propagated = [], []
        for block, quantized_block in zip(whole.model.layers, quantized.model.layers, strict=True):
            expected = run_block(block, x, around)
            own = run_block(quantized_block, own, around)
            same.append(mean_squared_error(run_block(quantized_block, x, around), expected))
            propagated.append(mean_squared_error(own, expected))
            x = expected
        expected_logits, logits = (model.logits(model(model.embed(self.evaluation))) for model in (whole, quantized))
        log_p, log_q = expected_logits.log_softmax(-1), logits.log_softmax(-1)
        kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        ce = float(F.cross_entropy(logits[:, :-1].flatten(0, 1), self.evaluation[:, 1:].flatten()))
        return Quality(same, propagated, mean_squared_error(logits, expected_logits), kl, ce)

    def quantize(self, method: BlockQuantizer, dtype: torch.dtype = torch.float32) -> Decoder:
        """Return the model, quantized as the pipeline does."""
        decoder = self.decoder().to(dtype)
        around = self.block_inputs(decoder, dtype)
        options = BlockOptions(4, self.group_size, sequences_at_once=4)
        with torch.no_grad():
            x = decoder.embed(self.calibration)
            for block in decoder.model.layers:
                whole_output = run_block(block, x, around)
                method.quantize_block(block, x, around, options)
                x = run_block(block, x, around) if method.follows_quantized else whole_output
        return decoder.float()


@pytest.fixture(params=KINDS)
def search(request: pytest.FixtureRequest, recording: Recording) -> RecordedSearch:
    kind = str(request.param)
    results = recording.tensors(f"b_awq_search_{kind}_fp32.safetensors")
    metrics = json.loads(recording.path("b_metrics.json").read_text())
    return RecordedSearch(
        kind,
        model_of(recording, results),
        results,
        json.loads(recording.path(f"b_awq_search_{kind}_fp32_history.json").read_text()),
        {name.removeprefix(f"{kind}_"): value for name, value in metrics.items() if name.startswith(f"{kind}_")},
        recording.tensors("b_calib_tokens.safetensors")["calib_tokens"],
        recording.tensors("eval_tokens.safetensors")["eval_tokens"],
    )


def model_of(recording: Recording, results: dict[str, Tensor]) -> Path:
    """Return the folder of the whole model that has the layers of the results, in their sizes."""
    scales = {
        name: len(tensor)
        for key, tensor in results.items()
        if key.startswith("scale|")
        for name in key.split("|")[2].split(",")
    }
    clips = {key.removeprefix("clip|"): len(tensor) for key, tensor in results.items() if key.startswith("clip|")}
    for config in sorted(recording.folder.glob("*/config.json")):
        weights = load_file(config.parent / "model.safetensors")
        shapes = {
            name.removesuffix(".weight"): tensor.shape
            for name, tensor in weights.items()
            if name.endswith("_proj.weight")
        }
        fits = {*scales, *clips} <= set(shapes) and all(shapes[name][1] == width for name, width in scales.items())
        value_scales = any(key.startswith("scale|") and "v_proj|" in key for key in results)
        all_heads = all(shapes[name] == shapes[name.replace("o_proj", "v_proj")] for name in shapes if "o_proj" in name)
        if fits and all(shapes[name][0] == rows for name, rows in clips.items()) and value_scales == all_heads:
            return config.parent
    return pytest.skip(f"{recording.folder.name} lacks the model of a search")


def recorded_blocks(search: RecordedSearch) -> Iterator[tuple[int, Decoder, Tensor, dict[str, Tensor], BlockInputs]]:
    """Yield each block, whole, with its calibration inputs; it may be changed."""
    decoder = search.decoder()
    around = search.block_inputs(decoder)
    x = decoder.embed(search.calibration)
    for layer, block in enumerate(decoder.model.layers):
        output, inputs = record_inputs(block, x, around)
        yield layer, decoder, x, inputs, around
        x = output


def test_losses_and_ratios_are_the_recorded_ones(search: RecordedSearch) -> None:
    fake = partial(fake_quantize, bits=4, group_size=search.group_size)
    recorded = iter(search.history)
    for layer, decoder, _, inputs, around in recorded_blocks(search):
        block = decoder.model.layers[layer]
        assert isinstance(block, torch.nn.Module)
        for choice in search.choices(decoder, layer):
            x = inputs[choice.group.linears[0]]
            found = search_scales(block, choice.group, x, around, reference_candidates(activation_scale(x)), fake, 4)
            expected = next(recorded)
            assert str(expected["prev_op"]).endswith(choice.group.previous)
            losses = [float(loss) for loss in expected["loss_history"]]  # pyright: ignore
            assert found.losses == pytest.approx(losses, rel=1e-3), choice.group.previous
            best = round(20 * float(expected["best_ratio"]))  # pyright: ignore
            if found.best != best:
                assert losses[found.best] == pytest.approx(losses[best], rel=1e-3), "another ratio, and no near-tie"
            else:
                torch.testing.assert_close(found.scales, choice.scales, rtol=1e-5, atol=0)
    assert next(recorded, None) is None, "the recording has more groups"


def test_clips_under_the_recorded_scales_are_the_recorded_ones(search: RecordedSearch) -> None:
    fake = partial(fake_quantize, bits=4, group_size=search.group_size)
    for layer, decoder, _, inputs, _ in recorded_blocks(search):
        block = decoder.model.layers[layer]
        choices = search.choices(decoder, layer)
        apply_scales(block, choices)
        scales = {name: choice.scales for choice in choices for name in choice.group.linears}
        for name in LINEARS:
            expected = search.clips(layer, name)
            assert (expected is None) == (name in UNCLIPPED), name
            if expected is None:
                continue
            weight = linear(block, name).weight
            x = inputs[name] / scales[name] if name in scales else inputs[name]
            found = search_clips(weight, sample_tokens(x), search.group_size, fake)
            step = weight.unflatten(1, (-1, search.group_size)).abs().amax(-1, keepdim=True) / 20
            off = (found - expected).abs() / step
            assert (off > 0.01).float().mean() <= 0.005, name
            assert off.max() < 1.01, f"{name}: more than one step"


def test_recorded_scales_and_clips_give_the_recorded_quality(search: RecordedSearch) -> None:
    decoder = search.decoder()
    options = BlockOptions(4, search.group_size)
    for layer, block in enumerate(decoder.model.layers):
        apply_scales(block, search.choices(decoder, layer))
        for name in LINEARS:
            if (limits := search.clips(layer, name)) is not None:
                apply_clips(linear(block, name).weight, limits)
        round_to_nearest(block, list(LINEARS), options)
    search.quality(decoder).assert_close(Quality.recorded(search.metrics["fp32"]["awq_scale+clip"]), 2e-3)


def test_rounding_to_nearest_gives_the_recorded_quality(search: RecordedSearch) -> None:
    quality = search.quality(search.quantize(METHODS["nearest"]))
    quality.assert_close(Quality.recorded(search.metrics["fp32"]["rtn"]), 2e-3)


def test_the_reference_reaches_the_recorded_quality(search: RecordedSearch) -> None:
    quality = search.quality(search.quantize(METHODS["reference"]))
    quality.assert_close(Quality.recorded(search.metrics["fp32"]["awq_scale+clip"]), 0.02)


def test_the_search_in_fp16_reaches_the_recorded_quality(search: RecordedSearch) -> None:
    if "fp16search" not in search.metrics:
        pytest.skip("no search in fp16 was recorded")
    found = search.quality(search.quantize(METHODS["reference"], torch.float16)).block_mse_same_input
    expected = Quality.recorded(search.metrics["fp16search"]["awq_scale+clip"]).block_mse_same_input
    assert found == pytest.approx(expected, rel=0.03)


def test_best_loses_far_less_than_the_recorded_reference(search: RecordedSearch) -> None:
    best = search.quality(search.quantize(METHODS["best"]))
    recorded = Quality.recorded(search.metrics["fp32"]["awq_scale+clip"])
    for found, reference in zip(best.block_mse_same_input, recorded.block_mse_same_input, strict=True):
        assert found <= search.reached * reference
    assert best.kl < search.reached * recorded.kl

    again = search.quality(search.quantize(METHODS["best"]))
    assert again == best, "the search is not deterministic"


def test_best_also_works_in_the_dtypes_of_a_gpu(search: RecordedSearch) -> None:
    found = search.quality(search.quantize(METHODS["best"], torch.bfloat16))
    recorded = Quality.recorded(search.metrics["fp32"]["awq_scale+clip"])
    assert sum(found.block_mse_same_input) < search.reached * sum(recorded.block_mse_same_input)
