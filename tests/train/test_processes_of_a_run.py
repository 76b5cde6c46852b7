"""What the environment says of the processes of a run, and what it must not say."""

import pytest

from vila_core.errors import ConfigError
from vila_train.parallel.world import join_world, world_size


@pytest.mark.parametrize("size", ["0", "-1", "two", "1.5", ""])
def test_a_wrong_number_of_processes(monkeypatch: pytest.MonkeyPatch, size: str):
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        world_size()


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK is 'first'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "2 processes do not find one another: .*MASTER_ADDR"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "do not find one another: .*MASTER_PORT"),
    ],
)
def test_processes_that_no_launcher_started(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], problem: str):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=problem), join_world("cpu"):
        pass
