"""How much memory is left, and what the engine says if its KV cache does not fit."""

from pathlib import Path

import pytest
import torch

import vila_core as vila
from vila_core import device_memory
from vila_core.device_memory import free_bytes, is_out_of_memory, left_in_container
from vila_core.engine import memory, paged_runner
from vila_core.errors import GenerationError

CPU = torch.device("cpu")
MIB = 2**20


def container(folder: Path, limit: str, used: int, files: int) -> Path:
    """Write the files by which Linux describes a control group."""
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nactive_file {files // 2}\ninactive_file {files - files // 2}\n")
    return folder


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of files that were read, such as a checkpoint's, makes room when it is needed."""
    assert left_in_container(container(tmp_path, str(100 * MIB), 70 * MIB, 20 * MIB)) == 50 * MIB
    monkeypatch.setattr(device_memory, "CONTAINER", tmp_path)
    assert free_bytes(CPU) == 50 * MIB
    assert left_in_container(container(tmp_path, str(100 * MIB), 120 * MIB, 0)) == 0
    assert left_in_container(container(tmp_path, "max", 70 * MIB, 0)) is None
    assert left_in_container(tmp_path / "missing") is None


def test_a_failed_allocation_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))  # of pinned memory
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def error_of(engine: vila.EngineConfig) -> str:
    with pytest.raises(GenerationError) as raised:
        vila.load("vila-tiny", device="cpu", engine=engine).generate("Hello", max_new_tokens=1)
    return str(raised.value)


def test_a_cache_that_does_not_fit_names_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = vila.load("vila-tiny", device="cpu").network.llm
    page = memory.page_bytes(decoder, vila.EngineConfig())  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * page)
    message = error_of(vila.EngineConfig(cache_bytes=20 * page, max_batch=4))
    assert message.startswith("There is too little memory for a KV cache of 1,280 tokens: it takes ")
    assert "There is room for 640 tokens: one request with a context of 640 (--max-context), or 4 at a time " in message
    assert f"(--max-batch) of 160. Set cache_bytes (--cache-bytes) to at most {10 * page:,}, or use" in message
    fits = vila.load("vila-tiny", device="cpu", engine=vila.EngineConfig(cache_bytes=10 * page))
    assert fits.generate("Hello", max_new_tokens=1)
    assert fits.engine.stats().pages == 10


def test_no_memory_at_all_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    message = error_of(vila.EngineConfig())
    assert "KV cache of 64 tokens" in message
    assert "cpu has 0 MiB free. Free memory, or use a smaller or quantized model" in message


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), MemoryError(), RuntimeError("DefaultCPUAllocator: x")])
def test_an_allocation_that_fails_says_so(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free memory is unknown, or another program has taken it meanwhile."""

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(paged_runner, "new_pages", fail)
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    message = error_of(vila.EngineConfig())
    assert message.startswith("There is too little memory for a KV cache of ")
    assert message.endswith(" Free memory, or use a smaller or quantized model (vila-quant awq).")


def test_another_failure_of_the_cache_is_not_called_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(paged_runner, "new_pages", fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        vila.load("vila-tiny", device="cpu").generate("Hello", max_new_tokens=1)
