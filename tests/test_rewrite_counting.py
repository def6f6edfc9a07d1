from server.rewrite.counting import fit_counting
from tests.steps import asked, knowing


def test_fields_for_writing_a_reply_leave_requests_that_only_count():
    sent = fit_counting(asked(counting=True, stream=True, temperature=1, system="Be kind."), knowing())
    assert sent.body.keys() == {"model", "messages", "system"}
    request = asked(stream=True)
    assert fit_counting(request, knowing()) is request
