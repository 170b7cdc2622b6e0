"""What a checkpoint costs: `python benchmarks/checkpoint_cost.py [--folder DIR]`.

Size on disk, seconds that training waits for one, and seconds to check and read it, with the
replay and without, for humanoid-run in each preset. Rows go to checkpoint_cost.csv beside this
file. The disk is the one of --folder; the default is the one of runs/.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import throughput  # noqa: I001  # before jax: it sets MUJOCO_GL

import jax

from harness import checkpoints
import envs
import flowrl_jax as flowrl
from harness import parallel


def measure(preset: str, with_replay: bool, folder: Path) -> dict[str, str]:
    """One checkpoint of the state at the start, of the sizes that it has all along."""
    args = flowrl.Args(env_id="humanoid-run", preset=preset, **flowrl.PRESETS[preset])
    env = envs.make(args.env_id, args.num_envs, "native")
    state = flowrl.init_state(env, args)
    if not with_replay:
        state = state.replace(replay=None)
    state = jax.block_until_ready(state)
    start = time.perf_counter()
    arrays = checkpoints.flatten(state, parallel.Devices(args).gather)
    path = checkpoints.save(folder, args.buffer_size, arrays, {}, keep=1)
    saved = time.perf_counter()
    checkpoints.newest(folder).load()
    loaded = time.perf_counter()
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "preset": preset,
        "replay": "with" if with_replay else "without",
        "transitions": str(args.buffer_size) if with_replay else "0",
        "MiB": f"{size / 2**20:.1f}",
        "save, s": f"{saved - start:.2f}",
        "check and read, s": f"{loaded - saved:.2f}",
    }


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description="what a checkpoint costs")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for preset in flowrl.PRESETS:
        for with_replay in (True, False):
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                row = measure(preset, with_replay, Path(folder))
            throughput.write("checkpoint_cost", ("preset", "replay"), row | throughput.conditions())


if __name__ == "__main__":
    main()
