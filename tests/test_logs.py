"""The log's lines: made by a thread of their own, which nothing may end."""

import base64
import io
import logging

from PIL import Image

from server.logs import LinesHandler, Redacting
from tests.pools import python


def record(message, *arguments):
    return logging.LogRecord("server", logging.INFO, "room.py", 7, message, arguments, None)


def test_a_line_that_cannot_be_made_is_told_without_its_words_and_the_next_ones_come(tmp_path):
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as stream:
        handler = LinesHandler(stream, Redacting("%(message)s"))
        handler.emit(record("%d turns", "Once upon a time"))
        handler.emit(record("Signed in with %s", "sk-ant-api03-a-key-of-the-tests-0001"))
        handler.flush(60.0)
    first, *_, last = log.read_text(encoding="utf-8").splitlines()
    assert first == "A line of server could not be made: builtins.TypeError"
    assert last == "Signed in with …0001"
    assert "Once upon" not in log.read_text(encoding="utf-8")


PICTURE = """
import logging, sys
from server.logs import set_up
from server.models import Models
from server.request import ChatRequest
from server.rewrite import Context, rewrite

set_up("DEBUG", sys.stdout)
source = {"type": "base64", "media_type": "image/tiff", "data": sys.argv[1]}
body = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [
    {"role": "user", "content": [{"type": "image", "source": source}]}]}
sent = rewrite(ChatRequest(body), Context("api_key", Models.load()))
logging.getLogger("server.room").debug("sent as %s", sent.body["messages"][0]["content"][0]["source"]["media_type"])
logging.getLogger().handlers[0].flush(60.0)
"""


def test_what_is_written_inside_a_picture_is_in_no_line_at_any_level():
    words, file = Image.Exif(), io.BytesIO()
    words[270] = "our anniversary"  # ImageDescription
    Image.new("RGB", (8, 8)).save(file, "TIFF", exif=words)
    with python(PICTURE, base64.b64encode(file.getvalue()).decode()) as child:
        out, err = child.communicate(timeout=240)
    assert (child.returncode, err) == (0, "")
    assert "DEBUG   sent as image/" in out
    assert "anniversary" not in out
    assert len(out.splitlines()) == 1
