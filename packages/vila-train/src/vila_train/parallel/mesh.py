"""The device mesh: `dp` ranks read different rows, `ring` and `ulysses` ranks will share a sequence."""

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vila_core.errors import ConfigError
from vila_train.config import ComputeConfig
from vila_train.parallel.world import World

DIMENSIONS = ("dp", "ring", "ulysses")


def mesh_shape(world_size: int, compute: ComputeConfig) -> tuple[int, int, int]:
    """Return the sizes of the mesh's dimensions.

    Raises:
        ConfigError: the ranks that share a sequence do not divide the number of ranks.
    """
    shared = compute.ring * compute.ulysses
    if world_size % shared:
        raise ConfigError(
            f"There are {world_size} ranks, but ring x ulysses = {compute.ring} x {compute.ulysses} share a sequence. "
            f"Use {shared}, {2 * shared}, {3 * shared}, … ranks."
        )
    return world_size // shared, compute.ring, compute.ulysses


def make_mesh(world: World, compute: ComputeConfig) -> DeviceMesh:
    """Return the mesh of all ranks. Raises `ConfigError` as `mesh_shape` does."""
    return init_device_mesh(world.device.type, mesh_shape(world.size, compute), mesh_dim_names=DIMENSIONS)


def require_divisible(world_size: int, rows_per_step: int, lanes: int) -> None:
    """Raise `ConfigError` unless every rank gets equally many rows of a step, and whole lanes."""
    if rows_per_step % world_size == 0 and lanes % world_size == 0:
        return
    working = [size for size in range(1, min(rows_per_step, lanes) + 1) if rows_per_step % size == lanes % size == 0]
    raise ConfigError(
        f"{world_size} ranks cannot share {rows_per_step} rows per step from {lanes} lanes equally. "
        f"Numbers of ranks that work: {', '.join(map(str, working))}. For others, start a new run with other "
        "data.rows_per_step and data.lanes."
    )
