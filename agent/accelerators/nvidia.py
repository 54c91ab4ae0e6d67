"""NVIDIA GPUs through NVML. What the driver will not say is null; a GPU that fails is a
problem and the others go on."""

from __future__ import annotations

import sys
import types
from typing import Any, Callable, Dict, List

from .. import docker, host, processes

Problems = List[Dict[str, str]]

# How its GPUs are given to what runs on them; the controller reads this literal, see homelab/hosting.py.
HOSTING = {
    "flavours": ("cuda",),
    "reservation": {"driver": "nvidia", "capabilities": ["gpu"]},
    "visible": "CUDA_VISIBLE_DEVICES",
}
# Docker offers GPUs through a listed runtime, or (`--gpus`, Compose reservations) through this hook, listed
# or not.
PROGRAMS = (
    "nvidia-container-runtime-hook",
    "nvidia-container-toolkit",
    "nvidia-ctk",
    "nvidia-container-runtime",
)
# Chips without memory of their own: NVML has no figure for them (DGX Spark: NOT_SUPPORTED) or a wrong one
# (N1X: 8128 MiB).
UNIFIED = ("GB10", "N1", "N1X", "RTX SPARK", "THOR", "ORIN", "XAVIER", "TEGRA")
ATS_WITHOUT_OWN_MEMORY = (
    16 * 1024**3
)  # GH200 and GB200 address the host's memory too, and have more than this
ADDRESSING_ATS = 2


def collect(problems: Problems) -> list[dict[str, Any]]:
    import _ctypes

    try:
        # As ctypes.CDLL does. Without a driver pynvml and ctypes need not be imported: 7 % of `discover`.
        _ctypes.dlopen("libnvidia-ml.so.1")
    except OSError as e:
        if has_card():
            missing = "cannot open shared object file: No such file" in str(e)
            problem(
                problems,
                "NVIDIA GPU present, driver not installed"
                if missing
                else f"NVIDIA GPU present, its library cannot be loaded: {e}",
            )
        return []
    # pynvml imports ctypes.util and uses nothing of it; subprocess, tempfile and shutil come with it: 4 % of
    # `discover`.
    sys.modules.setdefault("ctypes.util", types.ModuleType("ctypes.util")).__dict__.setdefault(
        "find_library", None
    )
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as e:
        if e.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            problem(
                problems,
                f"Driver/library version mismatch: {e} The driver was updated under a running kernel: "
                "reboot or reload the driver",
            )
        elif e.value != pynvml.NVML_ERROR_DRIVER_NOT_LOADED or has_card():
            problem(problems, f"{e}")
        return []
    driver = query(pynvml, pynvml.nvmlSystemGetDriverVersion)
    cuda = query(pynvml, pynvml.nvmlSystemGetCudaDriverVersion_v2)
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpu = describe(pynvml, handle)
        except pynvml.NVMLError as e:
            problem(problems, f"GPU {index}: {e}")
            continue
        gpu.update(
            vendor="nvidia",
            index=index,
            driver=driver,
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        )
        found.append(gpu)
    return found


def container_obstacle(engine: dict[str, Any]) -> str | None:
    """Why Docker cannot give these GPUs to a container, as far as this node shows."""
    listed = "nvidia" in engine["runtimes"] or any(name.startswith("nvidia") for name in engine["cdi"])
    if listed or any(docker.find_program(p) for p in PROGRAMS):
        return None
    return "Docker cannot reach the GPU: install the NVIDIA Container Toolkit and restart Docker"


def problem(problems: Problems, message: str) -> None:
    problems.append({"source": "nvidia", "message": message})


def has_card() -> bool:
    """A display controller (class 0x03) of NVIDIA's on the PCI bus, driver or not."""
    devices = [f"/sys/bus/pci/devices/{name}/" for name in host.names_in("/sys/bus/pci/devices")]
    return any(
        host.read_or_none(d + "vendor") == "0x10de"
        and (host.read_or_none(d + "class") or "").startswith("0x03")
        for d in devices
    )


def query(pynvml: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """None when this GPU or this driver does not know; a GPU that has failed is an error."""
    fatal = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_UNINITIALIZED)
    try:
        return call(*arguments)
    except pynvml.NVMLError as e:
        if e.value in fatal:
            raise
        return None


def describe(pynvml: Any, handle: Any) -> dict[str, Any]:
    name = pynvml.nvmlDeviceGetName(handle)
    pci = query(pynvml, pynvml.nvmlDeviceGetPciInfo, handle)
    capability = query(pynvml, pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    power = query(pynvml, pynvml.nvmlDeviceGetPowerUsage, handle)
    limit = query(pynvml, pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    load = query(pynvml, pynvml.nvmlDeviceGetUtilizationRates, handle)
    mig = (query(pynvml, pynvml.nvmlDeviceGetMigMode, handle) or [0])[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    gpu = {
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "name": name,
        "pci_id": pci.busId if pci else None,
        "compute_capability": f"{capability[0]}.{capability[1]}" if capability else None,
        "power_watts": power / 1000 if power is not None else None,
        "power_limit_watts": limit / 1000 if limit is not None else None,
        "temperature_celsius": query(
            pynvml, pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU
        ),
        "utilization_percent": load.gpu if load else None,
        "display": query(pynvml, pynvml.nvmlDeviceGetDisplayActive, handle) == 1,
        "mig": mig,
        "mig_devices": mig_devices(pynvml, handle) if mig else [],
        "processes": running(pynvml, handle),
    }
    gpu.update(memory(pynvml, handle, name))
    return gpu


def is_unified(name: str) -> bool:
    words = " %s " % "".join(c if c.isalnum() else " " for c in name.upper())
    return any(" %s " % chip in words for chip in UNIFIED)


def memory(pynvml: Any, handle: Any, name: str) -> dict[str, Any]:
    figures, reserved = readings(pynvml, handle)
    small = figures is not None and figures.total <= ATS_WITHOUT_OWN_MEMORY
    if (
        is_unified(name)
        or figures is None
        or (small and query(pynvml, pynvml.nvmlDeviceGetAddressingMode, handle) == ADDRESSING_ATS)
    ):
        ram = host.memory()
        return {
            "memory_kind": "unified",
            "memory_total_bytes": ram["memory_total_bytes"],
            "memory_free_bytes": ram["memory_available_bytes"],
            "memory_used_bytes": ram["memory_total_bytes"] - ram["memory_available_bytes"],
            "memory_reserved_bytes": None,
        }
    return {
        "memory_kind": "dedicated",
        "memory_total_bytes": figures.total - (reserved or 0),
        "memory_free_bytes": figures.free,
        "memory_used_bytes": figures.used,
        "memory_reserved_bytes": reserved,
    }


def readings(pynvml: Any, handle: Any) -> tuple[Any, int | None]:
    """None when NVML says Not Supported, for want of memory to report; any other
    refusal is an error of this GPU.

    Version 2 parts off what the driver keeps (CUDA does not see that); version 1 counts it as used.
    Drivers before 510 have only 1."""
    figures = query(pynvml, pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if figures is not None:
        return figures, figures.reserved
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle), None
    except pynvml.NVMLError as e:
        if e.value == pynvml.NVML_ERROR_NOT_SUPPORTED:
            return None, None
        raise


def mig_devices(pynvml: Any, handle: Any) -> list[dict[str, Any]]:
    found = []
    for index in range(query(pynvml, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        slice_ = query(pynvml, pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if slice_ is None:
            continue
        figures, reserved = readings(pynvml, slice_)
        if figures is not None:
            found.append(
                {
                    "uuid": pynvml.nvmlDeviceGetUUID(slice_),
                    "name": pynvml.nvmlDeviceGetName(slice_),
                    "memory_total_bytes": figures.total - (reserved or 0),
                    "memory_free_bytes": figures.free,
                }
            )
    return found


def running(pynvml: Any, handle: Any) -> list[dict[str, Any]]:
    """Compute and graphics lists name a process that does both twice, with the same bytes."""
    found: dict[int, int | None] = {}
    for call in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        for process in query(pynvml, call, handle) or ():
            before, held = found.get(process.pid), process.usedGpuMemory
            found[process.pid] = held if before is None else before if held is None else max(before, held)
    return [
        {
            "pid": pid,
            "name": processes.name(pid) or f"pid {pid}",
            "user": processes.user(pid),
            "memory_bytes": held,
            "service": None,
        }
        for pid, held in sorted(found.items())
    ]
