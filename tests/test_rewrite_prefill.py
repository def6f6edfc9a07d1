import pytest

from server.rewrite.prefill import fit_prefill, is_opening
from tests.shapes import LONG_REPLY
from tests.steps import HELLO, asked, assistant, details, knowing


def sent(last, model="claude-opus-4-6", **body):
    return fit_prefill(asked(model, messages=[HELLO, last], **body), knowing(model=model))


def test_a_chat_that_ends_with_the_user_passes():
    request = asked()
    assert fit_prefill(request, knowing()) is request


def test_opening_words_stay_and_are_asked_for_at_the_start_of_the_reply():
    words = "Maren takes a breath, then"
    request = sent(assistant(f"{words} "))
    assert request.body["messages"][:2] == [HELLO, assistant(f"{words} ")]
    [instruction] = request.body["messages"][2:]
    assert instruction["role"] == "user"
    assert (
        f"start it with exactly these words, once, and go on from there without any remark: “{words}”"
        in (instruction["content"][0]["text"])
    )
    assert details(request) == [
        "Asked for the opening words in an instruction: Claude Opus 4.6 takes no prefilled reply."
    ]


def test_a_reply_that_broke_off_stays_and_is_to_go_on_without_repeating():
    request = sent(assistant(LONG_REPLY))
    assert request.body["messages"][:2] == [HELLO, assistant(LONG_REPLY)]
    instruction = request.body["messages"][2]["content"][0]["text"]
    assert instruction.startswith("[Continue your last message from exactly where it stops")
    assert LONG_REPLY[:40] not in instruction
    assert details(request) == ["Asked to continue in an instruction: Claude Opus 4.6 takes no prefilled reply."]


@pytest.mark.parametrize(
    "words",
    [
        "Maren",
        "*She smiles.*",
        "{",
        "<reply>",
        "Sure! Here is the scene:",
        "The lamp went out, and in the dark of the stair " * 3,
    ],
)
def test_few_or_cut_words_are_an_opening(words):
    assert is_opening(words.strip())


@pytest.mark.parametrize(
    "words",
    [
        LONG_REPLY,
        "One line.\n\nAnd another line of a reply that stops in the",
        "x" * 39 + " She nods, and the evening is over.",
    ],
)
def test_longer_or_finished_texts_are_replies_to_be_continued(words):
    assert not is_opening(words)


def test_models_that_take_opening_words_get_them_without_blanks_and_without_thinking():
    request = sent(assistant("Maren "), "claude-opus-4-5", thinking={"type": "enabled", "budget_tokens": 2_000})
    assert request.body["messages"] == [HELLO, assistant("Maren")]
    assert "thinking" not in request.body
    assert details(request) == [
        "Cut blanks off the end of the opening words, which the API refuses.",
        "Switched thinking off: a reply with opening words cannot begin with it.",
    ]
    untouched = asked("claude-opus-4-5", messages=[HELLO, {"role": "assistant", "content": "Maren"}])
    assert fit_prefill(untouched, knowing()) is untouched


def test_a_reply_paused_for_a_servers_tool_goes_back_as_it_is():
    paused = assistant({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}})
    assert sent(paused, "claude-opus-5").changes == ()
