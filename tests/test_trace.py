import json

import pytest

from server.models import Models
from server.trace import TraceRecorder
from tests.fakes import KEY, USAGE, fake_anthropic
from tests.running import running
from util.replay_trace import read_trace

pytestmark = pytest.mark.anyio


async def test_nothing_is_recorded_unless_the_owner_asks(tmp_path):
    async with fake_anthropic() as anthropic, running(tmp_path, anthropic.url) as proxy:
        await proxy.ask(messages=[{"role": "user", "content": "a-secret-of-the-story"}])
    assert not any(b"a-secret-of-the-story" in f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())


async def test_a_recording_is_private_has_no_key_and_can_be_replayed(tmp_path):
    async with fake_anthropic() as anthropic, running(tmp_path, anthropic.url, record_trace=True) as proxy:
        await proxy.ask(messages=[{"role": "user", "content": "Good evening."}], stream=True)
        await proxy.ask(messages=[{"role": "user", "content": "Still there?"}])
        await proxy.ask("/v1/messages/count_tokens")
        await proxy.ask(messages=[])
        page = await proxy.owner("GET", "/")
    assert b"record_trace is on" in page.raw
    (file,) = (tmp_path / "data" / "traces").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["body"]["messages"][0]["content"] for row in rows] == ["Good evening.", "Still there?"]
    assert rows[0]["reply_usage"] == {**USAGE, "output_tokens": 3}
    assert KEY not in file.read_text()
    assert [one.request.model for one in read_trace(file, Models.load())] == ["claude-sonnet-4-6"] * 2


def test_a_folder_that_cannot_be_written_costs_a_line_in_the_log_and_no_request(tmp_path, caplog):
    from server.request import ChatRequest

    (tmp_path / "traces").write_text("in its place")
    recorder = TraceRecorder(tmp_path / "traces")
    for _ in range(3):
        recorder.record(0.0, "/v1/messages", ChatRequest.bare(), {})
    recorder.close()
    assert len(caplog.records) == 1
