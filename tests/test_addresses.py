import pytest

from server.addresses import base_of, from_here, is_loopback, own_url, url_problem


@pytest.mark.parametrize("behind", ["", "/", "/v1", "/v1/", "/v1/messages", " "])
def test_an_apis_address_is_understood_with_and_without_what_comes_behind_it(behind):
    assert base_of(f"https://openrouter.ai/api{behind}") == "https://openrouter.ai/api"


@pytest.mark.parametrize(
    "url",
    [
        "http://api.anthropic.com",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://0x7f000001",
        "http://127.1",
        "https://a@b.example",
        "https://api.example?x=1",
        "https://169.254.169.254",
        "https://169.254.169.254.",
        "https://[::ffff:169.254.169.254]",
        "https://[::ffff:a9fe:a9fe]",
        "https://2852039166",
        "https://0xa9fea9fe",
        "https://0xA9.0xFE.0xA9.0xFE",
        "https://0251.0376.0251.0376",
        "https://169.16689662",
        "https://[fe80::1]",
        "https://[febf::1%25eth0]",
        "https://[fd00:ec2:0:0::254]",
        "https://METADATA.google.internal.",
        "ftp://localhost",
        "https://",
        "//api.example",
        "https://api.example\n.evil",
        "http://[::1",
    ],
)
def test_a_credential_is_not_sent_to_an_address_like(url):
    assert url_problem(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.anthropic.com",
        "https://openrouter.ai/api",
        "http://127.0.0.1:8080/x",
        "http://[::1]:1",
        "http://localhost:1",
        "https://10.0.0.7:8443",
        "https://1password.example",
        "https://0x.example",
    ],
)
def test_a_credential_may_be_sent_to_an_address_like(url):
    assert url_problem(url) == ""


def test_names_of_this_computer_are_told_from_look_alikes():
    assert is_loopback("127.0.0.1")
    assert not is_loopback("127.0.0.01")
    assert not is_loopback("127.0.0.256")


@pytest.mark.parametrize(
    ("host", "address", "url"),
    [
        ("", "127.0.0.1", "http://localhost:42069"),
        ("0.0.0.0", "127.0.0.1", "http://localhost:42069"),
        ("localhost", "localhost", "http://localhost:42069"),
        ("127.0.0.1", "127.0.0.1", "http://localhost:42069"),
        ("::", "::1", "http://[::1]:42069"),
        ("::1", "::1", "http://[::1]:42069"),
        ("127.0.0.2", "127.0.0.2", "http://127.0.0.2:42069"),
        ("192.168.1.20", "192.168.1.20", "http://192.168.1.20:42069"),
        ("fd00::7", "fd00::7", "http://[fd00::7]:42069"),
    ],
)
def test_a_server_is_called_where_it_listens(host, address, url):
    assert from_here(host) == address
    assert own_url(host, 42069) == url
