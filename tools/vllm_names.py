"""Names that a vLLM wheel registers, for the tests.

python tools/vllm_names.py vllm-0.33.0-….whl > tests/models/data/vllm_names.yml"""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from pathlib import Path

import yaml


def registered(source: str, table: str) -> list[str]:
    """The keys of one of its tables of parsers."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == table for t in node.targets
        ):
            assert isinstance(node.value, ast.Dict)
            return sorted(k.value for k in node.value.keys if isinstance(k, ast.Constant))
    raise SystemExit(f"no {table}: this wheel names its parsers otherwise")


def main(wheel: str) -> None:
    with zipfile.ZipFile(wheel) as z:

        def text(name: str) -> str:
            return z.read(f"vllm/{name}").decode()

        arguments = text("engine/arg_utils.py")
        server = "".join(
            text(n.removeprefix("vllm/"))
            for n in z.namelist()
            if re.search(r"entrypoints/.*cli_args\.py$", n)
        )
        fields = re.findall(r"^    (\w+)\s*:", arguments + server, re.MULTILINE)
        written = re.findall(r"\"--([\w-]+)\"", arguments + server)
        out = {
            "version": Path(wheel).name.split("-")[1],
            "tool_parsers": registered(text("tool_parsers/__init__.py"), "_TOOL_PARSERS_TO_REGISTER"),
            "reasoning_parsers": registered(text("reasoning/__init__.py"), "_REASONING_PARSERS_TO_REGISTER"),
            "flags": sorted({f.replace("_", "-") for f in fields} | set(written)),
        }
    sys.stdout.write("# Written by tools/vllm_names.py.\n")
    yaml.safe_dump(out, sys.stdout, sort_keys=False, width=110, default_flow_style=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
