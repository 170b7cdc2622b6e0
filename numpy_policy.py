"""A trained policy in numpy alone, for a loop of your own. Copy this file and `policy.npz`.

    import numpy_policy
    act = numpy_policy.load("policy.npz")
    action = act(obs)  # obs (O,) or (B, O); act(obs, np.random.default_rng(0)) samples x0

It is equation (1) of flowrl_jax.py a second time, in float32; a test compares the two.
"""

import io
import os
from collections.abc import Callable, Mapping

import numpy as np


def _dense(h: np.ndarray, p: dict[str, np.ndarray], name: str) -> np.ndarray:
    return h @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def _dense_norm_elu(h: np.ndarray, p: dict[str, np.ndarray], k: int) -> np.ndarray:
    h = _dense(h, p, f"Dense_{k}")
    h = h - h.mean(-1, keepdims=True)
    h = h / np.sqrt(np.square(h).mean(-1, keepdims=True) + np.float32(1e-5))
    h = h * p[f"LayerNorm_{k}/scale"] + p[f"LayerNorm_{k}/bias"]
    return np.where(h > 0, h, np.expm1(np.minimum(h, 0)))


def pack(params: Mapping, args: Mapping) -> bytes:
    """The contents of `policy.npz`.

    params: of the velocity field, {"params": {layer: {name: array}}}. args: the run's, which
    have flow_steps and ode_solver.
    """
    layers = params["params"].items()
    arrays = {f"{layer}/{name}": np.asarray(x) for layer, p in layers for name, x in p.items()}
    file = io.BytesIO()
    np.savez(file, **arrays, flow_steps=args["flow_steps"], ode_solver=args["ode_solver"])
    return file.getvalue()


def load(path: str | os.PathLike) -> Callable[..., np.ndarray]:
    """Returns `act(obs, rng=None)`: (..., O) -> (..., A) float32 in [-1, 1].

    path: a run folder, or the `policy.npz` of one. With a numpy Generator x0 is sampled as in
    training; without, x0 = 0. A policy trained with --compute-dtype bfloat16 is computed in float32
    too. `act` raises ValueError for observations of another size.
    """
    path = os.path.join(path, "policy.npz") if os.path.isdir(path) else path
    with np.load(path) as file:
        p = dict(file)
    steps, solver = int(p.pop("flow_steps")), str(p.pop("ode_solver"))
    h, action_size = np.float32(1 / steps), len(p["Dense_2/bias"])
    obs_size = len(p["Dense_0/kernel"]) - action_size - 1

    def velocity(obs: np.ndarray, x: np.ndarray, t: float) -> np.ndarray:
        time = np.full((*x.shape[:-1], 1), t, np.float32)
        hidden = np.concatenate([obs, x, time], axis=-1)
        for k in (0, 1):
            hidden = _dense_norm_elu(hidden, p, k)
        return _dense(hidden, p, "Dense_2")

    def act(obs: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        obs = np.asarray(obs, np.float32)
        if obs.shape[-1:] != (obs_size,):
            raise ValueError(f"obs has shape {obs.shape}, this policy needs (..., {obs_size})")
        x = np.zeros((*obs.shape[:-1], action_size), np.float32)
        if rng is not None:
            x = rng.standard_normal(x.shape, np.float32).clip(-1, 1)
        for k in range(steps):
            t = k / steps
            k1 = velocity(obs, x, t)
            if solver == "euler":
                x = x + h * k1
                continue
            k2 = velocity(obs, x + h / 2 * k1, t + h / 2)
            if solver == "midpoint":
                x = x + h * k2
                continue
            k3 = velocity(obs, x + h / 2 * k2, t + h / 2)  # rk4
            k4 = velocity(obs, x + h * k3, t + h)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return np.tanh(x)

    return act
