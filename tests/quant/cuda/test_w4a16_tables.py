"""The tables that pick a W4A16 kernel: shipped ones, and those tuned on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton")

from vila_core.errors import VilaError, VilaWarning
from vila_quant.kernels.cuda.w4a16 import tables
from vila_quant.kernels.cuda.w4a16.decode import DecodeConfig
from vila_quant.kernels.cuda.w4a16.panels import PanelConfig
from vila_quant.kernels.cuda.w4a16.tables import Entry, Table, tuned_file
from vila_quant.kernels.cuda.w4a16.tiles import TileConfig
from vila_quant.kernels.cuda.w4a16.warpgroups import WarpgroupConfig, is_supported

GPUS = ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GeForce RTX 4090", "Orin")
GPU = "NVIDIA GeForce RTX 4090"
DECODE = {"tokens": 1, "outputs": 64, "inputs": 128, "kernel": "decode", "config": {"tiles": 1}}
TILES = DECODE | {"tokens": 64, "kernel": "tiles", "config": {"block_n": 64}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder; where the table of `GPU` goes."""
    monkeypatch.setenv("VILA_QUANT_CACHE", str(tmp_path))
    tables.tuned.cache_clear()
    path = tuned_file(GPU)
    path.parent.mkdir()
    yield path
    tables.tuned.cache_clear()


def test_a_table_gives_the_nearest_shape(tmp_path: Path) -> None:
    few, many, wide = DecodeConfig(), TileConfig(), DecodeConfig(tiles=2)
    entries = (
        Entry(1, 100, 100, few),
        Entry(64, 100, 100, many),
        Entry(1, 9000, 100, wide),
        Entry(64, 9000, 100, many),
    )
    Table("A GPU", entries).write(tmp_path / "table.json")
    table = Table.read(tmp_path / "table.json")
    assert table.entries == entries
    assert table.choose(1, 200, 100) == few
    assert table.choose(1, 8000, 128) == wide
    assert table.choose(2, 8000, 100) == many
    assert table.choose(10**6, 100, 100) == many


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("has_warpgroups", [True, False])
def test_every_gpu_has_a_kernel_for_any_number_of_tokens(name: str, has_warpgroups: bool) -> None:
    def runs(config: tables.Config) -> bool:
        return has_warpgroups or not isinstance(config, WarpgroupConfig)

    for shape in ((4096, 4096), (2560, 2048), (37888, 3584), (3584, 18944)):
        for tokens in (1, 3, 16):
            assert isinstance(tables.choose(name, tokens, *shape, runs), DecodeConfig)
        for tokens in (17, 64, 200, 256, 1024, 1025, 10**5):
            config = tables.choose(name, tokens, *shape, runs)
            assert not isinstance(config, DecodeConfig)
            assert runs(config)


def test_the_kernel_of_hopper_is_chosen_on_hopper_only() -> None:
    assert isinstance(tables.choose("NVIDIA H100 80GB HBM3", 1024, 37888, 3584), WarpgroupConfig)
    for capability in ((8, 0), (8, 6), (8, 7), (8, 9), (10, 0), (12, 0)):
        assert not is_supported(capability)


def test_a_table_tuned_here_counts_for_its_shapes(cache: Path) -> None:
    mine, many = DecodeConfig(tiles=2, warps=4), PanelConfig(64)
    Table(GPU, (Entry(16, 512, 256, mine), Entry(17, 512, 256, many))).write(cache)
    assert tables.choose(GPU, 1, 512, 256) == mine
    assert tables.choose(GPU, 1000, 512, 256) == many
    assert tables.choose(GPU, 1, 4096, 4096) == mine, "nothing better is known of this GPU"
    assert tables.choose("NVIDIA H200", 1, 512, 256) != mine


def test_a_shipped_table_counts_for_shapes_that_were_not_tuned_here(cache: Path) -> None:
    mine = DecodeConfig(tiles=2, warps=4, slots=3)
    path = tuned_file("NVIDIA H200")
    Table("NVIDIA H200", (Entry(16, 512, 256, mine), Entry(17, 512, 256, PanelConfig()))).write(path)
    assert tables.choose("NVIDIA H200", 1, 512, 256) == mine
    assert tables.choose("NVIDIA H200", 1, 3584, 3584) == tables.shipped("NVIDIA H200").choose(1, 3584, 3584)


def test_each_gpu_has_a_file_of_its_own(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    files = {tuned_file(name, environment) for name in GPUS}
    assert len(files) == len(GPUS)
    assert tuned_file("NVIDIA H100 PCIe/../x", environment).parent == tmp_path / "vila-quant" / "w4a16"
    assert tuned_file(GPU, environment | {"VILA_QUANT_CACHE": "/there"}).is_relative_to("/there")
    assert tuned_file(GPU, {"XDG_CACHE_HOME": ""}).is_relative_to(Path("~/.cache").expanduser())


BROKEN = {
    "empty": "",
    "cut short": '{"gpu": "NVIDIA',
    "zeros": "\0" * 100,
    "not JSON": "<html>",
    "a list": "[]",
    "no entries": json.dumps({"gpu": GPU}),
    "empty entries": json.dumps({"gpu": GPU, "entries": []}),
    "entries are numbers": json.dumps({"gpu": GPU, "entries": [1, 2]}),
    "gpu is a number": json.dumps({"gpu": 4090, "entries": [DECODE, TILES]}),
    "another GPU": json.dumps({"gpu": "NVIDIA GeForce RTX 3090", "entries": [DECODE, TILES]}),
    "unknown kernel": json.dumps({"gpu": GPU, "entries": [DECODE, TILES | {"kernel": "marlin"}]}),
    "kernel is a list": json.dumps({"gpu": GPU, "entries": [DECODE, TILES | {"kernel": []}]}),
    "unknown setting": json.dumps({"gpu": GPU, "entries": [DECODE | {"config": {"tile": 1}}, TILES]}),
    "setting out of range": json.dumps({"gpu": GPU, "entries": [DECODE | {"config": {"warps": 3}}, TILES]}),
    "setting is a word": json.dumps({"gpu": GPU, "entries": [DECODE | {"config": {"warps": "8"}}, TILES]}),
    "setting is true": json.dumps({"gpu": GPU, "entries": [DECODE | {"config": {"warps": True}}, TILES]}),
    "even stages": json.dumps(
        {"gpu": GPU, "entries": [DECODE, TILES | {"kernel": "warpgroups", "config": {"stages": 4}}]}
    ),
    "missing key": json.dumps({"gpu": GPU, "entries": [DECODE, {"tokens": 64}]}),
    "negative tokens": json.dumps({"gpu": GPU, "entries": [DECODE | {"tokens": -1}, TILES]}),
    "huge": json.dumps({"gpu": GPU, "entries": [DECODE | {"tokens": 1.5}, TILES]}),
    "decode for many tokens": json.dumps({"gpu": GPU, "entries": [DECODE | {"tokens": 64}]}),
    "few tokens only": json.dumps({"gpu": GPU, "entries": [DECODE]}),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_table_is_reported_once_and_passed_over(cache: Path, text: str) -> None:
    cache.write_text(text)
    expected = tables.shipped(GPU).choose(1, 64, 128)
    with pytest.warns(VilaWarning, match="vila-quant tune") as caught:
        assert [tables.choose(GPU, tokens, 64, 128) for tokens in (1, 2)] == [expected, expected]
    assert len(caught) == 1
    assert str(cache) in str(caught[0].message)


def test_a_folder_in_place_of_the_table_is_reported(cache: Path) -> None:
    cache.mkdir()
    with pytest.warns(VilaWarning, match="vila-quant tune"):
        assert tables.choose(GPU, 1, 64, 128) == tables.shipped(GPU).choose(1, 64, 128)


@pytest.mark.parametrize("path", sorted(tables.SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_tables_are_valid(path: Path) -> None:
    table = Table.read(path)
    again = path.parent / path.name
    assert Table.read(again) == table
    assert len({entry.tokens for entry in table.entries}) > 3


def test_an_error_says_which_entry_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"gpu": GPU, "entries": [DECODE, TILES | {"config": {"block_n": 100}}]}))
    with pytest.raises(VilaError, match=r"mine.json, entry 1: the kernel tiles has no block_n 100"):
        Table.read(path)
