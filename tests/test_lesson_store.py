import logging
import sqlite3

import pytest

from server.lesson import Lesson
from server.lesson_store import Lessons
from server.models import Models
from server.rewrite import Context, rewrite
from tests.steps import NOW, asked

ONE = Lesson("sampling", "none", "temperature", "left all samplers out")
UPSTREAM = "https://api.anthropic.com"


@pytest.fixture
def models():
    return Models.load()


@pytest.fixture
def opened(tmp_path, models):
    made = []

    def open_(table=models):
        made.append(Lessons(tmp_path / "data" / "state.sqlite", table, clock=lambda: NOW))
        return made[-1]

    yield open_
    for lessons in made:
        lessons.close()


def test_a_lesson_is_known_at_once_and_after_a_restart(opened):
    lessons = opened()
    assert lessons.of(UPSTREAM) == {}
    lessons.add(UPSTREAM, "claude-opus-6", ONE)
    assert lessons.of(UPSTREAM) == {"claude-opus-6": (ONE,)}
    lessons.close()
    assert opened().of(UPSTREAM) == {"claude-opus-6": (ONE,)}


def test_it_is_about_one_model_of_one_upstream(opened):
    lessons = opened()
    lessons.add(UPSTREAM, "claude-opus-6", ONE)
    assert lessons.of("http://127.0.0.1:9") == {}
    assert "claude-opus-5" not in lessons.of(UPSTREAM)


def test_a_newer_lesson_about_the_same_rule_replaces_the_older(opened):
    lessons = opened()
    for value in ("9000", "8000"):
        lessons.add(UPSTREAM, "claude-opus-6", Lesson("max_tokens", value, "x", "y"))
    lessons.add(UPSTREAM, "claude-opus-6", ONE)
    wanted = (Lesson("max_tokens", "8000", "x", "y"), ONE)
    assert lessons.of(UPSTREAM)["claude-opus-6"] == wanted
    lessons.close()
    assert set(opened().of(UPSTREAM)["claude-opus-6"]) == set(wanted)


def test_what_steps_under_way_were_given_does_not_change(opened):
    lessons = opened()
    lessons.add(UPSTREAM, "claude-opus-6", ONE)
    given = lessons.of(UPSTREAM)
    lessons.add(UPSTREAM, "claude-opus-6", Lesson("prefill", "", "x", "y"))
    assert given == {"claude-opus-6": (ONE,)}


def test_what_holds_for_one_request_is_not_kept(opened):
    lessons = opened()
    lessons.add(UPSTREAM, "claude-opus-6", Lesson("room", "4000", "x", "y", lasting=False))
    assert lessons.of(UPSTREAM) == {}


def test_a_new_table_of_models_makes_them_forgotten(opened, models):
    lessons = opened()
    lessons.add(UPSTREAM, "claude-opus-6", ONE)
    lessons.close()
    assert opened(Models(models.all, version="another")).of(UPSTREAM) == {}
    assert opened().of(UPSTREAM) == {}


def test_without_a_usable_database_they_last_until_the_next_start(tmp_path, opened, caplog):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "state.sqlite").write_bytes(b"this is no database, whatever its name says" * 99)
    with caplog.at_level(logging.WARNING):
        lessons = opened()
    assert "cannot be kept over restarts" in caplog.text
    lessons.add(UPSTREAM, "claude-opus-6", ONE)
    assert lessons.of(UPSTREAM) == {"claude-opus-6": (ONE,)}


def test_a_database_that_others_use_too_is_shared(tmp_path, opened):
    lessons = opened()
    with sqlite3.connect(tmp_path / "data" / "state.sqlite") as other:
        other.execute("CREATE TABLE client_keys (id TEXT)")
    other.close()
    lessons.add(UPSTREAM, "claude-opus-6", ONE)
    lessons.close()
    assert opened().of(UPSTREAM)


def test_the_steps_use_what_was_learned(opened, models):
    lessons = opened()
    lessons.add(UPSTREAM, "claude-opus-4-5", ONE)
    context = Context("api_key", models, lessons=lessons.of(UPSTREAM))
    assert "temperature" not in rewrite(asked("claude-opus-4-5", temperature=0.5), context).body
    assert "temperature" in rewrite(asked("claude-haiku-4-5", temperature=0.5), context).body
