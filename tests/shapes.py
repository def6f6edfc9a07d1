"""Requests of the kinds front ends send, as bodies without a model: real ones from the recordings, and odd ones."""

import base64
import io
from functools import cache

from PIL import Image

from tests.traces import NAMES, trace

HELLO = [{"role": "user", "content": "Hello there"}]
CHAT = [
    {"role": "user", "content": [{"type": "text", "text": "The gate is open."}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Maren lifts her lantern. “Come in, then.”"}]},
    {"role": "user", "content": [{"type": "text", "text": "I shake the rain from my coat."}]},
]
LONG_REPLY = (
    "The stair winds down past the harbour office, and Maren counts the steps under her breath. "
    "“Forty-one,” she says at last. “There used to be forty-two. Somebody has taken a step away, and I would like to "
    "know what they wanted it for.” She holds the lantern lower, and the light runs along the wall like water. "
    "Behind the iron door somebody is singing, badly and with great"
)
SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}}
TOOL = {"name": "look_up", "description": "Looks a place up.", "input_schema": SCHEMA}
CALL = {"type": "tool_use", "id": "toolu_01", "name": "look_up", "input": {"place": "Merrow Bridge"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_01", "content": "A bridge of grey stone."}
WEB_SEARCH = {"type": "web_search_20250305", "name": "web_search"}


def text(words, **more):
    return {"type": "text", "text": words, **more}


def user(*blocks):
    return {"role": "user", "content": [text(b) if isinstance(b, str) else b for b in blocks]}


def assistant(*blocks):
    return {"role": "assistant", "content": [text(b) if isinstance(b, str) else b for b in blocks]}


@cache
def picture(form="PNG", size=(8, 6), mode="RGB"):
    out = io.BytesIO()
    Image.new(mode, size, "teal" if mode != "1" else 1).save(out, form)
    return base64.b64encode(out.getvalue()).decode()


@cache
def noise(side):
    """A picture that no format can make small."""
    out = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def image(data=None, media_type="image/png", **source):
    return {
        "type": "image",
        "source": {"type": "base64", "media_type": media_type, "data": data or picture(), **source},
    }


def marked(block, ttl=None):
    return {**block, "cache_control": {"type": "ephemeral", **({"ttl": ttl} if ttl else {})}}


def recorded():
    """First, middle and last request of each recorded chat."""
    for name in NAMES:
        lines = trace(name)
        for at in (0, len(lines) // 2, -1):
            yield f"{name} {at}", {key: value for key, value in lines[at]["body"].items() if key != "model"}


def thinking():
    for kind in ("adaptive", "disabled", "between_tools"):
        for effort in (None, "low", "medium", "high", "xhigh", "max"):
            config = {"output_config": {"effort": effort}} if effort else {}
            yield f"thinking {kind}, effort {effort}", {"thinking": {"type": kind}, **config}
    for budget in (1_024, 2_000, 8_000, 30_000, 100_000):
        yield f"budget {budget}", {"thinking": {"type": "enabled", "budget_tokens": budget}, "max_tokens": budget + 300}
        yield f"budget {budget}, few tokens", {"thinking": {"type": "enabled", "budget_tokens": budget}}
    for effort in ("low", "medium", "high", "xhigh", "max", "min", "auto", "none", 3, None):
        yield f"effort {effort}", {"output_config": {"effort": effort}}
    for odd in ({}, {"type": "auto"}, {"budget_tokens": 2_000}, {"type": "enabled"}, {"type": "off"}, {"type": None}):
        yield f"thinking {odd}", {"thinking": odd}
    yield "thinking shown", {"thinking": {"type": "adaptive", "display": "summarized"}}
    yield (
        "thinking off with leftovers",
        {"thinking": {"type": "disabled", "display": "summarized", "budget_tokens": 1_024}},
    )
    yield "budget far too small", {"thinking": {"type": "enabled", "budget_tokens": 5}}
    yield "budget as text", {"thinking": {"type": "enabled", "budget_tokens": "2048"}}
    yield (
        "samplers while thinking",
        {
            "thinking": {"type": "adaptive"},
            "temperature": 0.9,
            "top_p": 0.97,
            "top_k": 40,
            "max_tokens": 4_000,
        },
    )
    yield (
        "samplers with a budget",
        {
            "thinking": {"type": "enabled", "budget_tokens": 1_100},
            "temperature": 1,
            "top_p": 0.97,
            "top_k": 0,
            "max_tokens": 4_000,
        },
    )


def sampling():
    for given in (
        {"temperature": 0.9, "top_p": 0.97, "top_k": 40},
        {"temperature": 1, "top_p": 1, "top_k": 0},
        {"temperature": 1.7},
        {"temperature": None, "top_p": None, "top_k": None},
        {"temperature": "0.7"},
        {"temperature": "warm", "top_p": True},
        {"top_k": 40.0},
        {"top_k": -1, "top_p": 0.5},
        {"temperature": -3, "top_p": 2},
    ):
        yield f"samplers {given}", given


def endings():
    yield "prefill", {"messages": [*CHAT, assistant("Maren takes a breath, then")]}
    yield "prefill with blanks", {"messages": [*CHAT, assistant("Maren takes a breath, then  \n")]}
    yield "prefill as a string", {"messages": [*CHAT, {"role": "assistant", "content": "*She smiles.* "}]}
    yield "prefill of a brace", {"messages": [*CHAT, assistant("{")]}
    yield "empty prefill", {"messages": [*CHAT, assistant("")]}
    yield "prefill without content", {"messages": [*CHAT, {"role": "assistant", "content": []}]}
    yield (
        "prefill and thinking",
        {
            "messages": [*CHAT, assistant("Maren")],
            "thinking": {"type": "enabled", "budget_tokens": 1_024},
            "max_tokens": 2_000,
        },
    )
    yield "prefill and adaptive thinking", {"messages": [*CHAT, assistant("Maren")], "thinking": {"type": "adaptive"}}
    yield "continue", {"messages": [*CHAT, assistant(LONG_REPLY)]}
    yield "continue with a nudge", {"messages": [*CHAT, assistant(LONG_REPLY), user("[Continue your last message.]")]}
    yield "impersonate", {"messages": [*CHAT, user("[Write the next line of the player.]")]}
    yield "greeting alone", {"messages": [assistant("Maren waves from the quay. “You are late.”")]}
    yield "greeting first", {"messages": [assistant("Maren waves."), *CHAT]}
    yield "two user messages", {"messages": [*CHAT, user("And the lamp goes out.")]}
    yield "two prefills", {"messages": [*CHAT, assistant("Maren nods."), assistant("Then she")]}


def roles():
    note = {"role": "system", "content": "It is raining."}
    yield "system first", {"messages": [note, *CHAT]}
    yield "system alone", {"messages": [note]}
    yield "system in the middle", {"messages": [*CHAT[:2], note, CHAT[2]]}
    yield "system behind the user", {"messages": [CHAT[0], note, *CHAT[1:]]}
    yield "system last", {"messages": [*CHAT, note]}
    yield "two systems last", {"messages": [*CHAT, note, {"role": "system", "content": [text("It is night.")]}]}
    yield "system behind the assistant at the end", {"messages": [*CHAT[:2], note]}
    yield "system with a picture", {"messages": [*CHAT, {"role": "system", "content": [text("Look"), image()]}]}
    yield "empty system message", {"messages": [*CHAT, {"role": "system", "content": ""}, user("Well?")]}
    yield (
        "system between call and result",
        {
            "tools": [TOOL],
            "messages": [*CHAT, assistant(CALL), note, user(RESULT)],
        },
    )
    yield "pictures from the assistant", {"messages": [CHAT[0], assistant("Look:", image()), CHAT[2]]}
    yield "only a picture from the assistant", {"messages": [CHAT[0], assistant(image())]}


def blanks():
    yield "blank blocks", {"messages": [user("", "Hello", "  "), assistant("", "Hm."), user("Well?", "\n")]}
    yield "blank message", {"messages": [CHAT[0], assistant(""), user("   "), user("Well?")]}
    yield "nothing at all", {"messages": [user("")]}
    yield "empty string", {"messages": [{"role": "user", "content": ""}]}
    yield "no blocks", {"messages": [{"role": "user", "content": []}]}
    for system in ("", "  ", None, [], [text("")], [text("Be kind."), text(" ")], "Be kind."):
        yield f"system {system!r}", {"system": system}
    yield (
        "marked blanks",
        {"system": [marked(text("Be kind.")), marked(text(""))], "messages": [user(marked(text("")), "Hi")]},
    )
    yield "zero-width space", {"messages": [user("\u200b")]}
    yield "blank stop sequences", {"stop_sequences": ["", " ", "\n\n", "User:"]}
    yield "stop sequences that are none", {"stop_sequences": [None, 3, "User:"]}


def fields():
    yield (
        "fields of other services",
        {
            "frequency_penalty": 0,
            "presence_penalty": 0.2,
            "n": 1,
            "logit_bias": {},
            "user": "anna",
            "seed": 1,
            "min_p": 0,
            "char_name": "Maren",
            "user_name": "Anna",
            "response_format": {"type": "text"},
            "stream_options": {},
        },
    )
    yield "stop in OpenAI's spelling", {"stop": ["User:"], "max_completion_tokens": 700}
    yield "a field of tomorrow", {"candour": "high", "mood_": {"a": [1]}}
    yield (
        "empty fields",
        dict.fromkeys(
            (
                "system",
                "stop_sequences",
                "metadata",
                "thinking",
                "output_config",
                "tools",
                "tool_choice",
                "service_tier",
                "speed",
            )
        ),
    )
    yield "names on messages", {"messages": [{**CHAT[0], "name": "Anna", "id": 7}, *CHAT[1:]]}
    yield (
        "odd keys in blocks",
        {"messages": [user({**text("Hi"), "index": 0, "annotations": []})], "system": [{**text("Be kind."), "id": 1}]},
    )
    yield "service tier of others", {"service_tier": "flex", "speed": "fast"}
    yield "region", {"inference_geo": "us"}
    yield "metadata of others", {"metadata": {"user_id": "x" * 400, "title": "chat"}}
    yield "metadata alone", {"metadata": {"chat": "3"}}
    yield "fields of betas without header", {"context_management": {"edits": []}, "mcp_servers": [], "thread": {}}
    yield "output format without beta", {"output_config": {"effort": "low", "task_budget": {"total": 9}, "style": "x"}}
    yield (
        "citations on user text",
        {"messages": [user({**text("Hi"), "citations": []}, {**text("Ho"), "citations": [{"type": "x"}]})]},
    )
    yield "diagnostics", {"diagnostics": {"previous_message_id": None}}


def lengths():
    for most in (0, 1, 100, 8_192, 64_000, 128_000, 999_999):
        yield f"max_tokens {most}", {"max_tokens": most}
        yield f"max_tokens {most}, streamed", {"max_tokens": most, "stream": True}
    yield "max_tokens 0, thinking", {"max_tokens": 0, "thinking": {"type": "enabled", "budget_tokens": 1_024}}
    yield "no max_tokens", {"max_tokens": ...}


def tools():
    for choice in ({"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "look_up"}, {"type": "none"}):
        yield f"tools, {choice['type']}", {"tools": [TOOL], "tool_choice": choice}
        yield (
            f"tools, {choice['type']}, budget",
            {
                "tools": [TOOL],
                "tool_choice": choice,
                "thinking": {"type": "enabled", "budget_tokens": 1_024},
                "max_tokens": 3_000,
            },
        )
        yield (
            f"tools, {choice['type']}, adaptive",
            {
                "tools": [TOOL],
                "tool_choice": choice,
                "thinking": {"type": "adaptive"},
                "max_tokens": 3_000,
            },
        )
        yield f"choice {choice['type']} without tools", {"tool_choice": choice}
    yield "forced tool that is not there", {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "sing"}}
    yield "forced, not parallel", {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    yield "no tools in the list", {"tools": [], "tool_choice": {"type": "auto"}}
    yield "doubled tools", {"tools": [TOOL, TOOL]}
    yield "odd names", {"tools": [{**TOOL, "name": "look up!"}], "tool_choice": {"type": "tool", "name": "look up!"}}
    yield "long name", {"tools": [{**TOOL, "name": "x" * 200}]}
    yield "tool without schema", {"tools": [{"name": "wait"}, {"name": "wink", "input_schema": {}}]}
    yield (
        "schema with alternatives",
        {"tools": [{"name": "a", "input_schema": {**SCHEMA, "anyOf": [{"required": ["x"]}]}}]},
    )
    yield (
        "OpenAI's tools",
        {
            "tools": [{"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}],
            "tool_choice": {"type": "function", "function": {"name": "look_up"}},
        },
    )
    yield "web search", {"tools": [WEB_SEARCH, TOOL]}
    yield "marked tool", {"tools": [marked(TOOL, "1h")]}
    for name, more in (
        ("", {}),
        (", budget", {"thinking": {"type": "enabled", "budget_tokens": 1_024}, "max_tokens": 3_000}),
    ):
        loop = [*CHAT, assistant("Let me see.", CALL), user(RESULT)]
        yield f"in the middle of a tool loop{name}", {"tools": [TOOL], "messages": loop, **more}
        yield (
            f"behind a tool loop{name}",
            {"tools": [TOOL], "messages": [*loop, assistant("A bridge."), user("Go on")], **more},
        )
        yield f"call alone{name}", {"tools": [TOOL], "messages": [*CHAT, assistant(CALL)], **more}
        yield (
            f"call without result{name}",
            {"tools": [TOOL], "messages": [*CHAT, assistant(CALL), user("Never mind.")], **more},
        )
        yield (
            f"result without call{name}",
            {"tools": [TOOL], "messages": [*CHAT, assistant("Hm."), user(RESULT)], **more},
        )
        yield f"result first{name}", {"tools": [TOOL], "messages": [user(RESULT, "Hello")], **more}
        yield (
            f"words before the result{name}",
            {
                "tools": [TOOL],
                "messages": [*CHAT, assistant(CALL), user("Here:", RESULT)],
                **more,
            },
        )
        yield (
            f"same call twice{name}",
            {"tools": [TOOL], "messages": [*loop, assistant(CALL), user(RESULT, "Again")], **more},
        )
        yield (
            f"result twice{name}",
            {"tools": [TOOL], "messages": [*CHAT, assistant(CALL), user(RESULT, RESULT)], **more},
        )
        yield (
            f"result split off{name}",
            {
                "tools": [TOOL],
                "messages": [*CHAT, assistant(CALL), user("Wait"), user(RESULT)],
                **more,
            },
        )
    odd = {**CALL, "id": "call:1|x", "name": "look up", "input": '{"place": "quay"}'}
    yield (
        "odd call",
        {"tools": [TOOL], "messages": [*CHAT, assistant(odd), user({**RESULT, "tool_use_id": "call:1|x"})]},
    )
    yield "sides swapped", {"tools": [TOOL], "messages": [user("Hi", CALL), assistant(RESULT, "Hm."), user("Well?")]}
    yield "history of tools, no tools", {"messages": [*CHAT, assistant(CALL), user(RESULT)]}


def thoughts():
    thought = {"type": "thinking", "thinking": "She seems tired.", "signature": ""}
    yield "unsigned thinking", {"messages": [CHAT[0], assistant(thought, "Hm."), CHAT[2]]}
    yield "only thinking", {"messages": [CHAT[0], assistant(thought), CHAT[2]]}
    yield "thinking from the user", {"messages": [user(thought, "Hello")]}
    yield (
        "thinking without a signature",
        {
            "messages": [
                CHAT[0],
                assistant({"type": "thinking", "thinking": "Hm."}, {"type": "redacted_thinking"}, "Hm."),
                CHAT[2],
            ]
        },
    )
    yield "thinking last", {"messages": [CHAT[0], assistant("Hm.", thought)]}


def pictures():
    yield "picture", {"messages": [user("Look", image())]}
    yield "wrong type", {"messages": [user("Look", image(media_type="image/webp"), image(picture("JPEG")))]}
    yield (
        "no type",
        {"messages": [user("Look", {"type": "image", "source": {"type": "base64", "data": picture("GIF")}})]},
    )
    for form in ("BMP", "TIFF", "ICO", "GIF", "WEBP", "JPEG", "AVIF"):
        yield f"picture in {form}", {"messages": [user("Look", image(picture(form, (32, 24))))]}
    yield "huge picture", {"messages": [user("Look", image(picture("PNG", (9_000, 20), "1")))]}
    yield "many large pictures", {"messages": [user("Look", *[image(picture("PNG", (2_100, 10), "1"))] * 21)]}
    yield "heavy picture", {"messages": [user("Look", image(noise(1_500)))]}
    yield "damaged picture", {"messages": [user("Look", image("AAAA"))]}
    yield "picture of garbage", {"messages": [user("Look", image("this is no base64!"))]}
    yield "cut picture", {"messages": [user("Look", image(picture("JPEG", (40, 40))[:40]))]}
    yield "svg", {"messages": [user("Look", image(base64.b64encode(b"<svg/>").decode(), "image/svg+xml"))]}
    yield "data URL as data", {"messages": [user("Look", image("data:image/png;base64," + picture()))]}
    yield (
        "data URL as URL",
        {
            "messages": [
                user(
                    "Look",
                    {"type": "image", "source": {"type": "url", "url": "data:image/gif;base64," + picture("GIF")}},
                )
            ]
        },
    )
    yield (
        "picture by address",
        {"messages": [user({"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}})]},
    )
    yield (
        "broken lines",
        {
            "messages": [
                user("Look", image("\n".join(picture()[i : i + 20] for i in range(0, 200, 20))[: len(picture())]))
            ]
        },
    )
    yield "picture without source", {"messages": [user("Look", {"type": "image"})]}
    yield "bad picture alone", {"messages": [user(image("AAAA"))]}
    yield (
        "bad picture in a tool result",
        {
            "tools": [TOOL],
            "messages": [*CHAT, assistant(CALL), user({**RESULT, "content": [text("Here"), image("AAAA"), text("")]})],
        },
    )


def marks():
    blocks = [marked(text(f"Line {i}.")) for i in range(6)]
    yield "six marks", {"system": blocks[:3], "messages": [user(*blocks[3:])]}
    yield (
        "ttl in the wrong order",
        {"system": [marked(text("Be kind."), "5m")], "messages": [user(marked(text("Hi"), "1h"))]},
    )
    yield "mark on everything", {"cache_control": {"type": "ephemeral"}, "system": blocks[:4]}
    yield (
        "top mark of another ttl",
        {"cache_control": {"type": "ephemeral", "ttl": "1h"}, "messages": [user(marked(text("Hi")))]},
    )
    yield (
        "odd marks",
        {
            "system": [{**text("Be kind."), "cache_control": {"type": "persistent"}}],
            "messages": [
                user(
                    {**text("Hi"), "cache_control": {"type": "ephemeral", "ttl": "2h", "x": 1}},
                    {**text("Ho"), "cache_control": None},
                )
            ],
        },
    )
    call = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [marked(text("Grey stone."))]}
    yield (
        "marks inside a result",
        {"tools": [TOOL], "system": blocks[:4], "messages": [CHAT[0], assistant(call), user(marked(result))]},
    )
    thought = {"type": "redacted_thinking", "data": "x"}
    yield "mark on thinking", {"messages": [CHAT[0], assistant(marked(thought), "Hm."), CHAT[2]]}
    yield (
        "SillyTavern's marks with tools",
        {
            "tools": [marked(TOOL, "5m")],
            "system": [text("Be kind."), marked(text("It rains."), "5m")],
            "messages": [*(marked_last(m) for m in CHAT[:2]), marked_last(CHAT[2])],
        },
    )


def marked_last(message):
    return {**message, "content": [*message["content"][:-1], marked(message["content"][-1], "5m")]}


KINDS = (*(recorded, thinking, sampling, endings, roles, blanks, fields, lengths, tools, thoughts, pictures, marks),)


@cache
def shapes():
    """Every shape by name: a body without a model."""
    return {
        name: {key: value for key, value in {"max_tokens": 300, "messages": HELLO, **given}.items() if value is not ...}
        for kind in KINDS
        for name, given in kind()
    }
