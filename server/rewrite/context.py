"""What a step may know besides the request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from server.lesson import Lesson, taught
from server.models import Model, Models
from server.presets import Persona
from server.request import ChatRequest


@dataclass(frozen=True)
class Options:
    """The settings steps use, under the names they have in config.txt."""

    required_system_line: str = ""
    strip_cache_ttl: str = "auto"
    filter_sampling_params: str = "auto"
    default_model: str = ""
    replace_retired_models: bool = False
    cache_diagnostics: bool = False
    skip_steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """Who pays (`kind`: api_key, platform or subscription), the table of models, the persona, the settings.

    `lessons` are what refusals taught, by model; `anthropic_upstream` is false for other providers, who have models,
    names and fields of their own; `now` is for dates of retirement.
    """

    kind: str
    models: Models
    persona: Persona | None = None
    options: Options = Options()
    lessons: Mapping[str, tuple[Lesson, ...]] = field(default_factory=dict)
    anthropic_upstream: bool = True
    now: float = 0.0

    def model_of(self, request: ChatRequest) -> Model | None:
        """The row of the request's model, with its lessons; None for one that is not Claude, which is left alone."""
        name = request.model
        if not (self.anthropic_upstream or "claude" in name.lower() or self.models.find(name)):
            return None
        model = self.models.like(name)
        return taught(model, self.lessons[name]) if self.lessons.get(name) else model

    def learned(self, request: ChatRequest, kind: str) -> list[str]:
        """The values of the lessons of that kind about the request's model."""
        if not self.lessons:
            return []
        return [one.value for one in self.lessons.get(request.model, ()) if one.rule.partition(" ")[0] == kind]


Step = Callable[[ChatRequest, Context], ChatRequest]
