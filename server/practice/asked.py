"""A request whose shape is right, and what the rules look at in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from server.models import Model
from server.practice.blocks import Block, row

Kind = Literal["api_key", "platform", "subscription"]


@dataclass(frozen=True)
class Asked:
    body: Mapping[str, Any]
    model: Model
    version: str
    betas: tuple[str, ...]
    kind: Kind
    required_line: str

    @cached_property
    def blocks(self) -> list[Block]:
        return row(self.body)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.body["messages"]  # type: ignore[no-any-return]

    @cached_property
    def turns(self) -> list[Turn]:
        """The conversation with neighbouring messages of one role as one turn."""
        turns: list[Turn] = []
        for block in self.blocks:
            if block.place != "messages":
                continue
            if not turns or turns[-1].role != block.role:
                turns.append(Turn(block.role, []))
            turns[-1].blocks.append(block)
        return turns

    @property
    def thinking(self) -> dict[str, Any]:
        return self.body.get("thinking") or {}

    @property
    def thinks(self) -> bool:
        """Whether thinking is on: as asked, or as the model does when nobody says."""
        kind = self.thinking.get("type") or ("adaptive" if self.model.thinks_by_default else "disabled")
        return kind in ("adaptive", "enabled")

    @property
    def forces_tool(self) -> bool:
        return (self.body.get("tool_choice") or {}).get("type") in ("any", "tool")

    @property
    def effort(self) -> str:
        return (self.body.get("output_config") or {}).get("effort") or ""


class Turn(NamedTuple):
    role: str
    blocks: list[Block]

    @property
    def at(self) -> str:
        """`messages.3`, where it begins."""
        return self.blocks[0].path.split(".content")[0]


Rule = Callable[[Asked], str | None]  # what Anthropic says against the request, if anything
