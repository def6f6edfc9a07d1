"""Every model × every shape that front ends send × both versions of the API, before an upstream that is strict."""

from collections import Counter
from dataclasses import replace

import orjson
import pytest

from server.errors import ProxyError
from server.lesson import MOST_LESSONS, with_lessons
from server.models import Models
from server.practice.blocks import row
from server.practice.rules import refusal
from server.practice.signatures import sign
from server.presets import Persona
from server.refusals import lesson_of
from server.request import ChatRequest
from server.rewrite import STEPS, Context, Options, rewrite, step_name
from tests.shapes import CALL, RESULT, TOOL, assistant, shapes, user

NOW = 1_795_176_000.0  # 2026-11-20
LINE = "You are Claude Code, Anthropic's official CLI for Claude."
MODELS = Models.load()
KNOWN = [model.id for model in MODELS.all if not model.gone(NOW)]
UNKNOWN = [
    "claude-opus-6",
    "claude-sonnet-6-1",
    "claude-haiku-7-20280101",
    "claude-fable-9",
    "claude-novella-1",
    "anthropic/claude-opus-7",
]
ST_BETAS = "output-128k-2025-02-19,context-1m-2025-08-07,tools-2024-05-16,prompt-caching-2024-07-31,effort-2025-11-24"
SHAPES = shapes()


def asked(body, model, version="2023-06-01", betas="", counting=False):
    return ChatRequest.parse(orjson.dumps({**body, "model": model}), version=version, betas=betas, counting=counting)


def context(kind="api_key", **more):
    return Context(kind, MODELS, options=Options(required_system_line=LINE, **more), now=NOW)


def refused(sent, kind="api_key"):
    """What the strict upstream says against a request, if anything."""
    headers = {"anthropic-version": sent.version, "anthropic-beta": ",".join(sent.betas)}
    found = refusal(sent.body, headers, MODELS.like(sent.model), kind, NOW, counting=sent.counting)
    return found and f"{found.status} {found.message}"


def refusals(model, version, kind="api_key", counting=False):
    found = {}
    for name, body in SHAPES.items():
        request = asked(body, model, version, ST_BETAS, counting)
        sent = rewrite(request, context(kind))
        if words := refused(sent, kind):
            found[name] = words
    return found


@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21"])
@pytest.mark.parametrize("model", [*KNOWN, *UNKNOWN])
def test_no_shape_is_refused(model, version):
    assert refusals(model, version) == {}


@pytest.mark.parametrize("kind", ["platform", "subscription"])
def test_no_shape_is_refused_when_a_sign_in_pays(kind):
    assert {model: found for model in KNOWN if (found := refusals(model, "2023-06-01", kind))} == {}


def test_no_shape_is_refused_when_its_tokens_are_counted():
    assert {model: found for model in KNOWN if (found := refusals(model, "2023-06-01", counting=True))} == {}


def test_retired_models_are_named_with_their_successor_or_replaced_by_it():
    for model in (model for model in MODELS.all if model.gone(NOW)):
        request = asked(SHAPES["plain 0"], model.id)
        with pytest.raises(ProxyError, match=r"was retired.*Choose Claude") as caught:
            rewrite(request, context())
        assert caught.value.status == 404
        sent = rewrite(request, context(replace_retired_models=True))
        assert refused(sent) is None
        assert sent.changes[0].name == "choose_model"


# ------------------------------------------------------------------------------------------------------ nothing is lost


def words_of(body):
    """Every text of a body's messages and system in order, without blanks around it."""
    return [words for content in contents(body) for words in texts_in(content)]


def contents(body):
    yield body.get("system")
    for message in body["messages"]:
        yield message["content"]


def texts_in(content):
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for block in content or ():
        if block["type"] == "text" and block["text"].strip():
            yield block["text"].strip()
        elif block["type"] == "tool_result":
            yield from texts_in(block.get("content"))


def in_order(wanted, found):
    """Whether each of the texts stands in some text found, one after the other."""
    at = 0
    for words in wanted:
        while at < len(found) and words not in found[at]:
            at += 1
        if at == len(found):
            return False
    return True


MOVED = {
    "words before the result",
    "result split off",
    "system first",
    "system alone",
    "result first",
    "system between call and result",
}


@pytest.mark.parametrize("model", [*KNOWN, "claude-opus-6"])
def test_nothing_that_was_written_is_lost_or_moved(model):
    for name, body in SHAPES.items():
        sent = rewrite(asked(body, model), context())
        wanted, found = words_of(body), words_of(sent.body)
        if name.split(",")[0] in MOVED:  # results of tools stand first, leading system messages in `system`
            assert all(any(words in text for text in found) for words in wanted), name
        else:
            assert in_order(wanted, found), name


@pytest.mark.parametrize("model", [*KNOWN, "claude-opus-6"])
def test_what_a_model_takes_as_it_is_passes_unchanged(model):
    """But for reply lengths, which are raised so that thinking cannot eat up the reply."""
    row = MODELS.like(model)
    for name, body in SHAPES.items():
        request = asked(body, model)
        if refused(request):
            continue
        sent = rewrite(request, context())
        changed = {key for key in {*request.body, *sent.body} if request.body.get(key) != sent.body.get(key)}
        if row.thinks_by_default or "adaptive" in row.thinking:
            changed -= {"max_tokens"}
        assert changed <= harmless(name, row), name


def harmless(name, row):
    """What is mended although this strict upstream lets it pass: the real one was seen to be stricter."""
    if "picture" in name and "assistant" in name:
        return {"messages"}
    if name in ("prefill without content", "data URL as URL"):
        return {"messages"}
    if row.sampling == "none" and name.startswith("samplers"):
        return {"temperature"}
    return set()


def test_every_change_is_named_in_words():
    steps = {step_name(step) for step in STEPS}
    for name, body in SHAPES.items():
        request = asked(body, "claude-opus-5-5", betas=ST_BETAS)
        sent = rewrite(request, context("subscription"))
        assert (sent.body == request.body) or sent.changes, name
        for change in sent.changes:
            assert change.name in steps, name
            assert change.detail[0].isupper(), change
            assert change.detail.endswith("."), change
            assert "Maren" not in change.detail, change  # no chat text in a receipt


# ------------------------------------------------------------------------------------------------- the meaning is kept

LEVELS = ["low", "medium", "high", "xhigh", "max"]


def depth(sent, model):
    """How much a request makes its model think, as a number."""
    thinking = sent.body.get("thinking")
    effort = (sent.body.get("output_config") or {}).get("effort")
    if thinking is None and not MODELS.like(model).thinks_by_default:
        return -1
    if thinking and thinking["type"] in ("disabled", "between_tools"):
        return -1
    level = LEVELS.index(effort) if effort else 2
    return level + (thinking or {}).get("budget_tokens", 0) / 1e6


@pytest.mark.parametrize("model", [*KNOWN, *UNKNOWN])
def test_more_effort_never_means_less_thinking(model):
    by_budget = [
        depth(
            rewrite(
                asked({**SHAPES["plain 0"], "thinking": {"type": "enabled", "budget_tokens": n}}, model), context()
            ),
            model,
        )
        for n in (1_024, 2_048, 4_096, 8_000, 16_000, 32_000, 64_000, 100_000)
    ]
    by_effort = [
        depth(
            rewrite(
                asked({**SHAPES["plain 0"], "thinking": {"type": "adaptive"}, "output_config": {"effort": e}}, model),
                context(),
            ),
            model,
        )
        for e in LEVELS
    ]
    assert by_budget == sorted(by_budget)
    assert by_effort == sorted(by_effort)
    assert by_effort[0] < by_effort[-1]
    off = depth(rewrite(asked({**SHAPES["plain 0"], "thinking": {"type": "disabled"}}, model), context()), model)
    assert off <= min(*by_budget, *by_effort)


@pytest.mark.parametrize("model", KNOWN)
def test_samplers_survive_where_the_model_takes_them(model):
    row = MODELS.find(model)
    given = {"temperature": 0.8, "top_p": 0.97, "top_k": 40}
    sent = rewrite(asked({**SHAPES["prefill"], **given}, model), context())
    kept = {key: sent.body[key] for key in given if key in sent.body}
    wanted = {"none": {}, "one": {"temperature": 0.8, "top_k": 40}, "both": given}
    assert kept == wanted[row.sampling]
    assert all(
        rewrite(asked({**SHAPES["plain 0"], **given}, model, "2026-10-21"), context()).body.get(k) is None
        for k in given
    )


@pytest.mark.parametrize("model", [*KNOWN, *UNKNOWN])
def test_room_for_the_reply_is_left_beside_thinking(model):
    row = MODELS.like(model)
    for name, body in SHAPES.items():
        sent = rewrite(asked(body, model), context()).body
        wanted = body.get("max_tokens")
        if not isinstance(wanted, int) or wanted == 0:
            continue
        budget = (sent.get("thinking") or {}).get("budget_tokens", 0)
        assert sent["max_tokens"] <= row.max_output, name
        if budget and wanted <= budget < row.max_output - wanted:
            assert sent["max_tokens"] - budget >= wanted, name


# ---------------------------------------------------------------------------------------------------------- learning


def stricter(rules):
    """An upstream with rules of its own behind the published ones. Counts how often each spoke."""
    spoken = Counter()

    def answer(sent):
        if words := refused(sent):
            return words.partition(" ")[2]
        for name, (breaks, says) in rules.items():
            if breaks(sent.body, sent):
                spoken[name] += 1
                return says
        return None

    return answer, spoken


def on_the_road(request, answer, known):
    """A request with as many tries as it learns from, as on the road: what was sent last, the answer, the lessons."""
    learned = {}
    while True:
        sent = rewrite(
            request,
            Context("api_key", MODELS, lessons=with_lessons(known, request.model, learned.values()), now=NOW),
        )
        words = answer(sent)
        found = lesson_of(words, sent) if words else None
        if found is None or found.rule in learned or len(learned) >= MOST_LESSONS:
            return sent, words, learned
        learned[found.rule] = found


def last_role(body):
    return body["messages"][-1]["role"]


def roles_in(body):
    return {message["role"] for message in body["messages"]}


def thinking_in(body):
    return (body.get("thinking") or {}).get("type")


def effort_in(body):
    return (body.get("output_config") or {}).get("effort")


HIDDEN_RULES = {
    "sampling": (
        lambda body, sent: any(key in body for key in ("temperature", "top_p", "top_k")),
        "`top_p` is deprecated for this model.",
    ),
    "top_k": (lambda body, sent: "top_k" in body, "top_k is not available on this model"),
    "prefill": (
        lambda body, sent: last_role(body) == "assistant",
        "Prefilling assistant messages is not supported for this model.",
    ),
    "enabled": (
        lambda body, sent: thinking_in(body) == "enabled",
        "thinking.type 'enabled' is no longer accepted; use 'adaptive' with output_config.effort",
    ),
    "disabled": (
        lambda body, sent: thinking_in(body) == "disabled",
        '"thinking.type.disabled" is not supported for this model.',
    ),
    "between": (
        lambda body, sent: thinking_in(body) == "between_tools",
        "thinking.type: between_tools is not supported here",
    ),
    "adaptive": (lambda body, sent: thinking_in(body) == "adaptive", "This model does not support adaptive thinking."),
    "max effort": (
        lambda body, sent: effort_in(body) in ("max", "xhigh"),
        "output_config.effort: Input should be 'low', 'medium' or 'high'",
    ),
    "effort": (lambda body, sent: effort_in(body) is not None, "This model does not support the effort parameter."),
    "system role": (
        lambda body, sent: "system" in roles_in(body),
        "messages.1.role: Input should be 'user' or 'assistant'",
    ),
    "user first": (
        lambda body, sent: body["messages"][0]["role"] != "user",
        'messages: first message must use the "user" role',
    ),
    "forced": (
        lambda body, sent: (body.get("tool_choice") or {}).get("type") in ("any", "tool"),
        "tool_choice: forcing a tool is not supported for this model",
    ),
    "max_tokens": (
        lambda body, sent: body.get("max_tokens", 0) > 20_000,
        "max_tokens: 30000 > 20000, which is the maximum allowed number of output tokens for this model",
    ),
    "beta": (
        lambda body, sent: "effort-2025-11-24" in sent.betas,
        "Unexpected value(s) `effort-2025-11-24` for the `anthropic-beta` header.",
    ),
    "stop sequences": (lambda body, sent: "stop_sequences" in body, "stop_sequences: Extra inputs are not permitted"),
    "ttl": (
        lambda body, sent: b'"ttl"' in orjson.dumps(body),
        "system.1.cache_control.ttl: Extra inputs are not permitted",
    ),
    "web search": (
        lambda body, sent: any(tool.get("type", "").startswith("web_search") for tool in body.get("tools", ())),
        "tools.0: 'web_search_20250305' is not supported on this model.",
    ),
}


@pytest.mark.parametrize("hidden", HIDDEN_RULES)
@pytest.mark.parametrize(
    "model", ["claude-opus-4-5", "claude-sonnet-4-6", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-6"]
)
def test_a_new_rule_is_learned_in_one_try_and_never_met_again(model, hidden):
    answer, spoken = stricter({hidden: HIDDEN_RULES[hidden]})
    known, met = {}, 0
    for name, body in SHAPES.items():
        request = asked(body, model, betas="effort-2025-11-24")
        sent, words, learned = on_the_road(request, answer, known)
        assert words is None, (name, words, sent.changes)
        known = with_lessons(known, model, (one for one in learned.values() if one.lasting))
        assert spoken[hidden] - met <= 1, name
        met = spoken[hidden]
    assert met <= 3  # one lesson for each thing it refuses


def test_one_request_may_teach_several_rules():
    rules = {name: HIDDEN_RULES[name] for name in ("sampling", "prefill", "stop sequences", "beta")}
    answer, spoken = stricter(rules)
    body = {**SHAPES["prefill"], "temperature": 0.5, "top_p": 0.9, "stop_sequences": ["User:"]}
    request = asked(body, "claude-opus-4-5", betas="effort-2025-11-24")
    _, words, learned = on_the_road(request, answer, {})
    assert words is None
    assert spoken == dict.fromkeys(rules, 1)
    details = {one.rule: one.change("Claude").detail for one in learned.values()}
    assert details["prefill"] == (
        "Claude refused the opening words of its reply; asked for them in words instead and remembered that."
    )
    assert details["field stop_sequences"] == "Claude refused stop_sequences; left it out and remembered that."


def test_a_refusal_that_nothing_can_mend_is_passed_on_after_one_try():
    def answer(sent):
        tries.append(sent)
        return "messages.0.content.0.text: this text is not allowed"

    tries = []
    _, words, learned = on_the_road(asked(SHAPES["prefill"], "claude-opus-5"), answer, {})
    assert words
    assert len(tries) == 1
    assert learned == {}


def strange_models():
    """Models that nobody knows, each with restrictions of its own."""
    like = MODELS.newest("opus")
    every = ("low", "medium", "high", "xhigh", "max")
    yield replace(
        like,
        sampling="one",
        prefill=True,
        thinking=frozenset({"enabled", "disabled"}),
        thinking_off="omit",
        off_efforts=every,
    )
    yield replace(like, thinking=frozenset({"disabled"}), thinking_off="omit", efforts=(), default_effort="")
    yield replace(like, thinking=frozenset({"adaptive", "disabled"}), thinking_off="disabled", off_efforts=("low",))
    yield replace(
        like, thinking=frozenset({"adaptive", "between_tools"}), thinking_off="between_tools", off_efforts=every
    )
    yield replace(like, efforts=("low", "medium"), default_effort="medium", off_efforts=(), system_messages=False)
    yield replace(like, max_output=8_192, context=100_000, efforts=(), default_effort="", forced_tools=False)
    yield replace(like, thinking=frozenset({"enabled"}), thinking_off="never", efforts=(), default_effort="")
    yield replace(
        like, system_messages=False, forced_tools=False, fast_factor=None, efforts=("high",), default_effort="high"
    )


@pytest.mark.parametrize("truth", [*strange_models()], ids=range(8))
@pytest.mark.parametrize("name", ["claude-opus-6", "claude-sonnet-6-1", "claude-haiku-6", "claude-novella-1"])
def test_a_model_nobody_knows_is_understood_from_its_refusals(name, truth):
    truth = replace(truth, id=name)
    known, refusals_met, failed = {}, Counter(), {}

    def answer(sent):
        headers = {"anthropic-version": sent.version, "anthropic-beta": ",".join(sent.betas)}
        if found := refusal(sent.body, headers, truth, "api_key", NOW):
            refusals_met[found.message] += 1
            return found.message
        return None

    for shape, body in SHAPES.items():
        _, words, learned = on_the_road(asked(body, name), answer, known)
        if words:
            failed[shape] = (words, list(learned))
        known = with_lessons(known, name, (one for one in learned.values() if one.lasting))
    assert failed == {}
    assert sum(refusals_met.values()) <= 20, refusals_met  # over all shapes


def signed_chat(model, *, loop=False):
    """A chat whose thinking was signed as the practice upstream does it, and whose beginning was edited since."""
    thought = {"type": "thinking", "thinking": "She seems tired."}
    messages = [user("Hello, Maren.")]
    for reply in ["Good evening.", CALL] if loop else ["Good evening.", "Sit down."]:
        body = {"messages": messages}
        signature = sign(model, thought["thinking"], row(body))
        messages = [*messages, assistant({**thought, "signature": signature}, reply)]
        messages = [*messages, user(RESULT if reply is CALL else "And you?")]
    edited = [user("Hello, Captain."), *messages[1:]]
    return {"messages": edited, "max_tokens": 9_000, "tools": [TOOL], "thinking": {"type": "adaptive"}}


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("model", ["claude-fable-5-2", "claude-opus-5-5", "claude-sonnet-5-5"])
def test_an_edited_chat_with_bound_thinking_goes_on(model, loop):
    body = signed_chat(model, loop=loop)
    assert "bound to a different conversation" in refused(asked(body, model))
    sent, words, learned = on_the_road(asked(body, model), stricter({})[0], {})
    assert words is None
    assert [rule.partition(" ")[0] for rule in learned] == ["thoughts", "all_thoughts"][: 1 + loop]
    assert in_order(words_of(body), words_of(sent.body))


@pytest.mark.parametrize("model", ["claude-fable-5-2", "claude-opus-5-5", "claude-sonnet-5-5"])
def test_a_reply_with_bound_thinking_is_continued_in_an_edited_chat(model):
    body = signed_chat(model)
    body["messages"].pop()  # the chat ends with the reply
    sent, words, learned = on_the_road(asked(body, model), stricter({})[0], {})
    assert words is None
    assert [rule.partition(" ")[0] for rule in learned] == ["thoughts"]
    assert in_order(words_of(body), words_of(sent.body))


@pytest.mark.parametrize("kind", ["api_key", "subscription"])
@pytest.mark.parametrize("model", ["claude-fable-5-2", "claude-haiku-5-5"])
def test_bound_thinking_survives_a_tool_loop_with_a_persona(model, kind):
    knows = replace(context(kind), persona=Persona("maren", system="You are Maren.", suffix="Stay Maren."))
    body = {"max_tokens": 9_000, "tools": [TOOL], "messages": [user("Where is the bridge?")]}
    first = rewrite(asked(body, model), knows)
    thought = {
        "type": "thinking",
        "thinking": "A map would help.",
        "signature": sign(model, "A map would help.", row(first.body)),
    }
    loop = {**body, "messages": [*body["messages"], assistant(thought, CALL), user(RESULT)]}
    second = rewrite(asked(loop, model), knows)
    assert refused(second, kind) is None
    assert thought in second.body["messages"][1]["content"]
    later = {**body, "messages": [*loop["messages"], assistant("Over there."), user("Thank you.")]}
    third = rewrite(asked(later, model), knows)
    assert refused(third, kind) is None
    assert thought not in third.body["messages"][1]["content"]
