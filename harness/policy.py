"""A policy that turns noise into actions: how it is evaluated, saved and loaded, for any algorithm.

a = act(params, s, noise, args), without noise (zeros) the deterministic action
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from harness import runs
from harness.contract import Act, Algorithm, Metrics, State


@dataclasses.dataclass(frozen=True)
class Policy:
    """What an algorithm's file says of its policy. O, A: sizes of observations and actions.

    network: its name among the learner's networks.
    act: (params, obs (..., O), noise (..., A), args) -> actions (..., A), in [-1, 1].
    noise: (key, shape (..., A)) -> what `act` takes in training.
    sizes: params -> (O, A).
    pack: (params, args as a dict) -> the content of policy.npz, for numpy_policy.py.
    """

    network: str
    act: Callable[[Any, Array, Array, Any], Array]
    noise: Callable[[Array, tuple[int, ...]], Array]
    sizes: Callable[[Any], tuple[int, int]]
    pack: Callable[[Any, Mapping], bytes]

    @functools.partial(jax.jit, static_argnames=("self", "env", "args"))
    def evaluate(self, learner: Any, start: Any, key: Array, env: Any, args: Any):
        """Returns of one episode in each environment from `start` on, (N / 2,) each of two kinds.

        The first half acts with noise, "sampled", the other without, "deterministic".
        """
        params = getattr(learner, self.network).params
        sampled = (jnp.arange(env.num_envs) < env.num_envs // 2)[:, None]

        def step(carry: tuple[Any, Array, Array], key: Array):
            state, returns, alive = carry
            noise = sampled * self.noise(key, (env.num_envs, env.action_size))
            state = env.step(state, self.act(params, state.obs, noise, args))
            returns = returns + alive * state.reward
            return (state, returns, alive & ~(state.terminated | state.truncated)), None

        start = (start, jnp.zeros(env.num_envs), jnp.ones(env.num_envs, bool))
        (_, returns, _), _ = jax.lax.scan(step, start, jax.random.split(key, env.episode_length))
        return dict(zip(("sampled", "deterministic"), returns.reshape(2, -1), strict=True))

    def charts(self, state: State, key: Array, env: Any, args: Any) -> Metrics:
        """What is logged of policy and environments as they are: scalars by name.

        The standard deviation of actions is over 64 draws of noise at one state, the mean over up
        to 8 states and the dimensions: what a policy has of exploration.
        """
        params, obs = getattr(state.learner, self.network).params, state.env.obs[:8]
        noise = self.noise(key, (64, len(obs), env.action_size))
        actions = jax.vmap(lambda noise: self.act(params, obs, noise, args))(noise)
        return {
            "charts/action_std": jnp.mean(jnp.std(actions, axis=0)),
            "charts/nonfinite_states": jnp.sum(state.env.nonfinite_count),
        }

    def export(self, learner: Any, args: Any) -> dict[str, bytes]:
        """What a run leaves: all networks, online and target, and the policy alone, for numpy."""
        params = {name: getattr(net, "params", net) for name, net in vars(learner).items()}
        packed = self.pack(params[self.network], dataclasses.asdict(args))
        return {"params.msgpack": flax.serialization.to_bytes(params), "policy.npz": packed}

    def algorithm(self, name, args, presets, bounds, init_state, train_chunk, kinds) -> Algorithm:
        """An Algorithm, as contract.py has its fields, with this policy."""
        made = Algorithm(
            name=name,
            args=args,
            presets=presets,
            bounds=bounds,
            init_state=init_state,
            train_chunk=train_chunk,
            evaluate=self.evaluate,
            export=self.export,
            load_policy=lambda folder: self.load(made, folder),
            kinds=kinds,
        )
        return made

    def load(self, algorithm: Algorithm, folder: str | Path) -> Act:
        """Returns `act(obs, key=None)`: (..., O) -> (..., A) in [-1, 1], of a run's policy.

        With a key noise is drawn as in training; without there is none. `act` raises ValueError for
        observations of another size.

        Raises:
          RunError: the folder is not of a run of the algorithm.
          FileNotFoundError, ValueError, KeyError: nothing was saved in it, or it cannot be read.
        """
        args, data = runs.read_args(algorithm, folder), Path(folder, "params.msgpack").read_bytes()
        params = flax.serialization.msgpack_restore(data)[self.network]
        obs_size, action_size = self.sizes(params)

        @jax.jit
        def act(obs: ArrayLike, key: Array | None = None) -> Array:
            obs = jnp.asarray(obs)
            if obs.shape[-1:] != (obs_size,):
                raise ValueError(f"obs has shape {obs.shape}, this policy needs (..., {obs_size})")
            shape = (*obs.shape[:-1], action_size)
            noise = jnp.zeros(shape) if key is None else self.noise(key, shape)
            return self.act(params, obs, noise, args)

        return act
