"""The ring holds the newest transitions, and batches come from where they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness import replay


def rewards(*values):
    reward = jnp.asarray(values, jnp.float32)
    return {"obs": reward[:, None] * jnp.ones(3), "reward": reward}


def filled(capacity, inserts, num=4):
    ring = replay.init(jax.tree.map(lambda x: x[0], rewards(0)), capacity)
    for i in range(inserts):
        ring = replay.insert(ring, rewards(*range(num * i, num * (i + 1))))
    return ring


@pytest.mark.parametrize("inserts", [1, 3, 5, 7])
def test_ring_keeps_the_newest(inserts):
    ring = filled(12, inserts)
    kept = list(range(4 * inserts))[-12:]
    assert int(ring.size) == len(kept)
    assert sorted(np.asarray(ring.data["reward"])[: len(kept)]) == kept
    np.testing.assert_array_equal(ring.data["obs"][:, 1], ring.data["reward"])


def test_batches_mix_the_newest_with_all():
    batch = replay.sample(jax.random.key(0), filled(12, 5), (3, 200), 0.25, 4)
    drawn = np.asarray(batch["reward"])
    assert drawn.shape == (3, 200)
    assert set(drawn[:, :50].ravel()) == {16, 17, 18, 19}  # the newest, across the ring's seam
    assert set(drawn[:, 50:].ravel()) == set(range(8, 20))
    np.testing.assert_array_equal(batch["obs"][..., 2], drawn)


def test_a_part_filled_ring_gives_no_empty_row():
    ring = replay.insert(filled(100, 0), rewards(5, 6, 7, 8))
    drawn = replay.sample(jax.random.key(0), ring, (20, 100), 0.5, 50)["reward"]
    assert set(np.asarray(drawn).ravel()) == {5, 6, 7, 8}


def test_what_follows_is_drawn_with_each_transition():
    """`num` apart, so of the same environment; around the seam come the oldest."""
    windows = replay.sample(jax.random.key(0), filled(12, 5), (3, 200), 0.25, 4, (3, 4))
    drawn = np.asarray(windows["reward"])
    assert drawn.shape == (3, 200, 3)
    kept = np.arange(8, 20)
    expected = kept[(drawn[..., :1] - 8 + 4 * np.arange(3)).astype(int) % 12]
    np.testing.assert_array_equal(drawn, expected)
    single = replay.sample(jax.random.key(0), filled(12, 5), (3, 200), 0.25, 4)
    np.testing.assert_array_equal(drawn[..., 0], single["reward"])  # the same draws
    assert windows["obs"].shape == (3, 200, 3, 3)


def test_uniform_part_is_uniform():
    ring = filled(100, 25)
    drawn = replay.sample(jax.random.key(1), ring, (50, 1000), 0.0, 4)["reward"]
    counts = np.bincount(np.asarray(drawn, int).ravel(), minlength=100)
    statistic = ((counts - 500) ** 2 / 500).sum()  # chi-squared, 99 degrees of freedom
    assert statistic < 149  # its 99.9 % quantile


def test_capacity_must_be_a_multiple():
    with pytest.raises(ValueError, match="multiple"):
        replay.insert(filled(10, 0), rewards(1, 2, 3, 4))


def test_a_ring_of_half_precision_takes_and_gives_float32():
    example = {"obs": jnp.zeros(3, jnp.bfloat16), "done": jnp.zeros((), bool)}
    ring = replay.init(example, 4)
    obs = jnp.array([[1.0, 1 / 3, -2e6], [0.5, 1e-9, 7.0]])
    ring = replay.insert(ring, {"obs": obs, "done": jnp.array([True, False])})
    assert ring.data["obs"].dtype == jnp.bfloat16  # 2 bytes, half of float32
    batch = replay.sample(jax.random.key(0), ring, (1, 50), 0.0, 4)
    assert batch["obs"].dtype == jnp.float32
    assert batch["done"].dtype == bool
    expected = jnp.where(batch["done"][0][:, None], obs[0], obs[1])
    np.testing.assert_allclose(batch["obs"][0], expected, rtol=2**-8)
    assert not np.array_equal(batch["obs"][0], expected)  # rounded, so a half it was
