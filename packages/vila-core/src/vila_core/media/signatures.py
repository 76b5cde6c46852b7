"""File types by the first bytes, because file names are often missing or wrong."""

import re
from typing import Literal

Kind = Literal["Image", "Video"]

HEAD_BYTES = 256
"""How many of its first bytes tell what a file is: MPEG transport streams show it in their second packet."""

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".webm", ".avi", ".divx"),
    *(".mpg", ".mpeg", ".mpe", ".m2v", ".vob", ".ts", ".mts", ".m2t", ".m2ts", ".flv", ".ogv", ".ogm"),
    *(".wmv", ".asf", ".mxf", ".y4m", ".nut", ".ivf", ".rm", ".rmvb", ".dv"),
)

# Brands of the ISO base media format (ISO/IEC 14496-12) for pictures; all others are videos or sound.
_PICTURE_BRANDS = rb"avif|avis|avio|hei[cfmsx]|hev[cmsx]|mif1|mif2|msf1|miaf|MA1[AB]|jpe[gs]"
_AUDIO_BRANDS = rb"M4A |M4B |M4P |F4A |F4B "
_AUDIO = rb"ID3|RIFF.{4}WAVE|fLaC|\xff[\xfb\xf3\xf1\xf9]|.{4}ftyp(?:" + _AUDIO_BRANDS + rb")"
_IMAGE = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|BM.{4}\x00\x00|II[*+]\x00|MM\x00[*+]|RIFF.{4}WEBP|P[1-6]\s|"
    rb".{4}ftyp(?:" + _PICTURE_BRANDS + rb")",
    re.DOTALL,
)
_VIDEO = re.compile(
    rb".{4}ftyp(?!"
    + _AUDIO_BRANDS
    + rb")|.{4}(?:moov|mdat|wide|free|skip)|\x1aE\xdf\xa3|RIFF.{4}AVI |\x00\x00\x01[\xba\xb3]|"
    rb"FLV\x01|OggS|0&\xb2u\x8ef\xcf\x11|\x06\x0e\x2b\x34|YUV4MPEG2|\.RMF|DKIF|nut/multimedia|"
    rb"G.{187}G|.{4}G.{191}G",
    re.DOTALL,
)
# First bytes of files that people use by mistake, for better messages.
_OTHERS = (
    (
        re.compile(rb"ID3|RIFF.{4}WAVE|fLaC|\xff[\xfb\xf3\xf1\xf9]|.{4}ftyp(?:" + _AUDIO_BRANDS + rb")", re.DOTALL),
        "an audio file",
    ),
    (re.compile(rb"\s*(?:<!doctype html|<html)", re.IGNORECASE), "a web page"),
    (re.compile(rb"\s*(?:<\?xml|<svg)", re.IGNORECASE), "XML or SVG"),
    (re.compile(rb"%PDF"), "a PDF document"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|BZh"), "an archive"),
    (re.compile(rb"#EXTM3U|ffconcat"), "a playlist"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer (run: git lfs pull)"),
    (re.compile(rb"[\t\n\r\x20-\x7e]{16}"), "text"),
)


def kind_of(head: bytes) -> Kind | None:
    """Return what the first `HEAD_BYTES` bytes of a file show it to be; None if it is neither an image nor a video.

    An animation (GIF, APNG, WebP, AVIF) is an image: its first frame.
    """
    if _IMAGE.match(head):
        return "Image"
    return "Video" if _VIDEO.match(head) else None


def is_heif(head: bytes) -> bool:
    """Return whether a file is an HEIC image, which Pillow does not read. AVIF has the same container."""
    return bool(re.match(rb".{4}ftyp(?:hei|hev)", head, re.DOTALL))


def is_avif(head: bytes) -> bool:
    """Return whether a file may be an AVIF image: `mif1` and `msf1` are brands of both AVIF and HEIC."""
    return bool(re.match(rb".{4}ftyp(?:avi[fso]|mi[af]f?\w|msf1|MA1)", head, re.DOTALL)) and not is_heif(head)


def describe_content(head: bytes, kind: Kind) -> str:
    """Return a sentence on what the first bytes of a file look like, if that is another kind than expected."""
    found = kind_of(head)
    if found is not None and found != kind:
        return f"It looks like {'a picture: use Image' if found == 'Image' else 'a video: use Video'}. "
    names = (name for pattern, name in _OTHERS if found is None and pattern.match(head))
    return next((f"It looks like {name}. " for name in names), "")
