"""Made-up chats in the shape SillyTavern sends them: a head of system prompts, a story, texts injected at a depth.

Everything is drawn from a seed; the other keywords say what a chat is like, and `any_chat` draws them too. Pauses are a
player's: mostly short, some of minutes, a few of hours.
"""

import json
import random
import sys
from pathlib import Path

from server.models import Models

MODELS = Models.load()
WORDS = """
amber anvil apple ash autumn barrel bell birch boat bread brook candle cellar chapel cider cliff cloak copper crow dawn
door drift dusk ember fern field fire fog forge garden gate glass grain harbour hearth hill honey inn iron ivy jar keep
kettle lamp lane lantern leaf letter lute maple market meadow mill mist moss night oak oar orchard path pebble pine
quill rain raven reed river road rope rose rye salt sand ship silver smoke snow song stair star stone storm
""".split()  # noqa: SIM905
NAMES = ("Ada", "Bo", "Cy", "Di", "Ed")


def words(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(max(1, count))).capitalize() + "."


def block(text):
    return {"type": "text", "text": text}


class Chat:
    """One chat being played; `ask()` is the body of the next request, `play()` all of them with their times."""

    def __init__(
        self,
        seed=0,
        model="claude-sonnet-4-6",
        turns=20,
        earlier=0,  # messages told before
        length=120,  # words of a reply
        card=500,  # words
        system=True,  # whether the head goes into `system`
        squash=False,  # into one block
        lore=0,  # entries in front, coming and going
        lore_at="front",  # or a depth
        note=None,  # depth of an author's note
        note_every=1,  # so many messages of the player
        macro=None,  # "random", "minute" or "day", in the main prompt; or "note": random in the note
        recall=0,  # old messages that are taken out of the story into the head, others each turn
        group=0,  # members, each with a card of its own
        join=False,  # all cards in each head
        quick=False,  # each member answers in turn
        limit=None,  # characters that fit into the window
        pinned=True,  # else the examples only get what room the story leaves
        swipes=0.0,
        edits=0.0,
        acts=0.0,  # continuing a reply, or having the player's words written
        side=0.0,  # a short prompt of another kind
        switch=None,  # another model, from the middle on
        summary=0,  # every so many turns
        prefill="",
        closing="",  # post-history instructions
        pace=1.0,  # times the usual short pause
        mid=0.1,
        long=0.05,
    ):
        self.__dict__.update({key: value for key, value in locals().items() if key != "self"})
        self.rng = rng = random.Random(seed)
        self.t = 0.0
        self.main = words(rng, 80)
        self.cards = [[words(rng, card // 4) for _ in range(4)] for _ in range(max(1, group))]
        self.examples = [words(rng, 50) for _ in range(4)]
        self.entries = [words(rng, 100) for _ in range(lore)]
        self.active = {}
        self.recalled = set()
        self.note_text = words(rng, 40)
        self.memo = ""
        self.story = [("assistant", words(rng, length))]
        for _ in range(earlier // 2):
            self.story += [("user", words(rng, length // 2)), ("assistant", words(rng, length))]

    def head(self, speaker):
        """The prompts in front, the lore that is awake, and the messages recalled from the story."""
        macros = {"random": self.rng.random(), "minute": int(self.t // 60), "day": int(self.t // 86_400)}
        parts = [f"{self.main} {macros.get(self.macro, '')}".strip()]
        lore = [self.entries[i] for i in sorted(self.active)]
        if self.memo:
            parts.append(self.memo)
        recalled = sorted(self.recalled)
        if recalled:
            parts.append("\n".join(["Past events:", *(self.story[i][1] for i in recalled)]))
        if self.lore_at == "front":
            parts += lore
        if self.join:
            parts[0] += f" You are {NAMES[speaker]}."
            parts += [text for card in self.cards for text in card]
        else:
            parts += self.cards[speaker]
        if self.lore_at == "after":
            parts += lore
        return parts, lore, recalled

    def fitted(self, head, story):
        """The newest messages that fit, and the examples: pinned, or as far as there is room."""
        examples = list(self.examples)
        room = (self.limit or 10**9) - sum(map(len, head))
        told = sum(len(text) for _, text in story)
        while told + (sum(map(len, examples)) if self.pinned else 0) > room and len(story) > 1:
            told -= len(story.pop(0)[1])
        while examples and told + sum(map(len, examples)) > room:
            examples.pop()
        return examples

    def ask(self, speaker=0, quiet="", written="", prefilled=True):
        """`quiet`: a request of the front end's own, ending with these words; `written`: one that streams."""
        head, lore, recalled = self.head(speaker)
        story = [message for i, message in enumerate(self.story) if i not in recalled]
        head += [*self.fitted(head, story), "[Start a new Chat]"]
        items = [[role, text] for role, text in story]
        told = sum(role == "user" for role, _ in self.story)
        if self.note is not None and told % self.note_every == 0:
            text = self.note_text + (f" {self.rng.random()}" if self.macro == "note" else "")
            items.insert(max(0, len(items) - self.note), ["user", text])
        if self.lore_at not in ("front", "after"):
            for text in lore:
                items.insert(max(0, len(items) - self.lore_at), ["user", text])
        if self.group:
            items.append(["user", f"[Write the next reply only as {NAMES[speaker]}.]"])
        items += [["user", text] for text in (self.closing, quiet or written) if text]
        if self.squash:
            head = ["\n".join(head)]
        if not self.system:
            items = [["user", text] for text in head] + items
        messages = []
        for role, text in items:
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"].append(block(text))
            else:
                messages.append({"role": role, "content": [block(text)]})
        if self.prefill and prefilled and not quiet:  # a second turn of the player's where the model takes none
            role = "assistant" if "4-5" in self.model else "user"
            messages.append({"role": role, "content": [block(self.prefill)]})
        body = {"model": self.model, "max_tokens": 450, "stop_sequences": [], "stream": not quiet, "messages": messages}
        return body | ({"system": [block(text) for text in head]} if self.system else {})

    def say(self, text=None):
        """The player's next message."""
        self.story.append(("user", text or words(self.rng, int(self.length * self.rng.uniform(0.2, 0.8)))))

    def reply(self, text=None):
        """The model's answer, as it stands in the next request."""
        self.story.append(("assistant", text or words(self.rng, int(self.length * self.rng.uniform(0.6, 1.4)))))

    def pause(self):
        drawn = self.rng.random()
        if drawn < self.long:
            return self.rng.uniform(3_700, 6_000)
        if drawn < self.long + self.mid:
            return self.rng.uniform(320, 1_500)
        return min(290, (self.rng.lognormvariate(4.4, 0.8) + 10) * self.pace)

    def drift(self):
        """Lore comes and goes; now and then an older message is edited."""
        for i in range(len(self.entries)):
            if i in self.active:
                self.active[i] -= 1
                if not self.active[i]:
                    del self.active[i]
            elif self.rng.random() < 0.12:
                self.active[i] = self.rng.randint(1, 3)
        if self.rng.random() < self.edits and len(self.story) > 8:
            at = len(self.story) - self.rng.randint(2, 6)
            self.story[at] = (self.story[at][0], words(self.rng, self.length))
        old = range(max(len(self.story) - 8, 0))
        self.recalled = set(self.rng.sample(old, min(self.recall, len(old))))

    def act(self, speaker):
        """The player has the last reply continued, or their own words written."""
        self.t += self.rng.uniform(15, 60)
        if self.rng.random() < 0.5:
            yield self.t, self.ask(speaker, written="[Continue your last message without repeating it.]")
            self.story[-1] = ("assistant", f"{self.story[-1][1]} {words(self.rng, self.length // 2)}")
        else:
            yield self.t, self.ask(speaker, written="[Write the player's next message.]", prefilled=False)

    def play(self):
        """`(t, body)` of every request."""
        for turn in range(1, self.turns + 1):
            if self.switch and turn == self.turns // 2:
                self.model = self.switch
            self.say()
            self.drift()
            speakers = range(self.group) if self.quick else [self.rng.randrange(max(1, self.group))]
            for order, speaker in enumerate(speakers):
                self.t += 14 if order else self.pause()
                yield self.t, self.ask(speaker)
                while self.rng.random() < self.swipes:
                    self.t += self.rng.uniform(15, 60)
                    yield self.t, self.ask(speaker)
                self.reply()
            if self.rng.random() < self.acts:
                yield from self.act(speaker)
            if self.rng.random() < self.side:
                self.t += 6
                asked = [{"role": "user", "content": [block(words(self.rng, 200))]}]
                yield self.t, {**self.ask(quiet="?"), "messages": asked}
            if self.summary and turn % self.summary == 0:
                self.t += 14
                yield self.t, self.ask(quiet="Pause the story and sum it up in your own words.")
                self.memo = f"Summary: {words(self.rng, 120)}"


def requests(**kwargs):
    """A played chat as `(t, body, model)`."""
    return [(t, body, MODELS.like(body["model"])) for t, body in Chat(**kwargs).play()]


KINDS = {
    "plain": {},
    "no system": {"system": False},
    "note": {"note": (0, 1, 2, 3, 4, 4, 4, 6), "note_every": (1, 1, 2, 3)},
    "lore in front": {"lore": (2, 4, 6, 10), "lore_at": ("front", "after"), "squash": (False, False, True)},
    "lore at depth": {"lore": (3, 6), "lore_at": (2, 4, 4), "note": (None, 4)},
    "macros": {"macro": ("random", "minute", "minute", "day", "note"), "note": (2, 4)},
    "full": {"limit": (16_000, 24_000, 32_000), "pinned": (True, False), "note": (None, None, 4)},
    "group": {"group": (2, 3, 4), "note": (None, None, 4)},
    "joined group": {"group": (2, 3), "join": True, "quick": (True, False)},
    "swipes": {"swipes": (0.2, 0.4), "acts": (0.1, 0.3), "edits": (0.0, 0.1)},
    "edits": {"edits": (0.1, 0.3), "swipes": (0.0, 0.2)},
    "summary": {"summary": (4, 5, 8), "note": (None, 4)},
    "closing": {"closing": "Write on in the same voice.", "swipes": (0.0, 0.2)},
    "prefill": {"prefill": "Well then,", "acts": (0.0, 0.1)},
    "recall": {"recall": (2, 3)},
    "switch": {"switch": ("claude-opus-4-8", "claude-sonnet-5"), "side": (0.0, 0.1)},
    "everything": {"lore": (0, 3), "lore_at": 4, "note": 4, "swipes": 0.2, "acts": 0.1, "edits": 0.05, "side": 0.05},
}
MODELS_USED = """
claude-opus-4-6 claude-sonnet-4-6 claude-sonnet-4-5 claude-opus-4-8 claude-sonnet-5 claude-opus-5 claude-fable-5
claude-sonnet-5-5 claude-opus-5-5
"""
USUAL = {
    "model": tuple(MODELS_USED.split()),
    "turns": (12, 20, 30, 40),
    "earlier": (0, 0, 0, 20, 60, 140, 240),
    "length": (80, 150, 220),
    "card": (200, 500, 800),
    "pace": (0.5, 1.0, 1.0, 1.5),
    "mid": (0.03, 0.1, 0.1, 0.25),
    "long": (0.0, 0.04, 0.04, 0.1),
}


def any_chat(seed):
    """What a chat drawn from a seed is like: the kinds take turns, a tuple holds what is drawn from."""
    rng = random.Random(f"chat {seed}")
    kind = list(KINDS)[seed % len(KINDS)]
    given = {**USUAL, **KINDS[kind]}
    drawn = {name: rng.choice(values) if isinstance(values, tuple) else values for name, values in given.items()}
    return kind, {"seed": seed, **drawn}


if __name__ == "__main__":  # python -m tests.chats FOLDER FIRST LAST: recordings of them for util/replay_trace.py
    folder, first, last = sys.argv[1:]
    for seed in range(int(first), int(last) + 1):
        kind, given = any_chat(seed)
        lines = [json.dumps({"t": t, "body": body}) for t, body in Chat(**given).play()]
        Path(folder, f"{seed} {kind}.jsonl").write_text("\n".join(lines), encoding="utf-8")
