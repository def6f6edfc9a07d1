from pathlib import Path

import pytest

from server.config import CONFIG_FILE, Config, ConfigError, config_text, with_value


@pytest.fixture
def load(tmp_path):
    def load(text="", env="", environ=None):
        (tmp_path / "config.txt").write_text(text, encoding="utf-8")
        (tmp_path / ".env").write_text(env, encoding="utf-8")
        return Config.load(tmp_path / "config.txt", tmp_path / ".env", environ or {})

    return load


def refusal(load, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def test_the_defaults_are_those_of_the_contract(load):
    config = load()
    assert (config.port, config.host, config.data_dir) == (42069, "", Path("~/.claude-code-proxy"))
    assert config.required_system_line == "You are Claude Code, Anthropic's official CLI for Claude."
    assert config.api_base_url == "https://api.anthropic.com"
    assert config.fallback_to_claude_code == config.filter_sampling_params.replace("auto", "ask") == "ask"


def test_the_shipped_file_holds_every_setting_at_its_default_with_its_meaning():
    assert CONFIG_FILE.read_text(encoding="utf-8") == config_text()
    assert Config.load(CONFIG_FILE, Path("no-such.env"), {}) == Config()


def test_the_environment_beats_dotenv_beats_the_file(load):
    text, env = "port=1001\nhost=127.0.0.2\nlog_level=ERROR", "PROXY_PORT=1002\nPROXY_HOST=127.0.0.3"
    config = load(text, env, {"PROXY_PORT": "1003", "HOME": "/"})
    assert (config.port, config.host, config.log_level) == (1003, "127.0.0.3", "ERROR")


def test_the_apis_address_may_end_in_v1(load):
    assert load("api_base_url=https://api.anthropic.com/v1/").api_base_url == "https://api.anthropic.com"


def test_comments_blanks_and_signs_in_values_are_read_as_meant(load):
    text = "# head\n\nport = 5000   # the port\nrequired_system_line=It's a line, isn't it?  # yes\n"
    config = load(text + "allowed_hosts=a.local, b.local")
    assert (config.port, config.allowed_hosts) == (5000, ("a.local", "b.local"))
    assert config.required_system_line == "It's a line, isn't it?"


def test_a_file_saved_by_notepad_is_read(tmp_path):
    path = tmp_path / "config.txt"
    path.write_bytes(b"\xef\xbb\xbfport=5000\r\nhost=\r\n")
    assert Config.load(path, tmp_path / ".env", {}).port == 5000


def test_foreign_keys_in_dotenv_are_left_alone(load):
    assert load("", "COMPOSE_PROJECT=x\nPROXY_PORT=5000").port == 5000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot=1", "config.txt, line 1: there is no setting “prot”. Did you mean “port”?"),
        ("\n# hi\nport=many", "config.txt, line 3: port must be a whole number, not “many”"),
        ("port=70000", "config.txt, line 1: port must be between"),
        ("practice=yes", "config.txt, line 1: practice must be true or false, not “yes”"),
        ("log_level=LOUD", "config.txt, line 1: log_level must be one of DEBUG, INFO, WARNING, ERROR"),
        ("fallback_to_claude_code=maybe", "must be one of ask, true, false"),
        ("just words", "config.txt, line 1: expected key=value"),
        ("port=1\nport=2", "config.txt, line 2: port is set twice"),
        ("api_base_url=http://api.example.com", "must begin with https://"),
        ("api_base_url=https://user@api.example.com", "without user name"),
        ("oauth_token_url=nonsense", "is not a web address"),
        ("allowed_origins=risuai.xyz", "must look like https://name"),
        ("allowed_hosts=http://my-pc.local", "must be a bare name"),
        ("cache_keepalive_pings=-1", "must be between 0 and 100"),
        ("books_days=0", "must be between 1 and 10000"),
        ("books_days=999999", "config.txt, line 1: books_days must be between 1 and 10000"),
        ("data_dir=", "config.txt, line 1: data_dir must be the name of a folder"),
        ("data_dir=~no-such-user/proxy", "config.txt, line 1: data_dir begins with the home folder of a user"),
        ("claude_config_dir=~no-such-user", "claude_config_dir begins with the home folder of a user"),
        (
            "\nskip_steps=fit_sampling,fit_smapling",
            "config.txt, line 2: skip_steps is a list of steps, and there is no",
        ),
        ("metrics_token=short", "must have at least 16 characters"),
        ("account_choice=random", "must be one of sticky, priority, round_robin"),
    ],
)
def test_a_mistake_stops_the_start_with_file_line_and_remedy(load, text, words):
    assert words in refusal(load, text)


def test_a_mistake_in_the_environment_names_the_variable(load):
    assert refusal(load, environ={"PROXY_PORTS": "1"}).startswith(
        "environment variable PROXY_PORTS: there is no setting"
    )
    assert refusal(load, environ={"PROXY_PORT": "x"}).startswith("environment variable PROXY_PORT: port must be")


def test_a_file_that_cannot_be_read_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "config.txt"
    path.write_bytes(b"port=\xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.txt cannot be read: is not UTF-8 text"):
        Config.load(path, tmp_path / ".env", {})
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.load(path, tmp_path / ".env", {})


@pytest.mark.parametrize("host", ["", "localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_is_not_beyond_loopback(host):
    assert not Config(host=host).listens_beyond_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my-pc.local", "127.evil.example"])
def test_everything_else_is_beyond_loopback(host):
    assert Config(host=host).listens_beyond_loopback


SHIPPED = config_text()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", "5000"),
        ("host", "0.0.0.0"),
        ("required_system_line", "It's a line, isn't it?"),
        ("required_system_line", ""),
        ("cache_planner", "false"),
        ("allowed_hosts", "a.local, b.local"),
    ],
)
def test_a_value_is_put_into_config_txt_and_all_else_stays(key, value):
    written = with_value(SHIPPED, key, value)
    before, after = SHIPPED.splitlines(), written.splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) <= 1
    for old, new in changed:
        assert new.startswith(f"{key}={value}")
        assert new.partition("  # ")[2] == old.partition("  # ")[2]


def test_a_setting_that_has_no_line_gets_one():
    assert with_value("port=1  # mine", "log_level", "DEBUG") == "port=1  # mine\nlog_level=DEBUG\n"
    assert with_value("", "port", "5") == "port=5\n"


def test_the_ends_of_lines_and_the_owners_own_notes_stay():
    text = "# mine\r\nport = 5000   # my port\r\n# port=7\r\n"
    assert with_value(text, "port", "6000") == "# mine\r\nport = 6000   # my port\r\n# port=7\r\n"


@pytest.mark.parametrize("value", ["a # b", "'quoted'", '"quoted"', "two\nlines", "a\rb", "nul\0"])
def test_what_would_not_be_read_back_as_meant_is_refused(value):
    with pytest.raises(ValueError, match=r"must be on one line|signs that mean something else"):
        with_value(SHIPPED, "default_model", value)


def test_a_key_that_is_only_part_of_another_is_left_alone():
    assert with_value("my_port=1\nport=2\n", "port", "3") == "my_port=1\nport=3\n"
