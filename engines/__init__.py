"""What steps physics: an engine takes a batch of states and controls and knows no task.

    state, sensordata, overflow = engine.step(state, ctrl, episode)

`native.py` is MuJoCo in C, `mjx.py` MJX as XLA code, `warp.py` MJX on MuJoCo Warp.
"""

import flax.struct
import jax


@flax.struct.dataclass
class PhysicsState:
    """What an engine steps: everything that the next physics step depends on."""

    qpos: jax.Array  # (N, nq)
    qvel: jax.Array  # (N, nv)
    act: jax.Array  # (N, na)
    warmstart: jax.Array  # (N, nv)  accelerations from which the constraint solver starts
