"""Made-up chats in the shape SillyTavern sends them: a head of system prompts, a story, texts injected at a depth.

Everything is drawn from a seed; the other keywords say what a chat is like. Pauses are a player's: mostly short, some
of minutes, a few of hours.
"""

import random

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
        macro=None,  # "random" or "minute", in the main prompt
        group=0,  # members, each with a card of its own
        join=False,  # all cards in each head
        quick=False,  # each member answers in turn
        limit=None,  # characters that fit into the window
        swipes=0.0,
        edits=0.0,
        summary=0,  # every so many turns
        prefill="",
        closing="",  # post-history instructions
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
        self.note_text = words(rng, 40)
        self.memo = ""
        self.story = [("assistant", words(rng, length))]
        for _ in range(earlier // 2):
            self.story += [("user", words(rng, length // 2)), ("assistant", words(rng, length))]

    def head(self, speaker):
        value = {"random": str(self.rng.random()), "minute": str(int(self.t // 60)), None: ""}[self.macro]
        parts = [f"{self.main} {value}".strip()]
        lore = [self.entries[i] for i in sorted(self.active)]
        if self.memo:
            parts.append(self.memo)
        if self.lore_at == "front":
            parts += lore
        if self.join:
            parts[0] += f" You are {NAMES[speaker]}."
            parts += [text for card in self.cards for text in card]
        else:
            parts += self.cards[speaker]
        return [*parts, *self.examples, "[Start a new Chat]"], lore

    def ask(self, speaker=0, quiet=""):
        head, lore = self.head(speaker)
        story = list(self.story)
        while self.limit and sum(len(text) for _, text in story) + sum(map(len, head)) > self.limit:
            del story[0]
        items = [[role, text] for role, text in story]
        for depth, text in [(self.note, self.note_text)] * (self.note is not None):
            items.insert(max(0, len(items) - depth), ["user", text])
        if self.lore_at != "front":
            for text in lore:
                items.insert(max(0, len(items) - self.lore_at), ["user", text])
        if self.group:
            items.append(["user", f"[Write the next reply only as {NAMES[speaker]}.]"])
        items += [["user", text] for text in (self.closing, quiet) if text]
        if self.prefill and not quiet:
            items.append(["assistant", self.prefill])
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
        return min(290, self.rng.lognormvariate(4.4, 0.8) + 10)

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

    def play(self):
        """`(t, body)` of every request."""
        for turn in range(1, self.turns + 1):
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
            if self.summary and turn % self.summary == 0:
                self.t += 14
                yield self.t, self.ask(quiet="Pause the story and sum it up in your own words.")
                self.memo = f"Summary: {words(self.rng, 120)}"


def requests(**kwargs):
    """A played chat as `(t, body, model)`."""
    return [(t, body, MODELS.like(body["model"])) for t, body in Chat(**kwargs).play()]
