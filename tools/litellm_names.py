"""What the pinned LiteLLM calls providers and models, for the inventory to be held against:

    LITELLM_LOCAL_MODEL_COST_MAP=True PYTHON_OF_LITELLM tools/litellm_names.py > homelab/litellm_names.py

A model with its provider in front (`anthropic/…`) may be newer than LiteLLM; without one it must be known."""

from __future__ import annotations

import re
import sys
import textwrap
from importlib.metadata import version


def main() -> None:
    import litellm

    providers = sorted({str(getattr(p, "value", p)) for p in litellm.provider_list})
    models = sorted(n for n in litellm.model_cost if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:@-]*", n))
    out = ['"""Written by tools/litellm_names.py."""', "", f'VERSION = "{version("litellm")}"']
    for name, words in (("PROVIDERS", providers), ("MODELS", models)):
        lines = textwrap.wrap(" ".join(words), 105, break_long_words=False, break_on_hyphens=False)
        out += [f'{name} = frozenset("""', *lines, '""".split())']
    sys.stdout.write("\n".join(out) + "\n")


main()
