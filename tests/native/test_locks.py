"""The locks: exact, hashed, for every platform, and with no address of an index in them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = [ROOT / f"templates/native/{name}.lock" for name in ("llamacpp", "litellm", "caddy")]
LOCKS = [*NATIVE, ROOT / "requirements/homelab.lock", ROOT / "requirements/dev.lock"]
LINE = re.compile(
    r"([a-z0-9][a-z0-9-]*)==(\d[A-Za-z0-9.+!]*)(?: ; ([^;\\]+))? \\(?:\n    --hash=sha256:[0-9a-f]{64}"
    r"(?: \\)?)+\n"
)


def parse(lock: Path) -> list[tuple[str, str, str]]:
    text = lock.read_text(encoding="utf-8")
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    assert LINE.sub("", body) == "", f"{lock.name} holds something that is neither exact nor hashed"
    return LINE.findall(body)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_is_exact_and_hashed(lock: Path) -> None:
    packages = parse(lock)
    assert packages
    text = lock.read_text(encoding="utf-8")
    assert not re.search(r"://|index|find-links|@ |git\+", text)
    by_name: dict[str, list[str]] = {}
    for name, _, marker in packages:
        by_name.setdefault(name, []).append(marker)
    assert all(len(markers) == 1 or all(markers) for markers in by_name.values()), (
        "two versions of a package need markers"
    )


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_says_what_it_needs(lock: Path) -> None:
    head = lock.read_text(encoding="utf-8").splitlines()[:2]
    assert re.fullmatch(r"# requires-python: >=3\.1[01]", head[0]) and re.fullmatch(
        r"# disk-mb: \d+", head[1]
    )


@pytest.mark.parametrize(
    ("lock", "source"),
    [("llamacpp.lock", "llamacpp.in"), ("litellm.lock", "litellm.in"), ("caddy.lock", "caddy.in")],
)
def test_holds_what_was_asked_for(lock: str, source: str) -> None:
    packages = {name: version for name, version, _ in parse(ROOT / "templates/native" / lock)}
    lines = (ROOT / "requirements" / source).read_text(encoding="utf-8").splitlines()
    for line in (line for line in lines if not line.startswith("#")):
        name, _, version = re.sub(r"\[.*\]", "", line).replace("_", "-").partition("==")
        assert packages[name] == version or (not version and name in packages)


@pytest.mark.parametrize("name", ["homelab", "dev"])
def test_every_direct_requirement_is_locked(name: str) -> None:
    locked = {package for package, _, _ in parse(ROOT / f"requirements/{name}.lock")}
    lines = (ROOT / f"requirements/{name}.in").read_text(encoding="utf-8").splitlines()
    wanted = {
        re.sub(r"[_.]", "-", line.partition("==")[0].lower())
        for line in lines
        if line and not line.startswith(("-", "#"))
    }
    assert wanted and wanted <= locked


def test_the_developers_run_what_the_users_run() -> None:
    users, developers = (set(parse(ROOT / f"requirements/{name}.lock")) for name in ("homelab", "dev"))
    assert {entry[:2] for entry in users} <= {entry[:2] for entry in developers}


def test_a_gateway_needs_no_gigabytes() -> None:
    names = {name for name, _, _ in parse(ROOT / "templates/native/litellm.lock")}
    assert not names & {"torch", "polars", "polars-runtime-32", "triton"} and "prometheus-client" in names


def test_the_launcher_is_made_for_the_locked_wheel() -> None:
    text = (ROOT / "templates/native/llama-server").read_text(encoding="utf-8")
    pinned = re.search(r'^PINNED = "([^"]+)"', text, re.MULTILINE)
    assert pinned and parse(ROOT / "templates/native/llamacpp.lock") == [("xllamacpp", pinned.group(1), "")]
