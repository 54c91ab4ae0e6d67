"""The lab itself: what the other tests stand on must be what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from homelab import gateway
from homelab.engines import llamacpp, vllm
from tests.lab import engine
from tests.lab.fixtures import HouseholdFactory, Lab
from tests.lab.household import Household, start
from tests.lab.hub import Hub, Repo
from tests.lab.models import tiny_qwen3
from tests.lab.node import HERE, Node, NodeSpec

pytestmark = pytest.mark.lab
ROOT = Path(__file__).resolve().parent.parent
CUDA = llamacpp.OFFER.images["cuda"]
CPU = llamacpp.OFFER.images["cpu"]
RTX4090 = "GPU-4090aaaa-0000-4000-8000-000000000001"


def compose(name: str, image: str, command: list[str], port: int, gpu: str | None = None, **more: Any) -> str:
    service: dict[str, Any] = {
        "image": image,
        "command": command,
        "ports": [f"{port}:{port}"],
        "volumes": ["/models:/models:ro", "/root/lab:/conf:ro"],
        **more,
    }
    if gpu:
        device = {"driver": "nvidia", "device_ids": [gpu], "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return json.dumps({"name": name, "services": {name: service}})


def llama(lab: Lab, port: int, *more: str) -> list[str]:
    return ["-m", lab.model, "--port", str(port), "--alias", "smol", *more]


def wait_for(url: str, seconds: float = 40) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def eventually(holds: Any, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def home(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Household]:
    made = start({"workstation": "rtx4090", "server": "2x3090"}, tmp_path_factory.mktemp("home"))
    # The gateway takes a while to start: it does so beside the first tests.
    front, worker = made["server"], made["workstation"]
    model = {
        "model_name": "smol",
        "litellm_params": {
            "model": "openai/smol",
            "api_base": f"http://{worker.address}:8083/v1",
            "api_key": "sk-lab",
        },
    }
    front.put(
        "/root/lab/config.yaml",
        json.dumps({"model_list": [model], "general_settings": {"master_key": "sk-master"}}),
    )
    front.put(
        "/root/c/compose.yml",
        compose(
            "gateway", gateway.OFFER.images["cpu"], ["--config", "/conf/config.yaml", "--port", "4000"], 4000
        ),
    )
    front.run("cd c && docker compose up -d")
    yield made
    made.remove()


def test_labs_in_two_folders_do_not_meet(lab: Lab, tmp_path: Path) -> None:
    """Another one is made ready and taken down while this one runs."""
    script = """
from tests.lab import engine, layout
engine.ready()
print(engine.NETWORK, engine.subnet(), layout.NODE_IMAGE, layout.container_name("box", "seed"))
"""
    other = os.environ | {"HOMELAB_LAB": str(tmp_path), "PYTHONPATH": str(ROOT)}
    here, there = (
        subprocess.check_output([sys.executable, "-c", script], env=env, text=True).split()
        for env in (other | {"HOMELAB_LAB": str(engine.STATE)}, other)
    )
    assert here[:2] == [engine.NETWORK, engine.subnet()] and not set(here) & set(there)
    subprocess.run([sys.executable, "-m", "tests.lab", "down"], env=other, cwd=ROOT, check=True)
    networks = engine.docker("network", "ls", "--format", "{{.Name}}").split()
    assert here[0] in networks and there[0] not in networks


# ---- what NVML says; the same library that nodes have, in a process of its own ----

PROBE = """
import json, sys
import pynvml as n
def get(f, *a):
    try: return f(*a)
    except n.NVMLError as e: return e.value
try: n.nvmlInit()
except n.NVMLError as e: print(json.dumps({"init": e.value})); sys.exit()
out = {"init": 0, "driver": n.nvmlSystemGetDriverVersion(), "gpus": []}
for i in range(n.nvmlDeviceGetCount()):
    h = get(n.nvmlDeviceGetHandleByIndex, i)
    if isinstance(h, int): out["gpus"].append(h); continue
    m, v = get(n.nvmlDeviceGetMemoryInfo, h), get(n.nvmlDeviceGetMemoryInfo, h, n.nvmlMemory_v2)
    migs = []
    if get(n.nvmlDeviceGetMigMode, h) == [1, 1]:
        for j in range(n.nvmlDeviceGetMaxMigDeviceCount(h)):
            d = get(n.nvmlDeviceGetMigDeviceHandleByIndex, h, j)
            if isinstance(d, int): continue
            migs.append([n.nvmlDeviceGetUUID(d), n.nvmlDeviceGetMemoryInfo(d).total >> 20])
    out["gpus"].append({"name": n.nvmlDeviceGetName(h), "uuid": n.nvmlDeviceGetUUID(h), "migs": migs,
        "v1": m if isinstance(m, int) else [m.total >> 20, m.used >> 20, m.free >> 20],
        "v2": v if isinstance(v, int) else [v.total >> 20, v.reserved >> 20, v.used >> 20, v.free >> 20],
        "limit": get(n.nvmlDeviceGetEnforcedPowerLimit, h),
        "cc": get(n.nvmlDeviceGetCudaComputeCapability, h),
        "procs": [[p.pid, p.usedGpuMemory >> 20] for p in n.nvmlDeviceGetComputeRunningProcesses(h)]})
print(json.dumps(out))
"""


def probe(node: Node) -> dict[str, Any]:
    """pynvml in the node, over the node's own library."""
    seen: dict[str, Any] = json.loads(node.run("python3 /root/nv/probe.py").stdout)
    return seen


def test_nvml_of_each_profile(home: Household) -> None:
    node = home["workstation"]
    was = node.gpus_text
    node.put("/root/nv/pynvml.py", Path(pynvml.__file__).read_text())
    node.put("/root/nv/probe.py", PROBE)
    seen = {}
    try:
        for profile in sorted(p.name for p in (HERE / "gpus").iterdir()):
            node.gpus_text = (HERE / "gpus" / profile).read_text()
            seen[profile] = probe(node)
    finally:
        node.gpus_text = was
    assert seen["nodriver"] == {"init": 9} and seen["mismatch"] == {"init": 18}
    gpu = seen["rtx4090"]["gpus"][0]
    assert (
        gpu["v1"] == [24564, 1270, 23294]
        and gpu["v2"] == [24564, 458, 812, 23294]
        and gpu["cc"] == [8, 9]
        and gpu["procs"] == [[1, 502]]
    )
    assert [g["v2"][2] for g in seen["2x3090"]["gpus"]] == [4, 4] and [
        g["v2"][2] for g in seen["2x3090busy"]["gpus"]
    ] == [4, 20480]
    assert seen["laptop3070"]["gpus"][0]["limit"] == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert seen["lost"]["gpus"][1] == pynvml.NVML_ERROR_GPU_IS_LOST and seen["lost"]["gpus"][0][
        "uuid"
    ].startswith("GPU-3060")
    assert [mib for _, mib in seen["a100mig"]["gpus"][0]["migs"]] == [19968, 9856]
    spark = seen["spark"]["gpus"][0]
    assert spark["v1"] == spark["v2"] == pynvml.NVML_ERROR_NOT_SUPPORTED and spark["procs"] == [[1, 43]]


def test_engines_take_gpu_memory_and_give_it_back(lab: Lab, home: Household) -> None:
    node = home["workstation"]
    before = node.used_mib()
    node.put(
        "/root/a/compose.yml",
        compose("first", CUDA, llama(lab, 8081, "-c", "4096", "-ngl", "99"), 8081, RTX4090),
    )
    node.run("cd a && docker compose up -d")
    wait_for(f"http://{node.address}:8081/health")
    pid = int(node.run("docker inspect -f '{{.State.Pid}}' first-first-1").stdout)
    [ours] = [p for p in node.processes() if p.pid == pid]
    assert ours.mib and 600 < ours.mib < 800 and ours.uuid == RTX4090
    assert node.used_mib()[0] in (before[0] + ours.mib, before[0] + ours.mib + 1)
    assert node.run(f"tr '\\0' ' ' < /proc/{pid}/cmdline").stdout.startswith("/app/llama-server")

    node.put(
        "/root/b/compose.yml",
        compose("second", CUDA, llama(lab, 8082, "-c", "8192", "-ngl", "99"), 8082, RTX4090),
    )
    node.gpus_text = node.gpus_text.replace("used=812", "used=23300")
    said = node.run("cd b && docker compose up 2>&1", check=False).stdout
    assert (
        "cudaMalloc failed: out of memory" in said
        and "unable to allocate CUDA0 buffer" in said
        and "main: exiting due to model loading error" in said
    )
    assert node.run("docker inspect -f '{{.State.ExitCode}}' second-second-1").stdout.strip() == "1"
    node.gpus_text = node.gpus_text.replace("used=23300", "used=812")

    node.run(f"kill -9 {pid}")
    eventually(lambda: node.used_mib() == before)
    assert all(p.pid != pid for p in node.processes())


def test_gpu_reservations_are_refused_as_by_the_real_toolkit(lab: Lab, home: Household) -> None:
    node = home["workstation"]
    said = node.run(f"docker run --rm --gpus device=GPU-nope {CUDA} --version", check=False).stderr
    assert "nvidia-container-cli: device error: GPU-nope: unknown device" in said
    was = node.gpus_text
    node.gpus_text = (HERE / "gpus/mismatch").read_text()
    said = node.run(f"docker run --rm --gpus all {CUDA} --version", check=False).stderr
    node.gpus_text = was
    assert "nvml error: driver/library version mismatch" in said


def test_chat_across_three_machines(lab: Lab, home: Household) -> None:
    worker, front = home["workstation"], home["server"]
    worker.put(
        "/root/c/compose.yml",
        compose("llm", CPU, llama(lab, 8083, "-c", "1024", "--api-key", "sk-lab"), 8083),
    )
    worker.run("cd c && docker compose up -d")
    wait_for(f"http://{front.address}:4000/health/liveliness")
    wait_for(f"http://{worker.address}:8083/health")
    body = {"model": "smol", "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 8}
    headers = {"Authorization": "Bearer sk-master", "Content-Type": "application/json"}
    ask = urllib.request.Request(
        f"http://{front.address}:4000/v1/chat/completions", json.dumps(body).encode(), headers
    )
    answer = json.loads(urllib.request.urlopen(ask, timeout=30).read())
    assert answer["choices"][0]["message"]["content"]


def test_llama_cpp_downloads_from_the_hub(lab: Lab, home: Household, tmp_path: Path) -> None:
    node = home["workstation"]
    repo = lab.gguf_repo(tmp_path / "repo", "Smol-Q4_K_M.gguf", "Smol-Q8_0.gguf")
    with lab.hub(
        {"Org/Smol-GGUF": repo, "Org/Gated-GGUF": Repo(repo, gated="manual", allowed=frozenset({"hf_lab"}))}
    ) as hub:
        where = f"-p 8084:8080 -e HF_ENDPOINT={hub.url} -v /srv/hf:/root/.cache/huggingface"
        node.run(f"docker run -d --name hf {where} {CPU} -c 256 -hf Org/Smol-GGUF:Q8_0")
        wait_for(f"http://{node.address}:8084/health")
        assert hub.paths("/Org/Smol-GGUF/resolve/*/Smol-Q8_0.gguf") and not hub.paths("*Q4_K_M*")
        assert (
            "blobs"
            in node.run("readlink /srv/hf/hub/models--Org--Smol-GGUF/snapshots/*/Smol-Q8_0.gguf").stdout
        )
        refused = node.run(
            f"docker run --rm -e HF_ENDPOINT={hub.url} {CPU} -hf Org/Gated-GGUF:Q8_0", check=False
        )
        assert refused.returncode == 1 and "status code: 401" in refused.stderr
    node.run("docker rm -f hf")


def test_machines_can_be_broken_and_mended(household: HouseholdFactory) -> None:
    home = household(box=NodeSpec("rtx4090", memory_mib=16384, disk_mib=50 * 1024))
    node = home["box"]
    ssh = f"ssh -F {home.ssh_config} -o ConnectTimeout=3 box "

    def login(command: str) -> tuple[int, str]:
        done = subprocess.run([*ssh.split(), command], capture_output=True, text=True, env=home.env)
        return done.returncode, done.stdout.strip() + done.stderr

    assert login(
        "id -un; free -m | awk 'NR==2{print $2}'; df -BG --output=size /srv ~ | grep -v blocks | xargs"
    ) == (
        0,
        "homelab\n16384\n50G 50G",
    )
    assert login("docker ps -q") == (0, "")
    node.stop_ssh()
    assert "Connection refused" in login("true")[1]
    node.new_host_key()
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in login("true")[1]
    home.trust()
    node.run(
        "touch /srv/kept && docker run -d --restart unless-stopped --name stays --entrypoint sleep "
        + CPU
        + " 1000"
    )
    node.reboot()
    assert login("ls /srv; docker ps --format {{.Names}}") == (0, "kept\nstays")
    node.cut_network()
    assert login("true")[0] == 255
    node.restore_network()
    assert login("true")[0] == 0
    node.set_memory(8192, 100)
    assert login("awk '/MemAvailable/{print $2}' /proc/meminfo")[1] == str(100 * 1024)


def test_machines_that_lack_something(household: HouseholdFactory) -> None:
    home = household(
        bare=NodeSpec(docker=False, python=False, docker_group=False),
        old=NodeSpec("rtx4090", docker="stopped", python="3.6", compose=False),
        half=NodeSpec("rtx4090", docker_group=False, toolkit=False, compose=False),
    )
    bare, old, half = home["bare"], home["old"], home["half"]
    gone = bare.run("command -v docker python3 nvidia-smi; ls /usr/lib/libnvidia-ml.so.1", check=False)
    assert gone.stdout == "" and gone.returncode != 0
    assert (
        old.run(
            "nvidia-smi -L && python3 -c 'import sys; print(sys.version_info[:2])'", user="homelab"
        ).stdout.splitlines()[-1]
        == "(3, 6)"
    )
    assert "Cannot connect to the Docker daemon" in old.run("docker ps", check=False).stderr
    assert "permission denied" in half.run("docker ps", user="homelab", check=False).stderr
    assert "is not a docker command" in half.run("docker compose version", check=False).stderr
    assert (
        'could not select device driver "" with capabilities: [[gpu]]'
        in half.run(f"docker run --rm --gpus all {CPU}", check=False).stderr
    )
    old.start_docker()
    assert CUDA in old.run("docker images --format '{{.Repository}}:{{.Tag}}'").stdout


def test_an_image_can_be_removed_on_one_machine(home: Household) -> None:
    """Its layers are shared with all the others."""
    home["server"].run(f"docker rmi {CPU} {CUDA}")
    assert CUDA not in home["server"].run("docker images --format '{{.Repository}}:{{.Tag}}'").stdout
    assert home["workstation"].run(f"docker run --rm {CUDA} --version", check=False).returncode == 0


@pytest.mark.slow
def test_vllm_from_the_hub(lab: Lab, household: HouseholdFactory, tmp_path: Path) -> None:
    node = household(box=NodeSpec("2x3090", vllm=True))["box"]
    uuid = "GPU-3090aaaa-0000-4000-8000-000000000001"
    with lab.hub({"lab/tiny": lab.tiny_model(tmp_path / "tiny")}) as hub:
        command = [
            "--model",
            "lab/tiny",
            "--served-model-name",
            "tiny",
            "--port",
            "8000",
            "--max-model-len",
            "1024",
            "--gpu-memory-utilization",
        ]
        more = {"ipc": "host", "environment": {"HF_ENDPOINT": hub.url}}
        node.put(
            "/root/a/compose.yml",
            compose("a", vllm.OFFER.images["cuda"], [*command, "0.5"], 8000, uuid, **more),
        )
        node.put(
            "/root/b/compose.yml",
            compose("b", vllm.OFFER.images["cuda"], [*command, "0.9"], 8001, uuid, **more),
        )
        node.run("cd a && docker compose up -d")
        wait_for(f"http://{node.address}:8000/health", 240)
        assert 12000 < node.used_mib()[0] < 13000 and node.used_mib()[1] == 4
        said = node.run("cd b && docker compose up 2>&1", check=False).stdout
        assert (
            "ValueError: Free memory on device cuda:0 (" in said
            and "is less than desired GPU memory utilization (0.9, " in said
        )
        body = json.dumps(
            {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        ).encode()
        ask = urllib.request.Request(
            f"http://{node.address}:8000/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        assert json.loads(urllib.request.urlopen(ask, timeout=60).read())["usage"]["completion_tokens"] == 4


# ---- the hub, asked by the real client ----


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tiny_qwen3(tmp_path_factory.mktemp("hub") / "tiny")
    gated = Repo(folder, gated="manual", allowed=frozenset({"hf_in"}))
    with Hub({"lab/tiny": folder, "lab/gated": gated}, tokens=frozenset({"hf_in", "hf_out"})) as running:
        yield running


def test_hub_describes_and_gives_a_model(hub: Hub, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    info = api.model_info("lab/tiny", files_metadata=True)
    assert info.safetensors and info.safetensors.total == 336768 and "safetensors" in (info.tags or [])
    assert "model.safetensors" in api.list_repo_files("lab/tiny")
    assert api.get_safetensors_metadata("lab/tiny").parameter_count == {"BF16": 336768}
    with HfFileSystem(endpoint=hub.url, token=False).open("lab/tiny/config.json") as f:
        assert json.loads(f.read())["model_type"] == "qwen3"
    path = Path(snapshot_download("lab/tiny", endpoint=hub.url, cache_dir=tmp_path, token=False))
    assert path.name == info.sha and (path / "model.safetensors").stat().st_size > 600_000


def test_hub_resumes_a_download_that_was_cut(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after = 100_000
    path = hf_hub_download("lab/tiny", "model.safetensors", endpoint=hub.url, cache_dir=tmp_path, token=False)
    original = hub.repos["lab/tiny"].files["model.safetensors"].source
    assert Path(path).read_bytes() == original.read_bytes()
    assert len(hub.paths(f"/cdn/{hub.repos['lab/tiny'].files['model.safetensors'].sha256}")) > 1


@pytest.mark.parametrize(
    ("repo", "token", "error"),
    [
        ("lab/gated", False, GatedRepoError),
        ("lab/gated", "hf_out", GatedRepoError),
        ("lab/none", False, RepositoryNotFoundError),
    ],
)
def test_hub_refuses(hub: Hub, tmp_path: Path, repo: str, token: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        hf_hub_download(repo, "config.json", endpoint=hub.url, cache_dir=tmp_path, token=token)
    assert hf_hub_download("lab/gated", "config.json", endpoint=hub.url, cache_dir=tmp_path, token="hf_in")
