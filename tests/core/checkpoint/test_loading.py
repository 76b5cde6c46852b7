"""Loading weights into a network: exact values, little memory, and errors that list all mismatches."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.programs import run_program
from torch import nn

from vila_core.checkpoint import Checkpoint, load_weights, open_checkpoint
from vila_core.errors import CheckpointError
from vila_core.model import VilaModel
from vila_core.prompt import PreparedPrompt
from vila_core.tokenizer import Tokenizer

Make = Callable[..., Path]
Edit = Callable[..., None]


def empty_network(checkpoint: Checkpoint, vocab_size: int | None = None) -> VilaModel:
    config = checkpoint.config
    if vocab_size is not None:
        config = config.model_copy(
            update={"language_model": config.language_model.model_copy(update={"vocab_size": vocab_size})}
        )
    with torch.device("meta"):
        return VilaModel(config, Tokenizer.from_folder(checkpoint.tokenizer_path))


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("kind", ["nvila_lite", "nvila", "clip_llama", "intern_llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_weight_is_loaded(make_checkpoint: Make, kind: str, dtype: torch.dtype):
    folder = make_checkpoint(kind)
    checkpoint = open_checkpoint(folder)
    network = empty_network(checkpoint)
    load_weights(network, checkpoint, device="cpu", dtype=dtype)
    stored = {
        f"{part}.{name}": tensor
        for part in ("llm", "vision_tower", "mm_projector")
        for name, tensor in load_file(folder / part / "model.safetensors").items()
    }
    state = network.state_dict()
    assert state.keys() == stored.keys()
    for name, tensor in stored.items():
        assert state[name].dtype == dtype
        assert torch.equal(state[name], tensor.to(dtype)), name


def test_loaded_network_runs_on_positions_that_were_never_stored(make_checkpoint: Make):
    checkpoint = open_checkpoint(make_checkpoint(tied=True))
    network = empty_network(checkpoint)
    load_weights(network, checkpoint, device="cpu", dtype=torch.float32)
    ids = list(range(20, 29))
    (logits,) = network([PreparedPrompt("", ids)])
    (of_reversed,) = network([PreparedPrompt("", ids[::-1])])
    assert torch.isfinite(logits).all()
    assert not torch.allclose(of_reversed.flip(0), logits)


def test_reads_are_reported(make_checkpoint: Make):
    checkpoint = open_checkpoint(make_checkpoint())
    seen: list[int] = []
    load_weights(empty_network(checkpoint), checkpoint, device="cpu", dtype=torch.float32, on_read=seen.append)
    assert sum(seen) == sum(entry.nbytes for entry in checkpoint.weights.entries.values())


def test_requires_grad_and_real_parameters_stay(make_checkpoint: Make):
    checkpoint = open_checkpoint(make_checkpoint())
    network = empty_network(checkpoint)
    network.vision_tower.requires_grad_(False)
    real = nn.Parameter(torch.zeros(network.llm.model.norm.weight.shape))
    network.llm.model.norm.weight = real
    load_weights(network, checkpoint, device="cpu", dtype=torch.float32)
    assert network.llm.model.norm.weight is real
    assert real.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.vision_tower.parameters())
    assert all(parameter.requires_grad for parameter in network.mm_projector.parameters())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_weights_on_a_gpu_are_those_on_the_cpu(make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "vila_core.checkpoint.tensors.reading.STAGING_BYTES", 1000
    )  # so that tensors need the buffers several times
    checkpoint = open_checkpoint(make_checkpoint(dtype=torch.float32))
    states = []
    for device in ("cpu", "cuda"):
        network = empty_network(checkpoint)
        load_weights(network, checkpoint, device=device, dtype=torch.bfloat16)
        states.append(network.state_dict())
    assert all(tensor.is_cuda for tensor in states[1].values())
    assert all(torch.equal(tensor, states[1][name].cpu()) for name, tensor in states[0].items())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64], ids=str)
def test_weights_of_another_kind_of_number_are_refused(make_checkpoint: Make, dtype: torch.dtype):
    folder = make_checkpoint()
    name = "model.norm.weight"
    change_tensors(
        folder / "llm" / "model.safetensors", lambda tensors: tensors.update({name: tensors[name].to(dtype)})
    )
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=rf"1 not floating-point \(llm\.{name} is [A-Z0-9]+\)"):
        load_weights(empty_network(checkpoint), checkpoint, device="cpu", dtype=torch.float32)


def test_missing_extra_and_misshapen_weights_are_listed_in_one_error(make_checkpoint: Make):
    folder = make_checkpoint()

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(3, 32)
        tensors["model.layers.7.stranger"] = torch.ones(1)

    change_tensors(folder / "llm" / "model.safetensors", spoil)
    checkpoint = open_checkpoint(folder)
    network = empty_network(checkpoint)
    with pytest.raises(CheckpointError) as raised:
        load_weights(network, checkpoint, device="cpu", dtype=torch.float32)
    message = str(raised.value)
    for part in (
        "1 missing",
        "llm.model.norm.weight",
        "1 not expected",
        "llm.model.layers.7.stranger",
        "up_proj.weight [3, 32], expected [48, 32]",
        str(folder),
    ):
        assert part in message
    assert all(parameter.is_meta for parameter in network.parameters()), "nothing is loaded before everything fits"


def test_long_lists_are_shortened(make_checkpoint: Make):
    folder = make_checkpoint()
    change_tensors(
        folder / "llm" / "model.safetensors",
        lambda tensors: tensors.update({f"extra.{i}": torch.ones(1) for i in range(57)}),
    )
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="57 not expected") as raised:
        load_weights(empty_network(checkpoint), checkpoint, device="cpu", dtype=torch.float32)
    assert str(raised.value).count("llm.extra.") == 3
    assert "and 54 more" in str(raised.value)
    assert raised.value.details.count("llm.extra.") == 57


def test_known_unused_tensors_are_ignored(make_checkpoint: Make):
    folder = make_checkpoint(tied=True)
    embedding = load_file(folder / "llm" / "model.safetensors")["model.embed_tokens.weight"]
    leftovers = {"lm_head.weight": embedding.clone(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    change_tensors(folder / "llm" / "model.safetensors", lambda tensors: tensors.update(leftovers))
    change_tensors(
        folder / "vision_tower" / "model.safetensors",
        lambda tensors: tensors.update({"vision_model.embeddings.position_ids": torch.arange(16)[None]}),
    )
    checkpoint = open_checkpoint(folder)
    load_weights(empty_network(checkpoint), checkpoint, device="cpu", dtype=torch.float32)


def test_missing_vocabulary_rows_become_the_mean_row(make_checkpoint: Make):
    checkpoint = open_checkpoint(make_checkpoint("clip_llama"))
    network = empty_network(checkpoint, vocab_size=303)
    load_weights(network, checkpoint, device="cpu", dtype=torch.float32, vocab_size=303)
    for name in ("llm.model.embed_tokens.weight", "llm.lm_head.weight"):
        rows = network.state_dict()[name]
        assert rows.shape[0] == 303
        torch.testing.assert_close(rows[300:], rows[:300].mean(0).expand(3, -1), atol=1e-3, rtol=0)
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_weights(empty_network(checkpoint, vocab_size=303), checkpoint, device="cpu", dtype=torch.float32)


def test_positions_are_resized_for_another_resolution(make_checkpoint: Make, edit: Edit):
    folder = make_checkpoint()
    edit(folder / "config.json", vision_resolution=84)
    checkpoint = open_checkpoint(folder)
    network = empty_network(checkpoint)
    load_weights(network, checkpoint, device="cpu", dtype=torch.float32)
    positions = network.state_dict()["vision_tower.vision_model.embeddings.position_embedding.weight"]
    assert positions.shape[0] == 36
    # The reference implementation's resizing zeroes some rows (always the first and last); ours does not.
    assert positions.abs().sum(dim=1).min() > 0


MEMORY = """
import resource, sys, torch
from pathlib import Path
from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.tensors.index import WeightIndex, index_folder
index = WeightIndex(index_folder(Path(sys.argv[1])))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
index.read("tensor.0"); before = peak()
for name, tensor in index.shards():
    del tensor
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured as Linux reports it")
def test_reading_holds_one_tensor_not_a_shard(tmp_path: Path):
    size = 8 * 1024 * 1024
    save_file(
        {f"tensor.{i}": torch.full((size,), i, dtype=torch.uint8) for i in range(12)}, tmp_path / "model.safetensors"
    )
    done = run_program([sys.executable, "-c", MEMORY, str(tmp_path)], check=True)
    assert int(done.stdout) < 4 * size
