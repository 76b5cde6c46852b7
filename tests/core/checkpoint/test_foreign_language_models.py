"""Language models that transformers builds: a checkpoint's config never picks code, and wrong values are named."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.core.checkpoint.foreign import FOREIGN, replace_language_model
from tests.programs import run_program
from transformers.utils.import_utils import KERNELS_MIN_VERSION

import vila_core as vila
from vila_core.checkpoint import open_checkpoint
from vila_core.errors import CheckpointError, ConfigError

Make = Callable[..., Path]
Edit = Callable[..., None]


@pytest.fixture
def make_foreign(make_checkpoint: Make) -> Callable[[str], Path]:
    """Return a function that writes a tiny checkpoint with a language model of some type of transformers."""
    return lambda model_type: replace_language_model(make_checkpoint("nvila_lite"), model_type)


def answer(folder: Path) -> str:
    return vila.load(folder, device="cpu").generate("Hello", max_new_tokens=2)


@pytest.mark.parametrize("model_type", FOREIGN)
def test_answers(make_foreign: Callable[[str], Path], model_type: str) -> None:
    assert isinstance(answer(make_foreign(model_type)), str)


KERNEL = "evil/kernel"
PICKS_CODE: dict[str, dict[str, object]] = {
    "attention": {"attn_implementation": KERNEL},
    "attention of a known owner": {"attn_implementation": "kernels-community/flash-attn2"},
    "attention at a revision": {"attn_implementation": "evil/kernel@main:forward"},
    "paged attention": {"attn_implementation": "paged|evil/kernel"},
    "attention by its private name": {"_attn_implementation": KERNEL},
    "attention by its internal name": {"_attn_implementation_internal": KERNEL},
    "attention of a sub-config": {"attn_implementation": {"": KERNEL, "text_config": KERNEL}},
    "experts": {"experts_implementation": KERNEL, "_experts_implementation": KERNEL},
    "experts by a bundled kernel": {"experts_implementation": "sonicmoe"},
    "flash attention that is not installed": {"attn_implementation": "flash_attention_2"},
    "remote code": {
        "auto_map": {"AutoConfig": "evil/code--configuration.Config", "AutoModelForCausalLM": "evil/code--model.Model"},
        "trust_remote_code": True,
        "_commit_hash": "main",
        "name_or_path": "evil/code",
        "_name_or_path": "evil/code",
    },
    "kernels for all modules": {"use_kernels": True, "kernel_config": {"RMSNorm": "evil/kernel:RMSNorm"}},
    "quantizer": {"quantization": {"quant_method": "evil"}, "_pre_quantization_dtype": "float16"},
    "per layer": {"per_layer_config": {"0": {"attn_implementation": KERNEL}}, "output_attentions": True},
    "methods of the config object": {
        "get_text_config": 1,
        "to_dict": 2,
        "attribute_map": {"hidden_size": "vocab_size"},
        "sub_configs": {"x": 1},
        "sub_configs_defaults": 3,
        "__class__": "x",
        "validate": None,
        "base_model_tp_plan": {"layers": "evil"},
        "base_config_key": "x",
    },
    "generation": {"custom_generate": "evil/code", "cache_implementation": "quantized", "assistant_model": "evil/code"},
    "classes": {"tokenizer_class": "LlamaTokenizer", "processor_class": "Evil", "architectures": ["EvilForCausalLM"]},
}

REFUSED = {
    *("attention", "attention of a known owner", "attention at a revision", "paged attention"),
    *("attention by its private name", "attention by its internal name", "attention of a sub-config", "experts"),
    "per layer",
}

FAKE_KERNELS = """
import sys, types

class Anything(type(sys)):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        def refuse(*args, **settings):
            raise SystemExit(f"kernels.{name} was called: {args}")
        return type(name, (), {}) if name[0].isupper() else decorator if name.startswith("use_kernel") else refuse

def decorator(*args, **settings):
    return lambda wrapped: wrapped

for module in ("kernels", "kernels.layer", "kernels.layer.mode"):
    sys.modules[module] = made = Anything(module)
    made.__path__, made.__file__, made.__spec__ = [], "kernels.py", sys.modules["kernels"].__dict__.get("__spec__")
"""

ASK = """
import json, pathlib, socket, sys
import huggingface_hub.file_download, huggingface_hub
from transformers.utils.import_utils import is_kernels_available
assert is_kernels_available(), "transformers must believe that kernels are installed"

def refuse(*args, **settings):
    raise SystemExit(f"the network was used: {args}")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
huggingface_hub.snapshot_download = huggingface_hub.hf_hub_download = refuse
import vila_core as vila

folder = pathlib.Path(sys.argv[1])
file = folder / "llm" / "config.json"
config = json.loads(file.read_text())
for name, changes in json.loads(sys.argv[2]).items():
    file.write_text(json.dumps({**config, **changes}))
    try:
        vila.load(folder, device="cpu").generate("Hello", max_new_tokens=2)
    except vila.VilaError as error:
        print(f"{name}: {error}")
"""


@pytest.mark.parametrize("model_type", ["mixtral", "gemma3_text"])
def test_a_checkpoint_never_picks_code(
    make_foreign: Callable[[str], Path], make_checkpoint: Make, tmp_path: Path, model_type: str
) -> None:
    folder = make_foreign(model_type) if model_type in FOREIGN else make_checkpoint()
    site = tmp_path / "site"
    (site / "kernels").mkdir(parents=True)
    (site / "kernels" / "__init__.py").write_text(FAKE_KERNELS)
    (site / f"kernels-{KERNELS_MIN_VERSION}.dist-info").mkdir()
    (site / f"kernels-{KERNELS_MIN_VERSION}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n"
    )
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = run_program(
        [sys.executable, "-c", ASK, str(folder), json.dumps(PICKS_CODE)],
        env={**os.environ, "PYTHONPATH": paths},
        seconds=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    refused = [line.partition(":")[0] for line in run.stdout.splitlines()]
    assert refused == [name for name in PICKS_CODE if name in REFUSED]  # the others say nothing about the network
    assert all("implementation" in line and "expected one of" in line for line in run.stdout.splitlines())


@pytest.mark.parametrize("file", ["config.json", "llm/config.json", "vision_tower/config.json"])
def test_kernels_are_refused_by_name(make_checkpoint: Make, edit: Edit, file: str) -> None:
    folder = make_checkpoint()
    for name in ("eager", "sdpa", "flash_attention_2", "paged|sdpa", None, {"": "eager", "text_config": None}):
        edit(folder / file, attn_implementation=name)
        open_checkpoint(folder)
    for name in ("evil/kernel", "flash_attention", "evil/kernel:forward", {"": "evil/kernel"}, ["sdpa"], 5, ""):
        edit(folder / file, attn_implementation=name)
        with pytest.raises(CheckpointError, match=f"{file}: 'attn_implementation' is .*expected one of eager, sdpa"):
            open_checkpoint(folder)


def test_failures_of_a_head_are_named(make_foreign: Callable[[str], Path]) -> None:
    """Architectures scale their scores in the head, with values of the config that may not fit."""
    model = vila.load(make_foreign("mixtral"), device="cpu")
    head = model.network.llm._whole[1]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]

    def fail(**_: object) -> None:
        raise KeyError("scale")

    head.forward = fail  # pyright: ignore[reportUnknownMemberType]
    with pytest.raises(ConfigError, match="cannot run this 'mixtral': KeyError: 'scale'"):
        model.generate("Hello", max_new_tokens=2)


WRONG: dict[str, tuple[str, dict[str, object], str]] = {
    "unknown activation": ("mixtral", {"hidden_act": "warp"}, "warp"),
    "activation of another type": ("mixtral", {"hidden_act": 5}, "hidden_act"),
    "rope type": ("mixtral", {"rope_scaling": {"type": "su", "factor": 2.0}}, "rope"),
    "rope of another type": ("mixtral", {"rope_scaling": "linear"}, "rope_scaling"),
    "sub-config of another type": ("mixtral", {"rope_parameters": [1]}, "rope_parameters"),
    "layer types": ("gemma2", {"layer_types": ["sideways", "full_attention"]}, "layer_types"),
    "number of layer types": ("gemma2", {"layer_types": ["full_attention"]}, "layer_types"),
    "heads": ("mixtral", {"num_attention_heads": 0}, "num_attention_heads"),
    "heads that do not divide": ("mixtral", {"num_attention_heads": 3}, "weights"),
    "boolean size": ("mixtral", {"intermediate_size": True}, "intermediate_size"),
    "string size": ("mixtral", {"intermediate_size": "48"}, "intermediate_size"),
    "huge size": ("mixtral", {"intermediate_size": 10**12}, "intermediate_size"),
    "beyond float": ("mixtral", {"initializer_range": 10**400}, "401 digits"),
    "layers": ("mixtral", {"num_hidden_layers": 10**7}, "num_hidden_layers"),
    "experts": ("mixtral", {"num_local_experts": 10**9}, "num_local_experts"),
    "experts of a token": ("mixtral", {"num_experts_per_tok": 10**9}, "num_experts_per_tok"),
    "masks": ("gpt2", {"n_positions": 10**6}, "wpe"),
    "no hidden size": ("mixtral", {"hidden_size": ...}, "hidden_size"),
    "window": ("gemma2", {"sliding_window": -5}, "sliding_window"),
    "layer size list": ("gemma", {"intermediate_size": [48, 48]}, "intermediate_size"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_named(make_foreign: Callable[[str], Path], edit: Edit, name: str) -> None:
    model_type, changes, shown = WRONG[name]
    folder = make_foreign(model_type)
    edit(folder / "llm" / "config.json", **changes)
    with pytest.raises(CheckpointError) as caught:
        answer(folder)
    assert shown in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("token", [-1, 5000, None])
def test_a_padding_token_need_not_exist(make_foreign: Callable[[str], Path], edit: Edit, token: int | None) -> None:
    folder = make_foreign("mixtral")
    edit(folder / "llm" / "config.json", pad_token_id=token)
    assert isinstance(answer(folder), str)


def test_long_rope_of_the_first_phi3(make_foreign: Callable[[str], Path], edit: Edit) -> None:
    """Its first releases wrote "su"; transformers calls it longrope."""
    folder = make_foreign("phi3")
    factors = [1.0, 1.5, 2.0, 2.5]
    edit(
        folder / "llm" / "config.json",
        rope_scaling={"type": "su", "short_factor": factors, "long_factor": factors},
        original_max_position_embeddings=256,
    )
    assert isinstance(answer(folder), str)
