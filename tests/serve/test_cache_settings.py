"""The server's settings for the KV cache reach the engine."""

import pytest

from vila_core.errors import ConfigError, VilaWarning
from vila_serve.loading import load_model
from vila_serve.settings import ServeSettings


def test_a_cache_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VILA_KV_CACHE_DTYPE", "fp8")
    settings = ServeSettings.read({"device": "cpu", "cache_bytes": "16777216"})
    model = load_model(settings)
    assert model.engine.config.kv_cache_dtype == "fp8"
    usual = load_model(ServeSettings.read({"device": "cpu", "cache_bytes": "16777216", "kv_cache_dtype": "auto"}))
    assert model.engine.stats().pages > 1.5 * usual.engine.stats().pages


def test_more_context_than_the_model_has() -> None:
    with pytest.warns(VilaWarning, match=r"--max-context is 9,999, but the model's context holds 2,048 tokens"):
        load_model(ServeSettings(device="cpu", cache_bytes=16 << 20, max_context=9_999))


@pytest.mark.parametrize("value", ["int8", "FP8", "16"])
def test_an_unknown_format(value: str) -> None:
    with pytest.raises(ConfigError, match=r"kv.cache.dtype"):
        ServeSettings.read({"kv_cache_dtype": value})
