"""What a reply's usage counts, and what it costs."""

import pytest

from server.models import Models, Price
from server.prices import cost, token_counts

MODELS = Models.load()
M = 1_000_000


@pytest.mark.parametrize(
    ("model", "usage", "usd", "uncached"),
    [
        ("claude-opus-5-5", {"input_tokens": M, "output_tokens": M}, 24, 24),
        ("claude-opus-5-5", {"input_tokens": 0, "cache_read_input_tokens": M, "output_tokens": 0}, 0.20, 4),
        ("claude-opus-5-5", {"cache_creation_input_tokens": M}, 5, 4),
        ("claude-opus-5-5", {"cache_creation": {"ephemeral_5m_input_tokens": M}}, 5, 4),
        (
            "claude-opus-5-5",
            {"cache_creation_input_tokens": 3 * M, "cache_creation": {"ephemeral_1h_input_tokens": 2 * M}},
            5 + 2 * 8,
            12,
        ),
        ("claude-opus-5-5", {"input_tokens": M, "output_tokens": M, "speed": "fast"}, 48, 48),
        ("claude-opus-5-5", {"input_tokens": M, "service_tier": "batch"}, 2, 2),
        ("claude-opus-5-5", {"input_tokens": M, "inference_geo": "us"}, 4.4, 4.4),
        ("claude-opus-5-5", {"input_tokens": M, "cache_read_input_tokens": None, "cache_creation": None}, 4, 4),
        ("claude-haiku-5-5", {"input_tokens": 100_000, "output_tokens": M}, 0.01 + 0.5, 0.01 + 0.5),
        ("claude-haiku-5-5", {"input_tokens": 1, "cache_read_input_tokens": 100_000}, 0.0050005, 0.0500005),
        ("claude-fable-5-1", {"input_tokens": 10, "cache_read_input_tokens": M, "output_tokens": 100}, 0.2551, 10.0051),
    ],
)
def test_a_usage_is_priced_as_it_was_and_as_it_would_have_been_without_caching(model, usage, usd, uncached):
    assert cost(MODELS.find(model), usage) == pytest.approx((usd, uncached))


@pytest.mark.parametrize(
    ("used", "fee"),
    [
        (None, 0),
        ("odd", 0),
        ({}, 0),
        ({"web_search_requests": 3, "web_fetch_requests": 2}, 0.03),
        ({"web_search_requests": 3, "code_execution_requests": 0, "odd": "x"}, 0.03),
        ({"web_search_requests": True}, 0),
        ({"web_search_requests": 3, "code_execution_requests": 1}, None),
        ({"of_tomorrow": 1}, None),
    ],
    ids=str,
)
def test_tools_at_claudes_side_cost_their_fee_and_one_without_a_price_is_never_free(used, fee):
    for more, usd in (({}, 4), ({"speed": "fast"}, 8), ({"service_tier": "batch"}, 2)):  # tokens, not fees
        got = cost(MODELS.find("claude-opus-5-5"), {"input_tokens": M, "server_tool_use": used, **more})
        assert got == (None if fee is None else pytest.approx((usd + fee, usd + fee)))


def test_a_model_without_a_known_price_has_no_cost():
    assert cost(MODELS.like("gpt-6"), {"input_tokens": 1}) is None


def test_a_price_band_is_chosen_by_the_whole_prompt():
    haiku = MODELS.find("claude-haiku-5-5")
    assert haiku.price_of(100_000) == Price(input=0.10, output=0.50, write_5m=0.125, write_1h=0.20, read=0.01)
    assert haiku.price_of(100_001) == Price(input=0.50, output=2.50, write_5m=0.625, write_1h=1.00, read=0.05)


def test_cache_writes_that_their_split_alone_tells_are_counted_as_they_are_priced():
    told = {"cache_creation": {"ephemeral_5m_input_tokens": 500, "ephemeral_1h_input_tokens": 70}}
    assert token_counts(told) == token_counts({**told, "cache_creation_input_tokens": 570})
    assert (token_counts(told)["cache_write_5m_tokens"], token_counts(told)["cache_write_1h_tokens"]) == (500, 70)
