"""FlowRL's equations in plain numpy (float64), written from the paper and not from the code."""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def _norm(h, p):
    mean, variance = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
    return (h - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def _dense(h, p):
    return h @ p["kernel"] + p["bias"]


def _elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _gelu(x):
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def velocity(params, s, x, t):
    p = params["params"]
    h = np.concatenate([s, x, t], axis=1)
    h = _elu(_norm(_dense(h, p["Dense_0"]), p["LayerNorm_0"]))
    h = _elu(_norm(_dense(h, p["Dense_1"]), p["LayerNorm_1"]))
    return _dense(h, p["Dense_2"])


def _head(p, h):
    h = _norm(_dense(h, p["Dense_0"]), p["LayerNorm_0"])
    h = _gelu(_norm(_dense(h, p["Dense_1"]), p["LayerNorm_1"]))
    h = _gelu(_norm(_dense(h, p["Dense_2"]), p["LayerNorm_2"]))
    h = _norm(_dense(h, p["Dense_3"]), p["LayerNorm_3"])
    return _dense(h, p["Dense_4"])[:, 0]


def value(params, s):
    return _head(params["params"], s)


def twin_q(params, s, a):
    (heads,) = params["params"].values()
    sa = np.concatenate([s, a], axis=1)
    return [
        _head({k: {n: w[i] for n, w in v.items()} for k, v in heads.items()}, sa) for i in range(2)
    ]


def min_q(params, s, a):
    return np.minimum(*twin_q(params, s, a))


def act(theta, s, x0, steps, solver):
    """(1)"""
    x, h = x0, 1 / steps
    for k in range(steps):
        t = np.full((len(x0), 1), k / steps)
        if solver == "euler":
            x = x + h * velocity(theta, s, x, t)
        else:
            middle = x + h / 2 * velocity(theta, s, x, t)
            x = x + h * velocity(theta, s, middle, t + h / 2)
    return np.tanh(x)


def y(batch, next_value, gamma):
    return batch.reward + gamma * (1 - batch.terminated) * next_value


def critic_loss(params, batch, target):
    """(2), (3)"""
    q1, q2 = twin_q(params, batch.obs, batch.action)
    return np.mean((q1 - target) ** 2 + (q2 - target) ** 2)


def value_loss(params, s, q, expectile):
    """(4)"""
    total = 0.0
    for target, v in zip(q, value(params, s), strict=True):
        d = target - v
        total += (1 - expectile if d < 0 else expectile) * d**2
    return total / len(q)


def weight(q_behaviour, q_policy, coefficient, indicator=False):
    """(5)"""
    u = np.maximum(q_behaviour - q_policy, 0)
    w = np.clip(coefficient * np.exp(u - u.mean()), 1e-3, 1)
    return np.where(q_behaviour > q_policy, w, 0) if indicator else w


def flow_error(theta, batch, x0, t):
    """|v(s, x_t, t) - (a - x0)|^2 averaged over action dimensions, by sample."""
    x_t = t * batch.action + (1 - t) * x0
    return ((velocity(theta, batch.obs, x_t, t) - (batch.action - x0)) ** 2).mean(axis=1)


def policy_loss(theta, phi, batch, noise, w, args):
    """(6) for given weights w"""
    a = act(theta, batch.obs, noise.x0_policy, args.flow_steps, args.ode_solver)
    flow = flow_error(theta, batch, noise.x0_flow, noise.t)
    if args.w2_weighting == "per_sample":
        w2 = (w * flow).mean()
    else:
        w2 = w.mean() * flow.mean()
    return -min_q(phi, batch.obs, a).mean() + w2


# --- FlowRL with categorical critics: flowrl_hlgauss_jax.py's equations ---------------------------


def normal_obs(mean, var, s):
    """(7)"""
    return np.clip((s - mean) / np.sqrt(var + 1e-4), -10, 10)


def log_probabilities(params, head, s, a):
    """log p of (8), of one head: (B, K)."""
    (heads,) = params["params"].values()
    h = np.concatenate([s, a], axis=1)
    p = {k: {n: w[head] for n, w in v.items()} for k, v in heads.items()}
    h = _norm(_dense(h, p["Dense_0"]), p["LayerNorm_0"])
    h = _gelu(_norm(_dense(h, p["Dense_1"]), p["LayerNorm_1"]))
    h = _gelu(_norm(_dense(h, p["Dense_2"]), p["LayerNorm_2"]))
    logits = _dense(_norm(_dense(h, p["Dense_3"]), p["LayerNorm_3"]), p["Dense_4"])
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def categorical_q(params, head, s, a, low, high):
    """(8)"""
    p = np.exp(log_probabilities(params, head, s, a))
    width = (high - low) / p.shape[1]
    return sum(p[:, k] * (low + (k + 0.5) * width) for k in range(p.shape[1]))


def hl_gauss(y, low, high, bins):
    """(9): the mass of a normal around y in each bin, of its mass in all of them."""
    width = (high - low) / bins
    sigma, mass = 0.75 * width, np.zeros((len(y), bins))
    for i, value in enumerate(np.clip(y, low, high)):
        for k in range(bins):
            left, right = low + k * width, low + (k + 1) * width
            z = [(edge - value) / (sigma * math.sqrt(2)) for edge in (left, right)]
            mass[i, k] = (math.erf(z[1]) - math.erf(z[0])) / 2
    return mass / mass.sum(axis=1, keepdims=True)


def cross_entropy(params, head, batch, target):
    """(2), (3) of one head."""
    log_p = log_probabilities(params, head, batch.obs, batch.action)
    return -np.mean((target * log_p).sum(axis=1))


# --- Soft Actor-Critic: sac_jax.py's equations ----------------------------------------------------


def gaussian(theta, s):
    """Mean and log standard deviation before the tanh; the latter in [-5, 2]."""
    p = theta["params"]
    h = _elu(_norm(_dense(s, p["Dense_0"]), p["LayerNorm_0"]))
    h = _elu(_norm(_dense(h, p["Dense_1"]), p["LayerNorm_1"]))
    return _dense(h, p["Dense_2"]), 3.5 * np.tanh(_dense(h, p["Dense_3"])) - 1.5


def draw(theta, s, noise):
    """(1) and (2), as the density of a normal over the slope of tanh; not for large |u|."""
    mean, log_std = gaussian(theta, s)
    u, std = mean + np.exp(log_std) * noise, np.exp(log_std)
    density = np.exp(-(((u - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
    return np.tanh(u), np.log(density / np.cosh(u) ** -2).sum(axis=1)


def soft_y(theta, target, alpha, batch, noise, gamma):
    """The target of (3)."""
    a, log_prob = draw(theta, batch.next_obs, noise)
    return y(batch, min_q(target, batch.next_obs, a) - alpha * log_prob, gamma)


def sac_policy_loss(theta, phi, alpha, s, noise):
    """(4)"""
    a, log_prob = draw(theta, s, noise)
    return np.mean(alpha * log_prob - min_q(phi, s, a))
