"""Checkpoints of a pytree and of a little JSON: whole or not there, the newest few, and checked.

runs/.../checkpoints/
    000000100000/        one for each step that is kept
        state/           the arrays, by name; written by Orbax
        manifest.json    what the host has to know, and size and CRC-32 of every file in state/
    partial-*            being written or removed; never read

A folder gets its name, by one rename, when all that is in it is on disk. So a kill at any moment
leaves the last whole one. This knows no algorithm, no devices and no run.
"""

import dataclasses
import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# What the system says of a disk that takes no more; Orbax has it somewhere in a long message.
_DISK = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|Read-only file system"
)


class SaveError(Exception):
    """A checkpoint could not be written. One line; what was there before is untouched."""


class DamagedError(Exception):
    """A checkpoint is not what was written, or of another program. One line."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint on disk. `host`: the JSON that was saved with it."""

    path: Path
    host: dict[str, Any]

    def load(self) -> dict[str, np.ndarray]:
        """The arrays by name, as `save` took them."""
        return _orbax().restore(self.path.resolve() / "state")


def flatten(tree: Any, read: Callable[[Any], np.ndarray] = np.asarray) -> dict[str, np.ndarray]:
    """A pytree's leaves by name, such as "learner/critic/params", each through `read`.

    Leaves without elements are left out: Orbax takes none.
    """
    named = {name: leaf for name, leaf in _named(tree) if leaf.size}
    return {name: read(leaf) for name, leaf in named.items()}


def unflatten(like: Any, arrays: dict[str, np.ndarray], put: Callable[[np.ndarray, Any], Any]):
    """The inverse of `flatten`: a pytree like `like`, whose leaves are put(array, leaf of `like`).

    `arrays` is emptied on the way, for its memory.

    Raises:
      DamagedError: `arrays` are of another tree: a name is missing or too many.
    """
    wanted = {name for name, leaf in _named(like) if leaf.size}
    differing = sorted(wanted ^ set(arrays))
    if differing:
        raise DamagedError(f"it is of another version of this program ({differing[0]} differs)")
    leaves = [
        put(arrays.pop(name) if leaf.size else np.zeros(leaf.shape, leaf.dtype), leaf)
        for name, leaf in _named(like)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def save(folder: Path, step: int, arrays: dict[str, np.ndarray], host: dict, keep: int) -> Path:
    """Writes folder/{step} and then removes all but the newest `keep`; returns its path.

    It is on disk, and nothing reads `arrays` any more, when this returns. Checkpoints of later
    steps, which a resume has gone back behind, are removed too.

    Raises:
      SaveError: the disk is full, or takes it not for another reason.
    """
    folder = folder.resolve()
    final, partial = _path(folder, step), folder / "partial-new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove(*folder.glob("partial-*"))
        partial.mkdir()
        _orbax().save(partial / "state", args=ocp.args.PyTreeSave(arrays))
        content = {"host": host, "files": _files(partial / "state")}
        content["crc"] = _crc_of_json(content)
        (partial / "manifest.json").write_text(json.dumps(content, indent=1) + "\n")
        _sync(partial)
        _remove(final)  # damaged, or the resume would not have gone back behind it
        os.rename(partial, final)
        sync_entry(folder)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)  # what it took may be what others need
        before = [_path(folder, one) for one in steps(folder)]
        left = f"the last whole one is {before[-1]}" if before else "there is none before it"
        where = f"the checkpoint of step {step:,} in {folder}"
        raise SaveError(f"cannot write {where}: {_reason(error)}; {left}") from error
    past = [one for one in steps(folder) if one <= step]
    _remove(*(_path(folder, one) for one in steps(folder) if one not in past[-keep:]))
    return final


def steps(folder: Path) -> list[int]:
    """The steps of which `folder` has a checkpoint, ascending; not checked."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None. A warning on stderr for each that is damaged."""
    for step in reversed(steps(folder)):
        try:
            return at(folder, step)
        except DamagedError as error:
            text = f"warning: the checkpoint {_path(folder, step)} is damaged ({error})"
            print(f"{text}: going back to the one before", file=sys.stderr)
    return None


def at(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step.

    Raises:
      DamagedError: a file is missing or not as it was written.
    """
    path = _path(folder, step)
    try:
        content = json.loads((path / "manifest.json").read_text())
        crc = content.pop("crc")
        if crc != _crc_of_json(content):
            raise DamagedError("manifest.json is not as it was written")
        for name, expected in content["files"].items():
            if _size_and_crc(path / "state" / name) != expected:
                raise DamagedError(f"{name} is not as it was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{type(error).__name__}: {error}".splitlines()[0]) from None
    return Checkpoint(path, content["host"])


def _path(folder: Path, step: int) -> Path:
    return folder / f"{step:012d}"


def _orbax() -> ocp.Checkpointer:
    """Orbax as one process's own: of several, one writes and each reads for itself."""
    one = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        own = jax.process_index()
        one = ocp.options.MultiprocessingOptions(own, {own}, f"process-{own}")
    # Replay and parameters are noise to a compressor: it saved a tenth, in six times the time.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=one)
    return ocp.Checkpointer(handler, multiprocessing_options=one)


def _remove(*paths: Path) -> None:
    """Removes folders. A kill on the way leaves none that looks like a checkpoint."""
    for path in paths:
        if path.exists():
            away = path if path.name.startswith("partial-") else path.with_name("partial-old")
            if away != path:
                os.rename(path, away)
            shutil.rmtree(away)


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _size_and_crc(path) for path in paths}


def _size_and_crc(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _crc_of_json(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _sync(folder: Path) -> None:
    """Has the system write a folder and all below it to disk."""
    for path in (*folder.rglob("*"), folder):
        sync_entry(path)


def sync_entry(path: Path) -> None:
    """Has the system write a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    found = _DISK.search(str(error))
    if found or not isinstance(error, OSError):
        return found[0] if found else (str(error).strip().splitlines() or [type(error).__name__])[0]
    return error.strerror or str(error)
