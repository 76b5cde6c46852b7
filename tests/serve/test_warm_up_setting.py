"""The server warms its model up before it is ready, unless told not to."""

import logging

import pytest
from tests.serve.test_engine_process import importable  # noqa: F401  # pyright: ignore[reportUnusedImport]

from vila_core import Vila
from vila_serve.answering.process import EngineProcess, Task
from vila_serve.loading import load_model, loading_task, warm_up
from vila_serve.settings import ServeSettings


@pytest.mark.parametrize(("value", "warms_up"), [(None, True), ("true", True), ("false", False)])
def test_the_setting(monkeypatch: pytest.MonkeyPatch, value: str | None, warms_up: bool) -> None:
    if value is not None:
        monkeypatch.setenv("VILA_WARM_UP", value)
    assert (loading_task(ServeSettings.read()).warm_up is not None) == warms_up


def test_the_log_says_it_and_the_metrics_do_not(caplog: pytest.LogCaptureFixture) -> None:
    model = load_model(ServeSettings(device="cpu", cache_bytes=16 << 20))
    before = model.engine.stats()
    assert before.pages > 0, "the cache is there before"
    with caplog.at_level(logging.INFO, "vila_serve"):
        warm_up(model)
    begin, end = (record.getMessage() for record in caplog.records if record.name.startswith("vila_serve"))
    assert begin == "Warming up on cpu"
    assert end.startswith("Warmed up in ")
    assert model.engine.stats() == before


def warm_up_forever(model: Vila) -> None:
    while True:
        warm_up(model)


def test_a_server_that_is_stopped_while_it_warms_up_ends_at_once() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    task = loading_task(ServeSettings(device="cpu"))
    process = EngineProcess(Task(load=task.load, set_up=task.set_up, warm_up=warm_up_forever))
    with process, pytest.raises(KeyboardInterrupt):
        process.wait_until_ready(warming_up=stop)
    assert process.describe_end() == "The engine's process ended with exit code 0", "it was not killed"
