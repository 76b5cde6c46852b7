"""Workers as Ray tasks, for clusters. All nodes must share the file system with the results, the data and the model."""
# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# Ray is an extra.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vila_core.errors import MissingDependencyError
from vila_eval.errors import WorkerError
from vila_eval.running.failures import failure_file, read_failures, remove_failures
from vila_eval.running.workers import Work, work


class RayWorkers:
    """Starts workers on the Ray cluster at RAY_ADDRESS, or on this machine if there is none.

    Raises:
        MissingDependencyError: Ray is not installed.
        WorkerError: the cluster cannot be reached.
    """

    def __init__(self, works: Sequence[Work]):
        self._ray = _import_ray()
        self.root = works[0].root
        remove_failures(self.root)
        self._started_here = not self._ray.is_initialized()
        if self._started_here:
            try:
                self._ray.init(log_to_driver=False, logging_level="warning", configure_logging=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise WorkerError(f"Ray cannot be started: {error}") from error
        has_gpus = self._ray.cluster_resources().get("GPU", 0) > 0 and works[0].model.device != "cpu"
        # A Ray task sees only its own GPU. If there are more workers than GPUs, they take turns.
        remote = self._ray.remote(num_gpus=1 if has_gpus else 0, num_cpus=1, max_retries=0)(work)
        self._tasks = [remote.remote(one) for one in works]

    def check(self) -> bool:
        """Return whether all have ended. Raises `WorkerError` if one has died."""
        ended, running = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        for task in ended:
            try:
                self._ray.get(task)
            except self._ray.exceptions.RayError as error:
                rank = self._tasks.index(task)
                reason = read_failures(self.root).get(failure_file(rank), str(error))
                raise WorkerError(f"Worker {rank} failed on Ray. {reason}") from error
        return not running

    def stop(self) -> None:
        """Cancel workers that are still running."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        if self._started_here:
            self._ray.shutdown()
        remove_failures(self.root)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingDependencyError("ray", "Running on a Ray cluster (--ray)", "vila-eval[ray]") from None
    return ray
