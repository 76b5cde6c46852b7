"""Videos of the tests. Each frame shows its index as 4x3 black and white blocks, one per bit."""

import io
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest

from vila_core.errors import MediaError, VilaError
from vila_core.media import MediaLimits, Video


def numbered(index, size=(64, 48)):
    bits = (index >> np.arange(12)) & 1
    return np.asarray(PIL.Image.fromarray((bits.reshape(3, 4) * 255).astype(np.uint8)).resize(size, 0).convert("RGB"))


def draw_video(total=30, *, codec="libx264", format="mp4", size=(64, 48), rate=10, times=None, **options):
    """Encode `total` frames; `times` are their timestamps in milliseconds (default: constant rate)."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options={key: str(value) for key, value in options.items()})
        stream.width, stream.height = size
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8", "jpeg2000": "rgb24"}.get(codec, "yuv420p")
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(total):
            frame = av.VideoFrame.from_ndarray(numbered(index, size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def draw_audio(format="mp4", codec="aac"):
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def seen(frames):
    """The index that each picture shows."""
    blocks = [np.asarray(frame.convert("L").resize((4, 3), PIL.Image.Resampling.BOX)) > 127 for frame in frames]
    return [int((block.reshape(-1) << np.arange(12)).sum()) for block in blocks]


def message(source, *load, limits=None, **options):
    with pytest.raises(MediaError) as error:
        Video(source, **options).load(*(load or (8,)), limits=limits or MediaLimits())
    text = str(error.value)
    assert isinstance(error.value, VilaError)
    assert " object at 0x" not in text, "an error text must not show memory addresses"
    assert len(text) < 500
    return text
