"""The server warms its model up before it is ready, unless told not to."""

import pytest

from vila_core import Vila
from vila_serve.loading import load_model
from vila_serve.settings import ServeSettings


@pytest.mark.parametrize(("value", "calls"), [(None, 1), ("true", 1), ("false", 0)])
def test_warm_up(monkeypatch: pytest.MonkeyPatch, value: str | None, calls: int) -> None:
    called: list[Vila] = []
    monkeypatch.setattr(Vila, "warm_up", lambda model: called.append(model))
    if value is not None:
        monkeypatch.setenv("VILA_WARM_UP", value)
    model = load_model(ServeSettings.read({"device": "cpu", "cache_bytes": "16777216"}))
    assert called == [model] * calls
    if not calls:
        assert model.engine.stats().pages > 0, "the cache is there all the same"
