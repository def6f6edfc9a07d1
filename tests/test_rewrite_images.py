import base64
import io
import warnings

import pytest
from PIL import Image

from server.content import image_digest
from server.lesson import Lesson
from server.rewrite.images import fit_images, jpeg_size, kind_of, size_of
from tests.shapes import image, noise, picture
from tests.steps import asked, details, knowing, text, user


def sent(*images, lessons=()):
    request = fit_images(asked(messages=[user("Look", *images)]), knowing(lessons=lessons))
    return request, request.body["messages"][0]["content"][1:]


def opened(block):
    return Image.open(io.BytesIO(base64.b64decode(block["source"]["data"])))


def test_good_pictures_pass_as_they_are():
    files = {"type": "image", "source": {"type": "file", "file_id": "file_1"}}
    address = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    kinds = [image(picture(form), f"image/{form.lower()}") for form in ("PNG", "JPEG", "GIF", "WEBP")]
    request = asked(messages=[user("Look", *kinds, files, address)])
    assert fit_images(request, knowing()) is request


def test_a_picture_is_called_by_its_true_type():
    request, [block] = sent(image(picture("JPEG"), "image/png"))
    assert block == image(picture("JPEG"), "image/jpeg")
    assert details(request) == ["Called a picture by its true type, image/jpeg."]


@pytest.mark.parametrize("form", ["BMP", "TIFF", "ICO", "AVIF", "PPM"])
def test_odd_formats_are_saved_anew_with_the_same_size(form):
    _, [block] = sent(image(picture(form, (64, 64))))
    assert block["source"]["media_type"] in ("image/png", "image/jpeg")
    assert opened(block).size == (64, 64)


def test_transparency_is_kept():
    _, [block] = sent(image(picture("TIFF", (64, 48), "RGBA")))
    assert opened(block).mode == "RGBA"


@pytest.mark.parametrize(("count", "side", "most"), [(1, 9_000, 8_000), (1, 2_100, 2_100), (21, 2_100, 2_000)])
def test_large_pictures_are_shrunk_and_the_rule_is_stricter_among_many(count, side, most):
    _, blocks = sent(*[image(picture("PNG", (side, 20), "1"))] * count)
    assert all(max(opened(block).size) <= most for block in blocks)
    assert (blocks[0] == image(picture("PNG", (side, 20), "1"))) == (side <= most)


def test_a_picture_of_more_than_five_megabytes_fits_afterwards():
    heavy = noise(1_500)
    assert len(heavy) > 5 * 1024 * 1024
    _, [block] = sent(image(heavy))
    assert len(block["source"]["data"]) <= 5 * 1024 * 1024
    assert max(opened(block).size) >= 700


def test_the_same_picture_becomes_the_same_bytes_so_that_the_cache_holds():
    first, second = (sent(image(picture("BMP", (90, 40))))[1] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (image("AAAA"), "it is no picture Claude can read"),
        (image("this is no base64!"), "its data is damaged"),
        (image(picture("BMP", (40, 40))[:80]), "its data is damaged"),
        (image(base64.b64encode(b"<svg/>").decode()), "it is no picture Claude can read"),
        ({"type": "image"}, "it has no content"),
        ({"type": "image", "source": {"type": "url"}}, "it has no content"),
    ],
)
def test_a_hopeless_picture_becomes_a_note(block, why):
    request, blocks = sent(block)
    assert blocks == [text(f"[A picture stood here. It could not be sent: {why}.]")]
    assert details(request) == [f"Put a note in the place of a picture ({why})."]


def test_a_bomb_is_not_unpacked():
    out = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(out, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, blocks = sent(image(base64.b64encode(out.getvalue()).decode()))
    assert blocks == [text("[A picture stood here. It could not be sent: it is far too large.]")]


@pytest.mark.parametrize(
    "source",
    [
        {"type": "base64", "media_type": "image/png", "data": "data:image/png;base64," + picture()},
        {"type": "url", "url": "data:image/png;base64," + picture()},
        {"type": "base64", "media_type": "image/png", "data": picture().rstrip("=")},
        {"type": "base64", "media_type": "image/png", "data": picture().replace("+", "-").replace("/", "_") + "\n"},
        {"type": "base64", "data": picture(), "name": "a.png"},
    ],
)
def test_ways_of_writing_a_picture_are_mended(source):
    _, blocks = sent({"type": "image", "source": source})
    assert blocks == [image()]


def test_pictures_inside_tool_results_are_mended_too():
    result = {"type": "tool_result", "tool_use_id": "a", "content": [image("AAAA"), text("x")]}
    _, [block] = sent(result)
    assert [part["type"] for part in block["content"]] == ["text", "text"]


def test_what_claude_refused_before_becomes_a_note_or_is_shrunk():
    block = image(picture("PNG", (300, 200)))
    refused = Lesson("image x", image_digest(block), "", "")
    _, blocks = sent(block, image(), lessons=[refused])
    assert blocks == [text("[A picture stood here. It could not be sent: Claude refused it before.]"), image()]
    _, [smaller] = sent(block, lessons=[Lesson("image_pixels", "150", "", "")])
    assert max(opened(smaller).size) == 150


def test_of_too_many_the_oldest_become_notes():
    few = Lesson("most_images", "1", "", "")
    _, blocks = sent(image(), image(picture("GIF"), "image/gif"), lessons=[few])
    assert blocks == [
        text("[A picture stood here. It could not be sent: the model takes no more of them.]"),
        image(picture("GIF"), "image/gif"),
    ]
    _, [note] = sent(image(), lessons=[Lesson("most_images", "0", "", "")])
    assert note == text("[A picture stood here. It could not be sent: the model takes none.]")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_kind_and_size_are_read_from_the_first_bytes(form):
    raw = base64.b64decode(picture(form, (321, 123)))
    assert kind_of(raw) == form
    assert size_of(raw, form) == (321, 123)
    for cut in range(30):
        assert min(size_of(raw[:cut], form)) >= 0


def test_the_size_of_a_jpeg_is_found_behind_a_thumbnail():
    raw = base64.b64decode(picture("JPEG", (321, 123)))
    thumbnail = b"\xff\xe1" + (2 + len(raw)).to_bytes(2, "big") + raw
    assert jpeg_size(raw[:2] + thumbnail + raw[2:]) == (321, 123)


def test_an_address_with_more_beside_it_goes_alone():
    address = {"type": "url", "url": "https://example.org/a.png"}
    request, (block,) = sent({"type": "image", "source": {**address, "media_type": "image/png"}})
    assert block["source"] == address
    assert details(request) == ["Mended how a picture was written."]
