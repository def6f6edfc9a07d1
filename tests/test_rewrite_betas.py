import pytest

from server.lesson import Lesson
from server.rewrite.betas import fit_betas
from tests.steps import asked, details, knowing


def test_values_of_the_past_go_and_all_others_pass():
    betas = ("output-128k-2025-02-19", "context-1m-2025-08-07", "interleaved-thinking-2025-05-14", "candour-2028-01-01")
    sent = fit_betas(asked(betas=betas), knowing())
    assert sent.betas == betas[2:]
    assert details(sent) == ["Left out output-128k-2025-02-19, context-1m-2025-08-07."]


@pytest.mark.parametrize("kind", ["platform", "subscription"])
def test_a_sign_in_token_comes_with_its_beta_once(kind):
    assert fit_betas(asked(), knowing(kind)).betas == ("oauth-2025-04-20",)
    request = asked(betas=("oauth-2025-04-20",))
    assert fit_betas(request, knowing(kind)) is request


def test_refused_and_unreadable_values_go():
    refused = Lesson("beta candour-2028-01-01", "candour-2028-01-01", "", "")
    sent = fit_betas(asked(betas=("candour-2028-01-01", "a b", "ä", "fine-1")), knowing(lessons=[refused]))
    assert sent.betas == ("fine-1",)
    assert "ä" not in str(details(sent))
