"""What every task is made of: a `Task`, and the `Physics` that it looks at."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import mujoco

ENGINES = ("native", "mjx", "warp")


@flax.struct.dataclass
class Physics:
    """What a task may look at: one environment's physics after a control step (no batch axis)."""

    qpos: jax.Array  # (nq,)  generalised positions
    qvel: jax.Array  # (nv,)  generalised velocities
    act: jax.Array  # (na,)  actuator activations
    ctrl: jax.Array  # (nu,)  control applied during the step, in the actuators' own units
    sensors: dict[str, jax.Array]  # sensor name -> (dim,)
    episode: dict[str, jax.Array]  # (k, dim) by field of the model: what this episode changed;
    # and what the task remembers, (1, 1) each


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of one domain, independent of the engine that will step it.

    Attributes:
      domain, name: dm_control's names, where it has the task; the id is `domain-name`.
      model: the original model plus the named sensors that `observe` and `reward` read.
      observe: Physics -> (O,) observation, the original's entries in the original's order.
      reward: Physics -> () reward.
      terminated: Physics -> () bool, or None for a task that only ends by its time limit.
      episode: what a reset changes in the model: field of MjModel -> names of the elements whose
        rows it draws; no names: all rows.
      differences: what differs from the original, for the table of tasks; empty for nothing.
      cannot: the engines that cannot step it, each with the reason, for the table of tasks.
      mjx_floor: on `mjx`, the geoms that touch anything, and then only `mjx_obstacles`; no names:
        all contacts of the model.
      mjx_obstacles: geoms that they touch.
      memory: what the task remembers within an episode, by its value at the start; it stands in
        `Physics.episode` as (1, 1).
      remember: Physics -> those values after a control step.
      success: the return of an episode that counts as success, or None.
      starts: seed -> the initial states, with the attributes of `InitialStates`; None for
        dm_control's.
      prepare: changes dm_control's own environment of the task, once, so that its resets draw
        all that an episode changes, and need no display; None for one that does so as it is.
      time_limit: of an episode, s, where dm_control's has none; None for dm_control's.
    """

    domain: str
    name: str
    model: mujoco.MjModel
    observe: Callable[[Physics], jax.Array]
    reward: Callable[[Physics], jax.Array]
    terminated: Callable[[Physics], jax.Array] | None = None
    episode: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    differences: str = ""
    cannot: dict[str, str] = dataclasses.field(default_factory=dict)
    mjx_floor: tuple[str, ...] = ()
    mjx_obstacles: tuple[str, ...] = ("floor",)
    memory: dict[str, float] = dataclasses.field(default_factory=dict)
    remember: Callable[[Physics], dict[str, jax.Array]] | None = None
    success: float | None = None
    starts: Callable[[int], Any] | None = None
    prepare: Callable[[Any], None] | None = None
    time_limit: float | None = None

    @property
    def engines(self) -> tuple[str, ...]:
        """Those that can step it."""
        return tuple(engine for engine in ENGINES if engine not in self.cannot)
