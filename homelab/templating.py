"""Jinja2 with the two rules that keep rendered YAML honest: unknown variables are errors, and every value
passes one filter."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jinja2

from homelab import __version__, resources


def yaml_value(value: Any) -> str:
    """A value as JSON, which is YAML on one line whatever quotes, `#` or line breaks it holds."""
    return json.dumps(value, ensure_ascii=True)


def compose_value(value: Any) -> str:
    """The same for a Compose file: Compose interpolates `$NAME`, so every `$` is doubled."""
    return yaml_value(value).replace("$", "$$")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resources.path("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["yaml"] = yaml_value
    environment.filters["compose"] = compose_value
    return environment


def render_template(name: str, /, **values: Any) -> str:
    """The text of a template of ours."""
    return _environment().get_template(name).render(version=__version__, **values)
