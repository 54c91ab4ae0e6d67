"""templates/native/provision.py: a real pip and real environments, fed from a folder with one small wheel."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pythons import MISSING, pythons

NATIVE = Path(__file__).resolve().parents[2] / "templates" / "native"
PROVISION = NATIVE / "provision.py"


def make_wheel(folder: Path, tag: str = "py3-none-any") -> str:
    """The wheel of a package `tiny`; returns its sha256."""
    files = {
        "tiny.py": "VALUE = 7\n",
        "tiny_template.py": "this is {{ no }} Python\n",
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        "Requires-Dist: not-there-at-all\n",
        "tiny-1.0.dist-info/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        f"Tag: {tag}\n",
    }
    record = "tiny-1.0.dist-info/RECORD"
    path = folder / f"tiny-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        lines = []
        for name, text in files.items():
            wheel.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(text)}\n")
        wheel.writestr(record, "".join(lines) + f"{record},,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Place:
    folder: Path
    digest: str

    def lock(self, digest: str = "", header: str = "# requires-python: >=3.8\n# disk-mb: 1\n") -> Path:
        path = self.folder / "tiny.lock"
        path.write_text(
            f"{header}tiny==1.0 \\\n    --hash=sha256:{digest or self.digest}\n", encoding="utf-8"
        )
        return path

    def __call__(
        self,
        *more: str,
        code: int = 0,
        lock: Path | None = None,
        python: str = sys.executable,
        **variables: str,
    ) -> dict[str, Any]:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
        env |= {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.folder / "wheels"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        into = variables.pop("into", str(self.folder / "environments"))
        command = [
            python,
            str(PROVISION),
            "--lock",
            str(lock or self.lock()),
            "--name",
            "tiny",
            "--into",
            into,
            *more,
        ]
        done = subprocess.run(
            command,
            env=env | variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, done
        answer = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(answer, dict) and "Traceback" not in done.stderr
        return answer


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("provision")
    (folder / "wheels").mkdir()
    return Place(folder, make_wheel(folder / "wheels"))


@pytest.fixture
def place(shared: Place, tmp_path: Path) -> Place:
    shutil.copytree(shared.folder / "wheels", tmp_path / "wheels")
    return Place(tmp_path, shared.digest)


@pytest.mark.native
def test_makes_an_environment_once(shared: Place) -> None:
    """Two at once, misleading settings of the user's, and a package whose dependency nobody has."""
    with ThreadPoolExecutor(2) as pool:
        answers = list(
            pool.map(lambda _: shared(PIP_USER="1", PIP_TARGET="/nowhere", PYTHONPATH="/nowhere"), range(2))
        )
    assert sorted(answer["fresh"] for answer in answers) == [False, True]
    first, second = answers
    assert first["directory"] == second["directory"] and first["python"] == first["directory"] + "/bin/python"
    version = ".".join(map(str, sys.version_info[:2]))
    digest = hashlib.sha256(shared.lock().read_bytes() + version.encode()).hexdigest()[:12]
    assert Path(first["directory"]).name == f"tiny-{digest}"
    done = subprocess.run(
        [first["python"], "-B", "-c", "import tiny; print(tiny.VALUE, tiny.__cached__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    value, cached = done.stdout.split()
    assert value == "7" and Path(cached).is_file(), "compiled although PYTHONDONTWRITEBYTECODE is set"

    again = shared(PIP_FIND_LINKS="/nowhere")
    assert again["fresh"] is False and again["seconds"] < 5


@pytest.mark.native
def test_a_half_made_environment_is_made_anew(shared: Place) -> None:
    directory = Path(shared()["directory"])
    (directory / ".complete").unlink()
    litter = directory / "litter"
    litter.touch()
    assert shared()["fresh"] is True and not litter.exists() and (directory / ".complete").is_file()


@pytest.mark.native
@pytest.mark.parametrize("harm", ["gone", "cut off", "marker cut off", "marker of an older release"])
def test_an_environment_that_lost_files_is_made_anew(shared: Place, harm: str) -> None:
    answer = shared()
    directory = Path(answer["directory"])
    (module,) = directory.glob("lib/python*/site-packages/tiny.py")
    marker = directory / ".complete"
    if harm == "gone":
        module.unlink()
    elif harm == "cut off":
        module.write_text("")
    elif harm == "marker cut off":
        marker.write_text(marker.read_text()[:100])
    else:
        marker.write_text(json.dumps({"python": sys.executable, "version": "3.11"}))
    assert shared()["fresh"] is True
    done = subprocess.run([answer["python"], "-c", "import tiny; print(tiny.VALUE)"], capture_output=True)
    assert done.stdout == b"7\n"
    assert shared()["fresh"] is False


@pytest.mark.native
def test_what_python_compiles_and_a_program_adds_is_no_loss(shared: Place) -> None:
    directory = Path(shared()["directory"])
    for folder in directory.glob("lib/python*/site-packages/**/__pycache__"):
        shutil.rmtree(folder)
    (directory / "added").touch()
    assert shared()["fresh"] is False


@pytest.mark.native
def test_an_environment_whose_python_has_gone_is_made_anew(shared: Place) -> None:
    python = Path(shared()["python"])
    python.unlink()
    python.symlink_to("/no/such/python")
    assert shared()["fresh"] is True


@pytest.mark.native
def test_a_wrong_hash_installs_nothing(place: Place) -> None:
    error = place(code=1, lock=place.lock("0" * 64))["error"]
    assert (
        "differs from the one in the lock" in error["message"]
        and "0000000000" in error["cause"]
        and error["hint"]
    )
    assert [path.suffix for path in (place.folder / "environments").iterdir()] == [".lock"]


@pytest.mark.native
def test_a_package_without_a_wheel_for_this_machine(place: Place) -> None:
    shutil.rmtree(place.folder / "wheels")
    (place.folder / "wheels").mkdir()
    place.digest = make_wheel(place.folder / "wheels", "cp311-cp311-win_arm64")
    error = place(code=1)["error"]
    assert "no wheel" in error["message"] and "tiny==1.0" in error["cause"] and "--python" in error["hint"]


@pytest.mark.native
def test_an_index_that_does_not_answer(place: Place) -> None:
    error = place(
        code=1,
        PIP_NO_INDEX="0",
        PIP_FIND_LINKS="",
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="1",
    )["error"]
    assert error["message"] == "the package index cannot be reached"


def test_a_python_that_is_too_old_for_the_lock(place: Place) -> None:
    error = place("--python", sys.executable, code=1, lock=place.lock(header="# requires-python: >=3.99\n"))[
        "error"
    ]
    assert "too old" in error["message"] and "3.99" in error["message"] and "install" in error["hint"]


@pytest.mark.native
def test_an_old_python3_finds_a_newer_one(place: Place) -> None:
    old = pythons("3.8*")
    if not old:
        pytest.skip(MISSING)
    path = f"{Path(sys.executable).resolve().parent}:{old[0].parent}"
    version = ".".join(map(str, sys.version_info[:2]))
    if not Path(sys.executable).resolve().with_name(f"python{version}").exists():
        pytest.skip("this Python has no versioned name")
    answer = place(lock=place.lock(header=f"# requires-python: >={version}\n"), python=str(old[0]), PATH=path)
    assert answer["fresh"] and Path(answer["python"]).resolve().name.startswith("python3")


def test_a_python_that_is_not_there(place: Place) -> None:
    assert "python3.77 is not a Python" in place("--python", "python3.77", code=1)["error"]["message"]


def test_a_full_disk_is_known_beforehand(place: Place) -> None:
    error = place(code=1, lock=place.lock(header="# disk-mb: 999999999\n"))["error"]
    assert "disk space" in error["message"] and "MB free" in error["cause"]


def test_a_python_without_ensurepip_as_on_debian(place: Place) -> None:
    """The wrapper hides the module in the way that Debian's packages leave it out: the import fails."""
    wrapper = place.folder / "python3"
    hide = "import sys; sys.modules['ensurepip'] = None; exec(sys.argv.pop(1))"
    script = f"""#!/bin/sh
[ "$1" = -c ] || exec '{sys.executable}' "$@"
shift; exec '{sys.executable}' -c "{hide}" "$@"
"""
    wrapper.write_text(script, encoding="utf-8")
    wrapper.chmod(0o755)
    error = place("--python", str(wrapper), code=1)["error"]
    assert (
        "cannot make environments" in error["message"]
        and "ensurepip" in error["cause"]
        and "python3-venv" in error["hint"]
    )


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".x"])
def test_a_name_stays_inside_of_its_folder(place: Place, name: str) -> None:
    assert "cannot be a name" in place("--name", name, code=1)["error"]["message"]


def test_a_folder_that_cannot_be_written(place: Place) -> None:
    (place.folder / "file").touch()
    error = place(code=1, into=str(place.folder / "file"))["error"]
    assert "cannot write" in error["message"] and error["cause"]
