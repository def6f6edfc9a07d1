"""Step: pictures that would be refused."""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from server.content import Block, image_digest, images_of, text_block, with_messages
from server.request import ChatRequest
from server.rewrite.context import Context

TAKEN = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}
MOST_BYTES = 5 * 1024 * 1024  # of base64, as it stands in the request
MOST_PIXELS, MOST_PIXELS_AMONG_MANY, MANY = 8_000, 2_000, 20
SHARPEST = 2_576  # pixels on the longer side; what is larger is scaled down upstream before Claude sees it
BOMB = 100_000_000  # pixels in all; more is no picture for a chat, and unpacking it could fill the memory
LOOKED_AT: dict[tuple[int, int], tuple[str, int]] = {}
MOST_LOOKED_AT = 1_000
NOTE = "[A picture stood here. It could not be sent: {}.]"


class Hopeless(Exception):
    """Why a picture cannot be sent, in a few words."""


def fit_images(request: ChatRequest, context: Context) -> ChatRequest:
    """Makes pictures readable for the model: one that says it is a PNG and is a JPEG is called by its name, odd formats
    are saved as PNG or JPEG, too large ones shrunk, and a short note stands in for what cannot be mended, so that one
    picture never bricks a chat."""
    messages = request.body["messages"]
    if not request.has("image") or context.model_of(request) is None:
        return request
    count = sum(1 for _ in images_of(messages))
    refused = {digest for value in context.learned(request, "image") for digest in value.split()}
    pixels = [MOST_PIXELS_AMONG_MANY if count > MANY else MOST_PIXELS]
    pixels += [int(value) for value in context.learned(request, "image_pixels")]
    too_many = count - min([count, *(int(value) for value in context.learned(request, "most_images"))])
    done: list[str] = []
    seen = 0

    def change(block: Block) -> list[Block]:
        nonlocal seen
        if block.get("type") != "image":
            return [block]
        seen += 1
        try:
            if seen <= too_many:
                raise Hopeless("the model takes no more of them" if too_many < count else "the model takes none")
            if refused and image_digest(block) in refused:
                raise Hopeless("Claude refused it before")
            source, what = fitted(block.get("source"), min(pixels))
        except Hopeless as error:
            done.append(f"put a note in the place of a picture ({error})")
            return [text_block(NOTE.format(error))]
        if not what:
            return [block]
        done.append(what)
        return [{**block, "source": source}]

    new = with_messages(messages, change)
    if not done:
        return request
    listed = "; ".join(f"{what}{times(done.count(what))}" for what in dict.fromkeys(done))
    return request.but("fit_images", f"{listed[0].upper()}{listed[1:]}.", messages=new)


def times(count: int) -> str:
    return f" ({count} times)" if count > 1 else ""


def fitted(source: Any, most_pixels: int) -> tuple[dict[str, Any], str]:
    """A picture's source as the API takes it, and what was done to it ("" if nothing). Raises Hopeless."""
    if not isinstance(source, dict):
        raise Hopeless("it has no content")
    address = source.get("url")
    if isinstance(address, str) and address.startswith("data:"):
        source = {"type": "base64", "data": address}
    for kind, name in (("url", "url"), ("file", "file_id")):
        if source.get("type") == kind and isinstance(source.get(name), str):
            new = {"type": kind, name: source[name]}
            return (source, "") if new == source else (new, "mended how a picture was written")
    given = source.get("data")
    if not isinstance(given, str):
        raise Hopeless("it has no content")
    data, media_type, pixels = looked_at(given)
    if media_type and len(data) <= MOST_BYTES and 0 < pixels <= most_pixels:
        new = {"type": "base64", "media_type": media_type, "data": data}
        if new == source:
            return source, ""
        return (
            new,
            f"called a picture by its true type, {media_type}" if data == given else "mended how a picture was written",
        )
    media_type, data = saved_anew(data, most_pixels)
    return {
        "type": "base64",
        "media_type": media_type,
        "data": data,
    }, f"saved a picture anew, at most {most_pixels:,} pixels wide"


def looked_at(given: str) -> tuple[str, str, int]:
    """The picture as plain base64, its media type ("" for one that is not taken) and its longer side in pixels.

    Front ends send the same pictures with every turn, so the answer is kept, by length and Python's own keyed hash.
    Raises Hopeless.
    """
    key = (len(given), hash(given))
    if key in LOOKED_AT:
        return given, *LOOKED_AT[key]
    data, raw = decoded(given)
    kind = kind_of(raw)
    found = TAKEN.get(kind, ""), max(size_of(raw, kind))
    if data is given:
        if len(LOOKED_AT) >= MOST_LOOKED_AT:
            LOOKED_AT.clear()
        LOOKED_AT[key] = found
    return data, *found


def decoded(text: str) -> tuple[str, bytes]:
    """The data as plain base64, and its bytes. Data URLs, line breaks, missing padding and the URL alphabet are
    forgiven. Raises Hopeless."""
    try:
        return text, binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        pass  # most are fine as they are; the others are looked at more closely
    text = re.sub(r"^data:[^,]*,|\s+", "", text).replace("-", "+").replace("_", "/").rstrip("=")
    text += "=" * (-len(text) % 4)
    try:
        return text, binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise Hopeless("its data is damaged") from None


def kind_of(raw: bytes) -> str:
    """The format of a picture by its first bytes; "" for one that Claude does not read."""
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if raw.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if raw.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return "WEBP" if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP" else ""


def size_of(raw: bytes, kind: str) -> tuple[int, int]:
    """Width and height as the first bytes tell; (0, 0) if they do not."""
    try:
        match kind:
            case "PNG":
                return struct.unpack(">II", raw[16:24])
            case "GIF":
                return struct.unpack("<HH", raw[6:10])
            case "JPEG":
                return jpeg_size(raw)
            case "WEBP":
                return webp_size(raw)
    except (struct.error, IndexError):
        pass  # cut off before its size
    return 0, 0


def jpeg_size(raw: bytes) -> tuple[int, int]:
    """The size stands in the frame header, behind segments that each say how long they are."""
    at = 2
    while raw[at] == 0xFF:
        kind = raw[at + 1]
        if kind == 0xFF:
            at += 1
        elif kind == 0x01 or 0xD0 <= kind <= 0xD8:
            at += 2
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", raw[at + 5 : at + 9])
            return width, height
        else:
            at += 2 + max(2, int.from_bytes(raw[at + 2 : at + 4], "big"))
    return 0, 0


def webp_size(raw: bytes) -> tuple[int, int]:
    match raw[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(raw[24:27], "little"), 1 + int.from_bytes(raw[27:30], "little")
        case b"VP8L":
            (bits,) = struct.unpack("<I", raw[21:25])
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", raw[26:30])
    return width & 0x3FFF, height & 0x3FFF


@lru_cache(maxsize=12)  # front ends send the same pictures with every turn, and the prompt cache wants the same bytes
def saved_anew(data: str, most_pixels: int) -> tuple[str, str]:
    """Media type and data of the picture, small enough and in a format that Claude reads. Raises Hopeless."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # its guard only warns below twice the limit; ours stands below
    try:
        with Image.open(io.BytesIO(binascii.a2b_base64(data))) as opened:
            if opened.width * opened.height > BOMB:
                raise Hopeless("it is far too large")
            opened.draft("RGB", (SHARPEST, SHARPEST))
            picture: Image.Image = ImageOps.exif_transpose(opened)
            clear = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
            picture = picture.convert("RGBA" if clear else "RGB")
    except UnidentifiedImageError:
        raise Hopeless("it is no picture Claude can read") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        TypeError,
        IndexError,
        KeyError,
        struct.error,
        MemoryError,
        EOFError,
        OverflowError,
    ):
        raise Hopeless("its data is damaged") from None  # what Pillow's readers raise at broken files
    for side in sides(most_pixels):
        smaller = picture.copy()
        smaller.thumbnail((side, side))
        for form, options in (("PNG", {"optimize": False}), ("JPEG", {"quality": 88}))[0 if clear else 1 :]:
            out = io.BytesIO()
            flat(smaller).save(out, form, **options) if form == "JPEG" else smaller.save(out, form, **options)
            coded = base64.b64encode(out.getvalue()).decode()
            if len(coded) <= MOST_BYTES:
                return TAKEN[form], coded
    raise Hopeless("it is far too large")


def sides(most_pixels: int) -> Iterable[int]:
    side = min(most_pixels, SHARPEST)
    while side >= 64:
        yield side
        side = side * 3 // 4


def flat(picture: Any) -> Any:
    """The picture on white, for a format without transparency."""
    if picture.mode != "RGBA":
        return picture
    from PIL import Image

    ground = Image.new("RGB", picture.size, "white")
    ground.paste(picture, mask=picture.getchannel("A"))
    return ground
