"""Images, as far as their first bytes tell: what kind they are, and how large."""

from __future__ import annotations

import struct
from typing import NamedTuple

PIXELS_PER_TOKEN = 750
MAX_TOKENS = 1_600  # larger images are scaled down before Claude sees them


class Picture(NamedTuple):
    media_type: str
    width: int
    height: int

    @property
    def tokens(self) -> int:
        return min(MAX_TOKENS, -(-self.width * self.height // PIXELS_PER_TOKEN))


def picture(data: bytes) -> Picture | None:
    """The kind and size of an image, or None if it is none of the four kinds Claude reads, or broken."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return Picture("image/png", *struct.unpack(">II", data[16:24]))
        if data.startswith((b"GIF87a", b"GIF89a")):
            return Picture("image/gif", *struct.unpack("<HH", data[6:10]))
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return Picture("image/webp", *webp_size(data))
        if data.startswith(b"\xff\xd8\xff"):
            return Picture("image/jpeg", *jpeg_size(data))
    except (struct.error, IndexError):
        pass  # cut short: not an image anybody could read
    return None


def webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack("<I", data[21:25])[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def jpeg_size(data: bytes) -> tuple[int, int]:
    """The size stands in the frame header, behind segments of any length (thumbnails, colour profiles)."""
    at = 2
    while True:
        while data[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker, length = struct.unpack(">xBH", data[at : at + 4])
        if data[at] != 0xFF or length < 2:
            raise IndexError
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + length
