"""/metrics: what it counts, who may read it, and that no name of anybody's is in it."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.cache_why import CacheStory
from server.metrics import Metrics, outcome_of
from server.models import Models
from server.receipt import Receipt, Row
from tests.fakes import error
from tests.running import running

pytestmark = pytest.mark.anyio
MODELS = Models.load()
TOKEN = "a-token-of-the-tests-0001"


def read(text):
    """{(sample, label values…): value}"""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("status", "ended", "outcome"),
    [
        (200, "whole", "whole"),
        (200, "cut", "cut"),
        (200, "error", "failed"),
        (200, "client_left", "client_left"),
        (499, "client_left", "client_left"),
        (429, "error", "refused"),
        (529, "error", "failed"),
        (502, "error", "failed"),
    ],
)
def test_how_a_request_ended_is_one_of_five(status, ended, outcome):
    assert outcome_of(Receipt(at=0.0, status=status, ended=ended)) == outcome


def test_counts_are_those_of_the_receipts():
    metrics = Metrics()
    usage = {"input_tokens": 1000, "output_tokens": 100, "cache_read_input_tokens": 10_000}
    good = Receipt(at=0.0, model="claude-sonnet-4-6", status=200, ended="whole", usage=usage, attempts=3)
    good.duration_ms, good.ttft_ms, good.cache = 1500, 250, CacheStory("hit", 10_000, 0)
    unpriced = Receipt(at=0.0, model="llama", status=200, ended="whole", usage=usage)
    for receipt in (good, unpriced, Receipt(at=0.0, status=429, ended="error")):
        metrics.count(receipt, Row.of(receipt, MODELS))
    found = read(metrics.text(["ready", "ready", "resting"], 2)[0].decode())
    assert found["tavern_requests_total", "chat", "whole"] == 2
    assert found["tavern_requests_total", "chat", "refused"] == 1
    assert found["tavern_requests_total", "ping", "cut"] == 0
    assert found["tavern_tokens_total", "cache_read"] == 20_000
    assert found[("tavern_usd_total",)] == pytest.approx((1000 * 3 + 100 * 15 + 10_000 * 0.3) / 1e6)
    assert found[("tavern_unpriced_total",)] == 1
    assert found[("tavern_retries_total",)] == 2
    assert found["tavern_cache_total", "hit"] == 1
    assert found[("tavern_duration_seconds_sum",)] == 1.5
    assert (found["tavern_accounts", "ready"], found["tavern_accounts", "resting"]) == (2, 1)
    assert found[("tavern_requests_in_progress",)] == 2


async def test_the_running_programs_counts_and_no_name_in_them(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as proxy:
        account = {"kind": "api_key", "name": "account-of-rowan", "api_key": "sk-ant-api03-the-owners-own-key-0002"}
        await proxy.owner("POST", "/api/accounts", json=account)
        key = (await proxy.owner("POST", "/api/keys", json={"name": "key-of-rowan"})).json["key"]
        for model in ("claude-sonnet-4-6", "model-of-rowan"):
            assert (await proxy.ask(headers={"x-api-key": key}, model=model)).status == 200
        anthropic.will(error(400, "invalid_request_error", "No."))
        await proxy.ask(headers={"x-api-key": key})
        told = await proxy.owner("GET", "/metrics")
    assert told.headers["Content-Type"].startswith("text/plain; version=")
    found = read(told.raw.decode())
    assert found["tavern_requests_total", "chat", "whole"] == 2
    assert found["tavern_requests_total", "chat", "refused"] == 1
    assert found["tavern_accounts", "ready"] == 1
    for word in (b"rowan", key.encode(), b"sk-ant", b"127.0.0.1", b"sonnet"):
        assert word not in told.raw


async def test_the_owner_and_the_token_of_the_setting_read_them_and_nobody_else(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url, metrics_token=TOKEN) as proxy:
        key = (await proxy.owner("POST", "/api/keys", json={"name": "tablet"})).json["key"]
        assert (await proxy.owner("GET", "/metrics")).status == 200
        for secret, status in ((TOKEN, 200), (TOKEN + "x", 401), (key, 401), ("pä", 401), ("", 401)):
            headers = {"Authorization": f"Bearer {secret}"}
            assert (await proxy.send("GET", "/metrics", headers=headers)).status == status
        assert (await proxy.send("GET", "/metrics")).status == 401
        assert (await proxy.send("GET", "/api/keys", headers={"Authorization": f"Bearer {TOKEN}"})).status == 401
    async with running(tmp_path, anthropic.url) as proxy:
        assert (await proxy.send("GET", "/metrics", headers={"Authorization": "Bearer "})).status == 401
