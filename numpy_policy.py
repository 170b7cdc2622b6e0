"""A trained policy in numpy alone, for a loop of your own. Copy this file and `policy.npz`.

    import numpy_policy
    act = numpy_policy.load("policy.npz")
    action = act(obs)  # obs (O,) or (B, O); act(obs, np.random.default_rng(0)) draws noise

It is equation (1) of flowrl_jax.py, flowrl_hlgauss_jax.py and sac_jax.py a second time, in float32;
tests compare them. Which of them a file is of, what is in it tells.
"""

import io
import os
from collections.abc import Callable, Mapping

import numpy as np


def _dense(h: np.ndarray, p: dict[str, np.ndarray], name: str) -> np.ndarray:
    return h @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def _trunk(h: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    """Twice dense, LayerNorm, ELU."""
    for k in (0, 1):
        h = _dense(h, p, f"Dense_{k}")
        h = h - h.mean(-1, keepdims=True)
        h = h / np.sqrt(np.square(h).mean(-1, keepdims=True) + np.float32(1e-5))
        h = h * p[f"LayerNorm_{k}/scale"] + p[f"LayerNorm_{k}/bias"]
        h = np.where(h > 0, h, np.expm1(np.minimum(h, 0)))
    return h


SETTINGS = ("flow_steps", "ode_solver", "log_std")  # FlowRL's two; SAC's lowest and highest


def pack(params: Mapping, settings: Mapping) -> bytes:
    """The contents of `policy.npz`.

    params: of the policy's network, {"params": {layer: {name: array}}}. settings: those of SETTINGS
    that its kind of policy has; others, such as all of a run's arguments, are left out.
    """
    layers = params["params"].items()
    arrays = {f"{layer}/{name}": np.asarray(x) for layer, p in layers for name, x in p.items()}
    file = io.BytesIO()
    np.savez(file, **arrays, **{name: settings[name] for name in SETTINGS if name in settings})
    return file.getvalue()


def load(path: str | os.PathLike) -> Callable[..., np.ndarray]:
    """Returns `act(obs, rng=None)`: (..., O) -> (..., A) float32 in [-1, 1].

    path: a run folder, or the `policy.npz` of one. With a numpy Generator noise is drawn as in
    training; without, there is none. A policy trained with --compute-dtype bfloat16 is computed in
    float32 too. `act` raises ValueError for observations of another size.
    """
    path = os.path.join(path, "policy.npz") if os.path.isdir(path) else path
    with np.load(path) as file:
        p = dict(file)
    is_flow, action_size = "flow_steps" in p, len(p["Dense_2/bias"])
    obs_size = len(p["Dense_0/kernel"]) - (action_size + 1 if is_flow else 0)

    def act(obs: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        obs = np.asarray(obs, np.float32)
        if obs.shape[-1:] != (obs_size,):
            raise ValueError(f"obs has shape {obs.shape}, this policy needs (..., {obs_size})")
        if "obs/mean" in p:  # of flowrl_hlgauss_jax.py: normalised
            obs = ((obs - p["obs/mean"]) / p["obs/std"]).clip(-p["obs/max"], p["obs/max"])
        noise = np.zeros((*obs.shape[:-1], action_size), np.float32)
        if rng is not None:
            noise = rng.standard_normal(noise.shape, np.float32)
        return np.tanh(_flow(p, obs, noise) if is_flow else _gaussian(p, obs, noise))

    return act


def _gaussian(p: dict[str, np.ndarray], obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """SAC's mu(s) + sigma(s) eps."""
    h, (low, high) = _trunk(obs, p), p["log_std"].astype(np.float32)
    log_std = low + (high - low) * (np.tanh(_dense(h, p, "Dense_3")) + 1) / 2
    return _dense(h, p, "Dense_2") + np.exp(log_std) * noise


def _flow(p: dict[str, np.ndarray], obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """FlowRL's x_N, from x_0 = clip(noise)."""
    steps, solver, x = int(p["flow_steps"]), str(p["ode_solver"]), noise.clip(-1, 1)
    h = np.float32(1 / steps)

    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        time = np.full((*x.shape[:-1], 1), t, np.float32)
        return _dense(_trunk(np.concatenate([obs, x, time], axis=-1), p), p, "Dense_2")

    for k in range(steps):
        t = k / steps
        k1 = velocity(x, t)
        if solver == "euler":
            x = x + h * k1
            continue
        k2 = velocity(x + h / 2 * k1, t + h / 2)
        if solver == "midpoint":
            x = x + h * k2
            continue
        k3 = velocity(x + h / 2 * k2, t + h / 2)  # rk4
        k4 = velocity(x + h * k3, t + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x
