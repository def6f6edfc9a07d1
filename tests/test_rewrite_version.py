import pytest

from server.lesson import Lesson
from server.rewrite.version import fit_version
from tests.steps import asked, knowing, text, user


@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21", "2027-03-01"])
def test_real_versions_and_those_to_come_pass(version):
    request = asked(version=version)
    assert fit_version(request, knowing()) is request


@pytest.mark.parametrize("version", ["2023-06-02", "2024-10-22", "v1", "vertex-2023-10-16", "2022-01-01"])
def test_a_version_that_never_was_becomes_the_classic_one(version):
    assert fit_version(asked(version=version), knowing()).version == "2023-06-01"


def test_a_refused_version_is_not_spoken_again():
    taught = Lesson("version", "2023-06-01", "version 2027-03-01", "spoke version 2023-06-01")
    assert fit_version(asked(version="2027-03-01"), knowing(lessons=[taught])).version == "2023-06-01"


def test_citations_leave_the_users_texts_under_the_newest_version_alone():
    cited = text("Hi", citations=[{"type": "char_location"}])
    request = asked(version="2026-10-21", messages=[user(cited, text("Ho", citations=[]))])
    assert fit_version(request, knowing()).body["messages"] == [user("Hi", text("Ho", citations=[]))]
    assert fit_version(asked(messages=[user(cited)]), knowing()).changes == ()
