import pytest

from server.secret import bearer, presented, same, struck


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", ""), ("abc", ""), ("", ""), ("Bearer", "")],
)
def test_the_token_is_read_from_a_bearer_header(header, token):
    assert bearer(header) == token


def test_tokens_are_compared_as_bytes_whatever_they_hold():
    assert same("abc", "abc")
    assert not same("ä", "abc")
    assert not same("\udce4", "abc")
    assert not same("", "abc")


def test_the_key_header_goes_before_the_bearer_token():
    assert presented({"x-api-key": " one ", "authorization": "Bearer two"}) == ["one", "two"]
    assert presented({"x-api-key": "", "authorization": "Basic two"}) == []


def test_a_secret_that_a_text_repeats_is_struck_but_for_its_end():
    assert struck("no key a-long-secret-1234, a-long-secret-1234!", "a-long-secret-1234") == "no key …1234, …1234!"
    assert struck("nothing", "a-long-secret-1234") == "nothing"
