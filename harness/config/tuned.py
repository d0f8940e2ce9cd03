# SPDX-License-Identifier: MIT
"""The keys of a bed that come from the settings of its hosts (``harness/agent/settings``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, create_model

from harness.agent import setting
from harness.agent.settings.registry import KEYED
from harness.config.fields import EXPECTED, Model


def _typed(value: setting.Value) -> Any:
    if isinstance(value, setting.Whole):
        return Annotated[int, Field(ge=value.least, le=value.most)]
    if isinstance(value, setting.Word):
        EXPECTED[value.pattern] = value.expected
        return Annotated[str, StringConstraints(pattern=value.pattern)]
    return value


def _part(part: setting.Part) -> tuple[Any, Any]:
    kind = _typed(part.value)
    if part.required:
        return kind, Field(description=part.description)
    return kind | None, Field(default=None, description=part.description)


def _field(name: str, key: setting.Key) -> tuple[Any, Any]:
    kind = key.value
    if isinstance(kind, Mapping):
        parts: dict[str, Any] = {name: _part(part) for name, part in kind.items()}
        made: Any = create_model(name.title(), __base__=Model, __doc__=key.description, **parts)
    else:
        made = _typed(kind)
    return made | None, Field(default=key.default, description=key.description)


_FIELDS: dict[str, Any] = {name: _field(name, one.key) for name, one in KEYED.items() if one.key}
if TYPE_CHECKING:
    _Keys = Model
else:
    _Keys = create_model("_Keys", __base__=Model, **_FIELDS)


class Tuned(_Keys):
    """A key for each setting that declares one."""

    def tuning(self) -> dict[str, Any]:
        """The wanted settings of the dut as plain values; None: not changed."""
        asked = {name: getattr(self, name) for name in _FIELDS}
        return {
            name: one.model_dump(exclude_none=True) if isinstance(one, BaseModel) else one
            for name, one in asked.items()
        }
