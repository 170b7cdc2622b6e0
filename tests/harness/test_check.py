"""What benchmark.sh asks before it makes anything: whether a program would take these flags."""

import pytest

from harness import check


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--engine foo", "error: --engine: 'foo' is not one of auto, native, mjx, warp"),
        ("--engine dm_control", "error: --engine: 'dm_control' is not one of"),
        ("--num-threads=-1", "error: --num-threads: needs 0"),
        ("--warp-headroom nan", "error: --warp-headroom: needs more than 0"),
        ("--gamma abc", "error: --gamma: 'abc' is no number"),
        ("--gamma 2", "error: --gamma: needs"),
    ],
)
@pytest.mark.parametrize("name", ["flowrl_jax", "flowrl_hlgauss_jax", "sac_jax"])
def test_what_no_task_could_have_is_one_line(name, flags, says, capsys):
    assert check.main(name, *flags.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(says)
    assert said.count("\n") == 1


@pytest.mark.parametrize("flags", ["", "--preset gpu", "--engine warp", "--engine spring"])
def test_what_a_task_could_have_is_taken(flags, capsys):
    """Also engines of other libraries: which task it is for is not known here."""
    assert check.main("flowrl_jax", *flags.split()) == 0
    assert capsys.readouterr().err == ""
