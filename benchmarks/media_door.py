"""What decoding images in the server's processes costs, compared with decoding them in this one.

    python benchmarks/media_door.py

For images of several sizes, as `data:` URIs: milliseconds in this process, through the door, and their difference. The
pixels must be equal.
"""

import asyncio
import base64
import io
import statistics
import time

import numpy as np
import PIL.Image

from vila_core import Image
from vila_serve.media import DecodeLimits, MediaDoor, server_limits

SIZES = ((8, 8), (224, 224), (640, 480), (1920, 1080), (4000, 3000))
ROUNDS = 15


def photo(width: int, height: int) -> str:
    """Return a noisy JPEG as a `data:` URI."""
    values = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).resize((width, height), PIL.Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


async def measure(door: MediaDoor, uri: str) -> tuple[float, float]:
    """Return the median seconds in this process and through the door, alternating."""
    here: list[float] = []
    there: list[float] = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        expected = Image(uri).load()
        middle = time.perf_counter()
        opened = await door.open_image(uri)
        end = time.perf_counter()
        here.append(middle - begin)
        there.append(end - middle)
        assert np.array_equal(np.asarray(opened.load()), np.asarray(expected))
    return statistics.median(here), statistics.median(there)


async def main() -> None:
    door = MediaDoor(server_limits(), num_frames=8, decoding=DecodeLimits(workers=2))
    door.start()
    await asyncio.gather(*(door.open_image(photo(8, 8)) for _ in range(4)))  # waits until the processes are ready
    print(f"{'pixels':>12} {'here, ms':>10} {'door, ms':>10} {'more, ms':>10} {'ratio':>7}")
    for width, height in SIZES:
        here, there = await measure(door, photo(width, height))
        size, more = f"{width}x{height}", 1e3 * (there - here)
        print(f"{size:>12} {1e3 * here:>10.2f} {1e3 * there:>10.2f} {more:>10.2f} {there / here:>7.2f}")
    door.close()


if __name__ == "__main__":
    asyncio.run(main())
