"""server/presets.py, and the persona files that ship."""

import json
import logging
import os
from pathlib import Path

import pytest

from server.cache_helps import NO_HELPS, CacheHelps
from server.errors import ProxyError
from server.presets import LARGEST, NAME, RESERVED, PersonaError, Personas, read_persona

SHIPPED = sorted((Path(__file__).parent.parent / "presets").iterdir())
GARDENER = {"name": "Ruth", "description": "A gardener.", "system": "You are Ruth, who gardens on a roof."}


def write(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps({**GARDENER, **changes}), encoding="utf-8")
    return path


def refusal(personas, name):
    with pytest.raises(ProxyError) as caught:
        personas.get(name)
    assert caught.value.status == 404
    return str(caught.value)


def names(personas):
    return [persona.name for persona in personas.all()]


# The folder, as it changes


def test_personas_are_read_at_the_start_and_named_after_their_files(tmp_path):
    write(tmp_path, "ruth.json", suffix="(Slowly.)", suffix_thinking="(Think of the roof.)", model="claude-opus-5")
    persona = Personas(tmp_path).get("ruth")
    assert (persona.name, persona.title, persona.description) == ("ruth", "Ruth", "A gardener.")
    assert persona.system == "You are Ruth, who gardens on a roof."
    assert (persona.suffix, persona.suffix_thinking) == ("(Slowly.)", "(Think of the roof.)")
    assert (persona.model, persona.settings) == ("claude-opus-5", {})


def test_no_name_is_no_persona(tmp_path):
    assert Personas(tmp_path).get("") is None


def test_a_persona_is_found_in_any_capitals(tmp_path):
    write(tmp_path, "Ruth.json")
    personas = Personas(tmp_path)
    assert personas.get("ruth") is personas.get("RUTH") is not None
    assert names(personas) == ["ruth"]


def test_a_new_file_is_a_new_persona_without_a_restart(tmp_path):
    personas = Personas(tmp_path)
    write(tmp_path, "ruth.json")
    assert personas.get("ruth").title == "Ruth"


def test_a_changed_file_is_read_again(tmp_path):
    write(tmp_path, "ruth.json")
    personas = Personas(tmp_path)
    write(tmp_path, "ruth.json", system="You are Ruth, who has moved to the country.")
    assert personas.get("ruth").system == "You are Ruth, who has moved to the country."


def test_a_file_replaced_by_one_of_the_same_length_and_time_is_read_again(tmp_path):
    old = write(tmp_path, "ruth.json", system="You are Ruth, red.")
    personas = Personas(tmp_path)
    new = write(tmp_path, "new.tmp", system="You are Ruth, tan.")
    os.utime(new, ns=(old.stat().st_atime_ns, old.stat().st_mtime_ns))
    new.replace(old)
    assert personas.get("ruth").system == "You are Ruth, tan."


def test_a_file_changed_in_place_to_the_same_length_is_read_again(tmp_path):
    path = write(tmp_path, "ruth.json", system="You are Ruth, red.")
    personas = Personas(tmp_path)
    earlier = path.stat().st_mtime_ns
    write(tmp_path, "ruth.json", system="You are Ruth, tan.")
    os.utime(path, ns=(earlier, earlier + 1_000_000_000))
    assert personas.get("ruth").system == "You are Ruth, tan."


def test_an_unchanged_file_is_not_read_again(tmp_path):
    write(tmp_path, "ruth.json")
    personas = Personas(tmp_path)
    before = personas.get("ruth")
    write(tmp_path, "hugo.json")
    assert personas.get("ruth") is before


def test_a_deleted_file_takes_its_persona_away(tmp_path):
    path = write(tmp_path, "ruth.json")
    write(tmp_path, "hugo.json")
    personas = Personas(tmp_path)
    path.unlink()
    assert refusal(personas, "ruth").startswith("There is no persona “ruth”. Known personas: hugo.")


def test_a_renamed_file_renames_its_persona(tmp_path):
    path = write(tmp_path, "ruth.json")
    personas = Personas(tmp_path)
    path.rename(tmp_path / "ruthie.json")
    assert names(personas) == ["ruthie"]


def test_other_files_are_left_alone(tmp_path):
    for name in ("notes.txt", "ruth.json.bak", ".ruth.json", "._ruth.json", "ruth"):
        write(tmp_path, name)
    personas = Personas(tmp_path)
    assert (names(personas), personas.problems) == ([], {})


def test_a_folder_that_is_missing_holds_no_personas(tmp_path, caplog):
    personas = Personas(tmp_path / "nowhere")
    assert names(personas) == []
    assert refusal(personas, "ruth").endswith("Known personas: none. Correct the end of the proxy URL.")
    assert len(caplog.records) == 1, "once, not for each request"


def test_while_the_folder_cannot_be_read_the_personas_stay(tmp_path, caplog):
    folder = tmp_path / "presets"
    folder.mkdir()
    write(folder, "ruth.json")
    personas = Personas(folder)
    folder.rename(tmp_path / "elsewhere")
    assert names(personas) == ["ruth"]
    assert personas.get("ruth").title == "Ruth"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    (tmp_path / "elsewhere").rename(folder)
    write(folder, "hugo.json")
    assert names(personas) == ["hugo", "ruth"]


# Unknown names


def test_an_unknown_persona_is_answered_with_the_known_ones(tmp_path):
    write(tmp_path, "ruth.json")
    write(tmp_path, "hugo.json")
    assert refusal(Personas(tmp_path), "nobody") == (
        "There is no persona “nobody”. Known personas: hugo, ruth. Correct the end of the proxy URL."
    )


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..",
        ".",
        "/etc/passwd",
        "..\\secret",
        "%2e%2e%2fsecret",
        "secret.json",
        "a" * 65,
        "se\0cret",
        " ",
        "\n",
    ],
)
def test_a_name_is_never_a_path(tmp_path, name):
    folder = tmp_path / "presets"
    folder.mkdir()
    write(tmp_path, "secret.json")
    write(folder, "ruth.json")
    assert refusal(Personas(folder), name) == (
        "There is no such persona. Known personas: ruth. Correct the end of the proxy URL."
    )


def test_a_path_to_a_persona_in_the_folder_itself_is_no_name_either(tmp_path):
    write(tmp_path, "ruth.json")
    personas = Personas(tmp_path)
    for name in ("ruth.json", "./ruth", "ruth/", f"{tmp_path}/ruth"):
        refusal(personas, name)


# Damaged files


DAMAGED = {
    "empty": (b"", "is not valid JSON"),
    "half": (b'{"name": "Ruth", "sys', "is not valid JSON"),
    "comment": (b'{"system": "x"} // my Ruth', "is not valid JSON"),
    "nan": (b'{"system": "x", "settings": {"temperature": NaN}}', "is not valid JSON"),
    "half an emoji": (b'{"system": "\\ud83d"}', "is not valid JSON"),
    "deep": (b"[" * 5000, "is not valid JSON"),
    "list": (b'["You are Ruth."]', "must hold a JSON object"),
    "typing mistake": (b'{"sistem": "You are Ruth."}', "has an unknown field “sistem”; known are name, settings"),
    "number": (b'{"system": 7}', "must have text in “system”"),
    "null": (b'{"system": "x", "suffix": null}', "must have text in “suffix”"),
    "no words": (b'{"name": "Ruth", "system": " \\n "}', "needs a “system” text"),
    "latin-1": ('{"system": "Rüth"}'.encode("latin-1"), "is not UTF-8 text"),
    "utf-16": ('{"system": "Ruth"}'.encode("utf-16"), "is not UTF-8 text"),
    "settings": (b'{"system": "x", "settings": []}', "may have in “settings” only temperature"),
    "another setting": (b'{"system": "x", "settings": {"stream": true}}', "may have in “settings” only temperature"),
    "too large": (b" " * (LARGEST + 1), "is larger than 1 MB"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_switches_off_its_own_persona_alone(tmp_path, caplog, damage):
    content, why = DAMAGED[damage]
    write(tmp_path, "ruth.json")
    write(tmp_path, "hugo.json")
    personas = Personas(tmp_path)
    (tmp_path / "ruth.json").write_bytes(content)
    message = refusal(personas, "ruth")
    assert message.startswith("The persona “ruth” is switched off: its file ")
    assert why in message
    assert message.endswith(" Mend presets/ruth.json.")
    assert personas.get("hugo").name == "hugo"
    assert names(personas) == ["hugo"]
    assert list(personas.problems) == ["ruth"]
    assert [record.getMessage().startswith("presets/ruth.json ") for record in caplog.records] == [True]


def test_a_mended_file_brings_its_persona_back(tmp_path):
    path = tmp_path / "ruth.json"
    path.write_text("{")
    personas = Personas(tmp_path)
    refusal(personas, "ruth")
    write(tmp_path, "ruth.json")
    assert personas.get("ruth").title == "Ruth"
    assert personas.problems == {}


def test_a_damaged_file_is_reported_once_and_not_with_each_request_or_change(tmp_path, caplog):
    (tmp_path / "ruth.json").write_text("{")
    personas = Personas(tmp_path)
    refusal(personas, "ruth")
    write(tmp_path, "hugo.json")
    personas.all()
    assert len(caplog.records) == 1
    assert "That persona is switched off; the others work." in caplog.text


def test_a_damaged_files_text_is_neither_logged_nor_answered(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "ruth.json").write_text('{"system": "my very own secret garden" "suffix": 1}')
    personas = Personas(tmp_path)
    assert "garden" not in refusal(personas, "ruth") + caplog.text
    assert str(tmp_path) not in refusal(personas, "ruth")


def test_a_byte_order_mark_is_no_damage(tmp_path):
    (tmp_path / "ruth.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(GARDENER).encode())
    assert Personas(tmp_path).get("ruth").title == "Ruth"


def test_a_folder_in_place_of_a_file_is_reported(tmp_path):
    (tmp_path / "ruth.json").mkdir()
    write(tmp_path, "hugo.json")
    personas = Personas(tmp_path)
    assert refusal(personas, "ruth") == (
        "The persona “ruth” is switched off: its file is not a file. Mend presets/ruth.json."
    )
    assert names(personas) == ["hugo"]


@pytest.mark.skipif(os.name == "nt", reason="only on Linux and macOS are links and pipes made by anybody")
def test_a_link_is_followed_and_one_that_leads_nowhere_is_reported(tmp_path):
    folder = tmp_path / "presets"
    folder.mkdir()
    target = write(tmp_path, "my own ruth.txt")
    (folder / "ruth.json").symlink_to(target)
    (folder / "hugo.json").symlink_to(tmp_path / "gone")
    personas = Personas(folder)
    assert names(personas) == ["ruth"]
    assert personas.problems == {"hugo": "is not a file"}
    write(tmp_path, "my own ruth.txt", description="Read again behind its link.")
    assert personas.get("ruth").description == "Read again behind its link."


@pytest.mark.skipif(os.name == "nt", reason="only on Linux and macOS are links and pipes made by anybody")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "ruth.json")
    assert Personas(tmp_path).problems == {"ruth": "is not a file"}


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_file_cannot_take_a_name_of_the_apis_own_addresses(tmp_path, name):
    write(tmp_path, f"{name.capitalize()}.json")
    personas = Personas(tmp_path)
    assert names(personas) == []
    assert "part of the API's own addresses; rename it" in refusal(personas, name)


@pytest.mark.parametrize("stem", ["my ruth", "rüth", "ruth.old", "a" * 65])
def test_a_file_name_that_no_address_can_hold_is_reported(tmp_path, stem):
    write(tmp_path, f"{stem}.json")
    personas = Personas(tmp_path)
    assert names(personas) == []
    assert "rename it, with letters, digits, - and _ only" in personas.problems[stem]


@pytest.mark.skipif(os.name == "nt", reason="only on Linux can a file name be any bytes")
def test_a_file_name_that_is_not_utf_8_can_be_shown(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xfcth.json")).write_text("{}")
    except OSError:
        pytest.skip("only on Linux can a file name be any bytes")
    assert [stem.encode() for stem in Personas(tmp_path).problems] == [b"r?th"]


def test_of_two_names_that_differ_in_capitals_only_the_first_in_the_alphabet_holds(tmp_path):
    stems = [f"ruth{i}" for i in range(8)]
    for stem in stems:
        write(tmp_path, f"{stem}.json", description="The second.")
    if (tmp_path / "RUTH0.json").exists():
        pytest.skip("only on Linux do file names differ by capitals")
    for stem in stems:
        write(tmp_path, f"{stem.upper()}.json", description="The first.")
    personas = Personas(tmp_path)
    assert {persona.description for persona in personas.all()} == {"The first."}
    assert sorted(personas.problems) == stems
    assert "capitals" in personas.problems["ruth0"]
    (tmp_path / "RUTH0.json").unlink()
    assert personas.get("ruth0").description == "The second."
    assert sorted(personas.problems) == stems[1:]


# What a file may say


def test_a_title_is_made_from_the_file_name_where_the_file_has_none():
    assert read_persona("ruth", '{"system": "x"}').title == "Ruth"


def test_name_and_description_are_shown_on_one_line():
    persona = read_persona(
        "ruth", '{"name": " Ruth\\nof the roof ", "description": "A\\n gardener.\\t", "system": "x"}'
    )
    assert (persona.title, persona.description) == ("Ruth of the roof", "A gardener.")


def test_a_text_keeps_its_form_and_a_blank_one_counts_as_absent():
    persona = read_persona("ruth", '{"system": "You are Ruth.\\n\\n  Slowly. ", "suffix": " \\n", "model": " "}')
    assert (persona.system, persona.suffix, persona.model) == ("You are Ruth.\n\n  Slowly. ", "", "")


def test_a_suffix_alone_is_a_persona():
    assert read_persona("brief", '{"suffix": "(Three sentences at most.)"}').system == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 1.0, "top_p": 0.97, "top_k": 0},
        {"max_tokens": 1},
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
        {"stop_sequences": []},
        {"stop_sequences": ["\nRuth:"]},
    ],
    ids=str,
)
def test_settings_are_kept_as_they_are(settings):
    assert read_persona("ruth", json.dumps({"system": "x", "settings": settings})).settings == settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "1"),
        ("temperature", 1.5),
        ("temperature", True),
        ("top_p", -0.1),
        ("top_k", 0.5),
        ("top_k", -1),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_tokens", None),
        ("thinking", "adaptive"),
        ("output_config", []),
        ("stop_sequences", "Ruth:"),
        ("stop_sequences", [7]),
        ("stop_sequences", [" "]),
    ],
)
def test_a_setting_the_api_would_refuse_is_refused_with_the_file(key, value):
    with pytest.raises(PersonaError, match=f"must have .+ in “{key}”"):
        read_persona("ruth", json.dumps({"system": "x", "settings": {key: value}}))


def test_a_persona_may_choose_cache_helps():
    helps = {"cache_steady_window": True, "cache_keepalive_pings": 3}
    assert read_persona("ruth", json.dumps({"system": "x", "helps": helps})).helps == CacheHelps(None, True, 3)
    assert read_persona("ruth", '{"system": "x"}').helps == NO_HELPS
    with pytest.raises(PersonaError, match="has a mistake in “helps”: cache_late_lore must be true, false or null"):
        read_persona("ruth", '{"system": "x", "helps": {"cache_late_lore": "yes"}}')


# The personas that ship


@pytest.fixture(scope="module")
def shipped():
    personas = Personas(SHIPPED[0].parent)
    assert personas.problems == {}
    return {persona.name: persona for persona in personas.all()}


def test_three_personas_ship_and_each_can_be_asked_for(shipped):
    assert len(shipped) == 3
    assert [path.stem for path in SHIPPED] == sorted(shipped)
    assert all(NAME.fullmatch(name) and name == name.lower() for name in shipped)
    assert [persona.title.lower() for persona in shipped.values()] == list(shipped)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
class TestEachShippedFile:
    def texts(self, path):
        return {key: value for key, value in json.loads(path.read_text("utf-8")).items() if isinstance(value, str)}

    def test_its_description_is_one_line_that_fits_the_start_page(self, path):
        description = self.texts(path)["description"]
        assert 30 <= len(description) <= 120
        assert description == " ".join(description.split())

    def test_its_texts_have_a_sane_size(self, path):
        words = {key: len(text.split()) for key, text in self.texts(path).items()}
        assert 300 <= words["system"] <= 700
        assert words.get("suffix", 0) <= 30, "it is paid for at the end of each prompt"
        assert words.get("suffix_thinking", 0) <= 60

    def test_its_texts_are_tidy(self, path):
        for key, text in self.texts(path).items():
            lines = text.split("\n")
            assert [line for line in lines if line != line.strip()] == [], key
            assert "  " not in text, key
            assert "\n\n\n" not in text, key
            assert text.isprintable() or key == "system"
        assert path.read_bytes().endswith(b"}\n")
        assert b"\r" not in path.read_bytes()

    def test_it_holds_no_macro_because_only_a_front_end_fills_those_in(self, path):
        for text in self.texts(path).values():
            assert "{{" not in text
            assert "<user>" not in text.lower()

    def test_it_leaves_model_and_settings_to_the_player(self, path):
        assert set(json.loads(path.read_text("utf-8"))) <= {
            "name",
            "description",
            "system",
            "suffix",
            "suffix_thinking",
        }
