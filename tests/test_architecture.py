"""Imports point one way; what the design forbids is forbidden here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from homelab.engines import Engine, engines
from homelab.runtimes import RENDER

ROOT = Path(__file__).parent.parent
PURE = {
    "errors",
    "facts",
    "inventory",
    "program",
    "hosting",
    "endpoints",
    "asked",
    "bounded_yaml",
    "plugins",
    "clients",
    "apps",
    "access",
    "merging",
    "secrets",
    "service",
    "templating",
    "resources",
    "placement",
    "gateway",
    "front",
    "routes",
    "litellm_names",
    "fallbacks",
    "keys",
    "render",
    "plan",
    "board",
    "documents",
    "engines",
    "measured",
    "runtimes",
    "models.header",
    "models.shape",
    "models.gguf",
    "models.huggingface",
    "models.paged_kv",
    "models.source",
    "models.catalog",
    "models.from_config",
    "models.tensors",
    "models.ggml_graph",
    "models.projector",
    "models.recipes",
    "models.rules",
    "models.scores",
    "models.sampling",
    "fit",
    "cards",
    "speed",
    "pace",
    "suggest",
    "proofs",
}
EFFECTS = {
    "asyncio",
    "asyncssh",
    "docker",
    "subprocess",
    "socket",
    "time",
    "random",
    "secrets",
    "httpx",
    "requests",
    "huggingface_hub",
    "datetime",
    "tempfile",
    "threading",
    "urllib",
}
TERMINAL = {"rich", "textual", "typer", "homelab.ui", "homelab.cli", "homelab.verbs"}
# What reads a file in the core: our own templates and tools, nothing else.
MAY_READ = {"resources", "templating", "runtimes", "hosting"}


@cache
def modules(folder: str = "homelab") -> dict[str, ast.Module]:
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = (
            ".".join(path.relative_to(ROOT / folder).with_suffix("").parts).removesuffix(".__init__")
            or "__init__"
        )
        found[name] = ast.parse(path.read_text())
    return found


def imports(tree: ast.Module, *, at_top: bool = False, checking: bool = False) -> set[str]:
    """Dotted names that a module imports, those under TYPE_CHECKING apart."""
    nodes = list(tree.body) if at_top else list(ast.walk(tree))
    hidden = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test)
        for n in ast.walk(i)
    }
    found = set()
    for node in nodes:
        if id(node) in hidden and not checking:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def is_pure(name: str) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in PURE)


def touches(found: set[str], forbidden: set[str]) -> set[str]:
    return {i for i in found for f in forbidden if i == f or i.startswith(f"{f}.")}


@pytest.mark.parametrize("name", [n for n in modules() if is_pure(n)])
def test_the_core_imports_no_effect_no_terminal_and_no_effectful_module_of_ours(name: str) -> None:
    found = imports(modules()[name])
    assert not touches(found, EFFECTS | TERMINAL)
    ours = {i.removeprefix("homelab.") for i in found if i.startswith("homelab.")}
    known = set(modules())
    assert {i for i in ours if i in known and not is_pure(i) and i != "models"} == set()


@pytest.mark.parametrize("name", [n for n in modules() if is_pure(n) and n.split(".")[0] not in MAY_READ])
def test_the_core_opens_no_file_and_prints_nothing(name: str) -> None:
    calls = {
        n.func.id
        for n in ast.walk(modules()[name])
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    assert not calls & {"open", "print", "input", "exec", "eval"}
    methods = {n.attr for n in ast.walk(modules()[name]) if isinstance(n, ast.Attribute)}
    assert not methods & {"read_text", "write_text", "read_bytes", "write_bytes", "environ", "getenv"}


def test_effects_import_no_terminal() -> None:
    for name, tree in modules().items():
        if not re.fullmatch(r"cli(_\w+)?|verbs|__main__|ui(\..*)?", name):
            assert not touches(imports(tree), TERMINAL), name


def test_only_ssh_imports_asyncssh_and_only_deploy_the_docker_library() -> None:
    for name, tree in modules().items():
        if name != "nodes.ssh":
            assert not touches(imports(tree), {"asyncssh"}), name
        if not name.startswith("deploy."):
            assert not touches(imports(tree), {"docker"}), name


def test_only_the_live_screen_imports_textual() -> None:
    live = {"ui.top", "ui.screens"}
    for name, tree in modules().items():
        assert touches(imports(tree), {"textual"}) == set() or name in live, name
        at_once = imports(tree, at_top=True)
        assert not touches(at_once, {f"homelab.{m}" for m in live}) or name in live, name


def test_only_deploy_changes_a_machine() -> None:
    """`put`, `upload` and commands that write are called nowhere else; the agent's own folder is filled by
    discover."""
    for name, tree in modules().items():
        if name.startswith(("deploy", "nodes")):
            continue
        called = {
            n.func.attr
            for n in ast.walk(tree)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
        }
        assert not called & {"put", "upload"}, name


def test_agent_and_controller_never_import_each_other() -> None:
    for name, tree in modules().items():
        assert not touches(imports(tree), {"agent"}), name
    for name, tree in modules("agent").items():
        assert not touches(imports(tree), {"homelab"}), name


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """homelab remembers what it saw, in the home of whoever runs it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)


def loaded(*arguments: str) -> set[str]:
    """Top-level packages that a command line has imported when it ends."""
    code = (
        f"import sys; sys.argv = ['homelab', *{list(arguments)!r}]\n"
        "from homelab.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('\\n' + ' '.join(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    return set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        .stdout.splitlines()[-1]
        .split()
    )


def test_help_is_light() -> None:
    assert not loaded("--help") & {
        "asyncssh",
        "docker",
        "pydantic",
        "yaml",
        "jinja2",
        "httpx",
        "huggingface_hub",
        "ortools",
        "textual",
    }


def test_planning_from_saved_facts_loads_no_ssh_no_docker_and_no_http_client(tmp_path: Path) -> None:
    from tests.machines import household

    (tmp_path / "facts.json").write_text(household().model_dump_json())
    for verb in (["plan"], ["render", "-o", str(tmp_path / "out")]):
        seen = loaded(*verb, "-i", "inventory.example.yml", "--facts", str(tmp_path / "facts.json"))
        assert "jinja2" in seen
        assert not seen & {"asyncssh", "docker", "httpx", "huggingface_hub"}


def test_planning_a_house_where_all_is_as_it_was_loads_no_solver(tmp_path: Path) -> None:
    from tests.test_plan import TEXT, after, fresh, make

    _, plan = make(TEXT, fresh())
    (tmp_path / "inventory.yml").write_text(TEXT)
    for found, loads in ((fresh(), True), (after(plan), False)):
        (tmp_path / "facts.json").write_text(found.model_dump_json())
        arguments = ("plan", "-i", str(tmp_path / "inventory.yml"), "--facts", str(tmp_path / "facts.json"))
        assert ("ortools" in loaded(*arguments)) == loads


def test_discover_loads_no_docker(tmp_path: Path) -> None:
    (tmp_path / "i.yml").write_text("gateway: {node: this}\nnodes: {this: {host: localhost}}\n")
    assert not loaded("discover", "-i", str(tmp_path / "i.yml")) & {"docker", "httpx", "huggingface_hub"}


def test_every_engine_and_runtime_conforms() -> None:
    assert set(engines()) >= {"vllm", "llamacpp"}
    for name, engine in engines().items():
        assert isinstance(engine, Engine)
        assert name == engine.NAME
    assert set(RENDER) == {"docker", "native"}


def test_the_wheel_brings_no_top_level_name_but_ours() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["homelab"]
    assert all(target.startswith("homelab/") for target in wheel["force-include"].values())


def test_a_planted_violation_is_caught() -> None:
    tree = ast.parse("import asyncio\nfrom rich.table import Table\n")
    assert touches(imports(tree), EFFECTS | TERMINAL) == {"asyncio", "rich.table", "rich.table.Table"}
