"""What a step may know besides the request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    skip_steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """Who pays (`kind`: api_key, platform or subscription), the table of models, the persona, the settings."""

    kind: str
    models: Models
    persona: Persona | None = None
    options: Options = Options()

    def model_of(self, request: ChatRequest) -> Model | None:
        """The row of the request's model, as of what is sent; None for one that is not Claude, which is left alone."""
        name = request.model
        return self.models.like(name) if "claude" in name.lower() or self.models.find(name) else None


Step = Callable[[ChatRequest, Context], ChatRequest]
