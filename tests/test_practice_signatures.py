"""Thinking sent back to the practice upstream: whose it is, and what it is bound to."""

import pytest

from server.practice.blocks import row
from server.practice.signatures import sign
from tests.practice import ask, mark, said
from tests.steps import HELLO, assistant, text, user


def chat_with_thought(model="claude-opus-5-5", shown="hm"):
    """A request and the reply's thinking block, signed for it."""
    first = ask(model, system=[text("s")], messages=[user(text("a"))])
    return first, {"type": "thinking", "thinking": shown, "signature": sign(model, "hm", row(first))}


def again(first, *turns, **changes):
    return {**first, "messages": [*first["messages"], *turns], **changes}


def test_a_thinking_block_sent_back_as_it_was_is_accepted():
    first, thought = chat_with_thought()
    assert said(again(first, assistant(thought, text("b")), HELLO)) == ""


def test_a_thinking_block_whose_text_was_omitted_is_accepted():
    first, thought = chat_with_thought(shown="")
    assert said(again(first, assistant(thought, text("b")), HELLO)) == ""


def test_an_edited_thinking_block_is_refused():
    first, thought = chat_with_thought()
    edited = assistant({**thought, "thinking": "hmm"}, text("b"))
    assert said(again(first, edited, HELLO)).startswith(
        "messages.1.content.0: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be mod"
    )
    assert said(again(first, edited, HELLO, assistant(text("c")), HELLO)) == (
        "messages.1.content.0: Invalid `signature` in `thinking` block"
    )


def test_a_signature_of_nobodys_is_refused():
    first, thought = chat_with_thought()
    assert "Invalid `signature`" in said(again(first, assistant({**thought, "signature": "c2ln"}, text("b")), HELLO))


@pytest.mark.parametrize("model", ["claude-fable-5-2", "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"])
def test_newer_models_bind_a_thinking_block_to_everything_before_it(model):
    first, thought = chat_with_thought(model)
    changed = again(first, assistant(thought, text("b")), HELLO, system=[text("S")])
    assert said(changed) == (
        "messages.1.content.0: Invalid `signature` in `thinking` block. The block is bound to a different "
        'conversation. Remove the block, or set `thinking.block_binding.prefix_mismatch_behavior` to "drop_block".'
    )
    dropping = {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "drop_block"}}
    assert said(changed | {"thinking": dropping}, betas="thinking-binding-controls-2026-08-01") == ""


def test_older_models_do_not_bind_their_thinking():
    first, thought = chat_with_thought("claude-opus-5")
    assert said(again(first, assistant(thought, text("b")), HELLO, system=[text("S")])) == ""


def test_marks_settings_and_other_thinking_do_not_part_a_block_from_its_conversation():
    first, thought = chat_with_thought()
    marked = {"system": [text("s", **mark())], "output_config": {"effort": "low"}}
    second = again(first, assistant(thought, text("b")), user(text("c")))
    later = {"type": "thinking", "thinking": "hm", "signature": sign(first["model"], "hm", row(second))}
    assert said(again(first, assistant(text("b")), user(text("c")), assistant(later, text("d")), HELLO, **marked)) == ""


def test_the_thinking_of_another_model_is_dropped_silently():
    first, thought = chat_with_thought("claude-fable-5-1")
    assert said(again(first, assistant(thought, text("b")), HELLO, model="claude-opus-5-5", system="S")) == ""
