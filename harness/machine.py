"""What a run notes of the machine and the code, and what it asks of them."""

import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "orbax-checkpoint")
PACKAGES += ("mujoco", "mujoco-mjx", "dm-control", "tensorboardX", "tyro")
PACKAGES += ("brax", "playground")  # optional; null where absent


def versions() -> dict[str, str | None]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_state(folder: Path) -> dict | None:
    """Commit of the code in `folder` and whether its tracked files were changed since.

    Of those not what `--evaluate` adds to where policies are kept: no run depends on it.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # a repository, and this one
        paths = (":(top)", ":(top,exclude)policies")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", *paths)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> dict:
    cpu = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        cpu = found[1] if found else cpu
    except OSError:
        pass
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return {
        "cpu": cpu,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": round(_physical_memory() / 2**30, 1),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
    }


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def accelerators() -> int:
    """How many devices JAX computes on that are no CPU."""
    try:
        return sum(device.platform != "cpu" for device in jax.devices())
    except RuntimeError:  # what JAX_PLATFORMS asks for is not there
        return 0


def device_memory_bytes() -> int | None:
    """Free bytes on JAX's default device: an accelerator's own, or the host's. None if unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
        free = int(found[1]) * 1024
    except (OSError, TypeError):  # not Linux
        free = _physical_memory()
    return min(free, _cgroup_free())


def _cgroup_free() -> float:
    """Bytes that a container's limit leaves (cgroup v2); infinity without one."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        cache = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.M)
        return limit - int((group / "memory.current").read_text()) + int(cache[1])
    except (OSError, ValueError, TypeError):  # no such file, or the word "max"
        return math.inf


def enable_compilation_cache(path: Path | None = None) -> Path | None:
    """Turns on JAX's persistent compilation cache and returns its folder, or None without one.

    The folder is `path`, else $JAX_COMPILATION_CACHE_DIR, else ~/.cache/flowrl_jax/xla. One that
    cannot be written costs compile time only: it is said on stderr, and training goes on.
    """
    path = Path(path or os.environ.get("JAX_COMPILATION_CACHE_DIR") or "~/.cache/flowrl_jax/xla")
    try:
        path = path.expanduser()
        path.mkdir(parents=True, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(dir=path))
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        print(f"no compilation cache: {error}", file=sys.stderr)
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # also the small
    return path
