"""What is refused in images: bytes that are no image, or another kind than they claim, or too large."""

from __future__ import annotations

import binascii
from collections.abc import Mapping

from server.practice.asked import Asked
from server.practice.blocks import images_in
from server.practice.pictures import picture

MOST_BYTES = 5 * 1024 * 1024  # of base64, as it stands in the request
MOST_PIXELS, MOST_PIXELS_AMONG_MANY, MANY_IMAGES = 8_000, 2_000, 20


def images(asked: Asked) -> str | None:
    found = list(images_in(asked.blocks))
    for path, image in found:
        source = image["source"]
        if source["type"] == "base64" and (message := bad_image(source, len(found))):
            return f"{path}.image.source.base64{message}"
    return None


def bad_image(source: Mapping[str, str], how_many: int) -> str | None:
    """What is wrong with an image's bytes, behind its path."""
    if len(source["data"]) > MOST_BYTES:
        return f": image exceeds 5 MB maximum: {len(source['data'])} bytes > {MOST_BYTES} bytes"
    try:
        seen = picture(binascii.a2b_base64(source["data"], strict_mode=True))
    except binascii.Error:
        return ".data: Invalid base64 data"
    if seen is None:
        return ".data: Could not process image"
    if seen.media_type != source["media_type"]:
        return (
            f".data: The image was specified using the {source['media_type']} media type, "
            f"but the image appears to be a {seen.media_type} image"
        )
    if max(seen.width, seen.height) > MOST_PIXELS:
        return f".data: At least one of the image dimensions exceed max allowed size: {MOST_PIXELS} pixels"
    if how_many > MANY_IMAGES and max(seen.width, seen.height) > MOST_PIXELS_AMONG_MANY:
        return (
            ".data: At least one of the image dimensions exceed max allowed size for many-image requests: "
            f"{MOST_PIXELS_AMONG_MANY} pixels"
        )
    return None
