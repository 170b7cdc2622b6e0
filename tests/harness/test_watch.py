"""Evaluation, videos and the exported policy, each against another way to the same numbers."""

import csv
import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import scipy.stats
from scripts import run_script
from small import init_learner

import envs
import flowrl_jax as flowrl
import numpy_policy
from harness import command_line, film, machine, runs, watch

ROOT = Path(watch.__file__).parents[1]
TINY = dict(env_id="cartpole-balance", hidden_size=8, num_envs=2, eval_episodes=10, seed=3)


@pytest.fixture(autouse=True)
def no_cache_of_the_user(monkeypatch):
    """Programs go where conftest.py says."""
    monkeypatch.setattr(machine, "enable_compilation_cache", lambda: None)


def saved_run(runs_dir: Path, **changes) -> Path:
    """A finished run folder with an untrained policy."""
    args = dataclasses.replace(flowrl.Args(), **(TINY | changes))
    config = dataclasses.asdict(args)
    learner = init_learner(jax.random.key(0), 5, 1, args)
    with runs.Run.create(runs_dir, args.env_id, "flowrl_jax", args.seed, config) as run:
        for name, content in flowrl.POLICY.export(learner, args).items():
            run.save_bytes(name, content)
    return run.folder


def command(*flags: str, monkeypatch) -> int:
    """The program's exit code, in this process."""
    monkeypatch.setattr(sys, "argv", ["flowrl_jax.py", *map(str, flags)])
    return command_line.exit_code(flowrl.main, flowrl.ALGORITHM, envs.UsageError)


@jax.jit
def balance(obs, key=None):
    """A policy by hand that holds the pole: (B, 5) -> (B, 1); with a key, with noise."""
    gains = jnp.array([0.3, 0.0, 6.0, 0.6, 1.5])
    noise = 0.0 if key is None else 0.1 * jax.random.normal(key, (len(obs),))
    return jnp.tanh(obs @ gains + noise)[:, None]


@jax.jit
def swim(obs, key=None):
    """Something smooth for the fish, each of whose episodes has a target: (B, 24) -> (B, 5)."""
    return 0.5 * jnp.sin(obs[:, :5])


@jax.jit
def hold(obs, key=None):
    """Something that brings lqr's first mass to rest: (B, 4) -> (B, 1)."""
    return -0.5 * obs[:, 2:3]


# --- playing --------------------------------------------------------------------------------------

PLAYED = (("cartpole-balance", balance), ("fish-swim", swim), ("lqr-lqr_2_1", hold))


@pytest.mark.parametrize(("env_id", "act"), PLAYED)
def test_returns_are_those_of_the_original_environment(env_id, act):
    env = envs.make(env_id, 3, "native", seed=11, num_threads=1)
    ours = watch.play(env, act, env.first_states(), jax.jit(env.step))
    original = watch.play_original(envs.make_original(env_id, 11), act, 3)
    np.testing.assert_allclose(ours.returns, original.returns, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(ours.lengths, original.lengths)
    assert np.ptp(ours.returns) > 0.02, "three different initial states"
    # The poses that are drawn begin alike and stay alike, and so does what the episode changed.
    np.testing.assert_allclose(ours.motion.qpos, original.motion.qpos, atol=1e-3)
    for field in ("geom_pos", "jnt_stiffness"):
        mine, its = (getattr(played.motion.model, field) for played in (ours, original))
        np.testing.assert_allclose(mine, its, atol=1e-6)
    assert ours.motion.timestep == pytest.approx(original.motion.timestep)
    assert len(ours.motion.qpos) == env.episode_length


def test_an_invalid_state_ends_an_episode_of_the_original():
    original, action = envs.make_original("cartpole-balance", 11), np.zeros(1)
    original.reset()
    assert not original.step(action)[2]
    original._env.physics.data.qvel[:] = np.nan
    obs, reward, over = original.step(action)
    assert (obs.shape, reward, over) == ((5,), 0.0, True)
    original.reset()
    obs, reward, over = original.step(action)
    assert np.isfinite(obs).all()
    assert not over


def test_sampled_episodes_repeat_by_key():
    env = envs.make("cartpole-balance", 2, "native", num_threads=1)
    env.episode_length = 100
    start, step = env.first_states(), jax.jit(env.step)
    played = [
        watch.play(env, balance, start, step, key=k).returns for k in map(jax.random.key, (1, 1, 2))
    ]
    np.testing.assert_array_equal(played[0], played[1])
    assert not np.array_equal(played[0], played[2])
    assert not np.array_equal(played[0], watch.play(env, balance, start, step).returns)


def test_what_comes_after_an_end_does_not_count():
    class Ends:
        """Rewards 1; environment k ends after k + 1 steps, and then rewards nan."""

        num_envs, episode_length = 3, 10

        def drawn_model(self, state):
            return None

        def step(self, state, action):
            count = state.count + 1
            ended = count > jnp.arange(1, 4)
            return state.replace(
                count=count,
                reward=jnp.where(ended, jnp.nan, 1.0),
                terminated=count == jnp.arange(1, 4),
            )

        def check(self, returns):
            return returns

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class State:
        count: jax.Array
        reward: jax.Array
        terminated: jax.Array
        truncated: jax.Array
        obs: jax.Array
        replace = dataclasses.replace

    no = jnp.zeros(3, bool)
    start = State(jnp.zeros(3, int), jnp.zeros(3), no, no, jnp.zeros((3, 5)))
    env = Ends()
    played = watch.play(env, balance, start, env.step)
    np.testing.assert_array_equal(played.returns, [1, 2, 3])
    np.testing.assert_array_equal(played.lengths, [1, 2, 3])
    assert played.motion is None


# --- statistics -----------------------------------------------------------------------------------


def test_interval_covers_the_mean_as_often_as_it_says():
    random, hits = np.random.default_rng(0), 0
    for trial in range(200):
        low, high = watch.mean_interval(random.exponential(1.0, 60), trial)
        hits += low <= 1.0 <= high
    # 95 of 100, a little less for a skewed distribution; 3 standard deviations are 9 of 200.
    assert 0.89 <= hits / 200 <= 0.985


def test_interval_stays_within_what_was_seen_and_is_nothing_for_one_value():
    returns = np.array([0.0] * 50 + [1000.0])
    low, high = watch.mean_interval(returns)
    assert 0 <= low < returns.mean() < high < 100
    student = scipy.stats.t.interval(0.95, 50, returns.mean(), scipy.stats.sem(returns))
    assert student[0] < 0, (
        "what Student's interval would have said of returns that are never below 0"
    )
    assert watch.mean_interval(np.full(20, 7.0)) == (7.0, 7.0)


def test_success_is_a_share_with_its_interval():
    returns = np.array([1.0, 2.0, 3.0, 4.0])
    episodes = watch.Episodes(returns, np.array([1, 2, 3, 6]), None)
    row = watch.summary(episodes, success=3.0)
    assert (row["success"], row["length"], row["mean"]) == (0.5, 3.0, 2.5)
    assert row["std"] == pytest.approx(np.std(returns, ddof=1))
    assert row["success_low"] == pytest.approx(0.150, abs=1e-3)  # Wilson's, of 2 in 4
    assert row["success_high"] == pytest.approx(0.850, abs=1e-3)
    assert watch.summary(episodes, None)["success"] is None
    shown = watch.table([row | {"kind": "sampled"}], 3.0, flowrl.ALGORITHM.kinds)
    assert "0.50 [0.15, 0.85]" in shown
    assert "success" not in watch.table([row | {"kind": "sampled"}], None, flowrl.ALGORITHM.kinds)


# --- the command ----------------------------------------------------------------------------------


def test_statistics_are_not_imported_before_they_are_needed():
    """A third of the time of `--help`, of a bad flag and of each training's start."""
    script = """
        import sys, flowrl_jax, harness.watch
        print("scipy.stats" in sys.modules, end=" ")
        harness.watch.mean_interval(harness.watch.np.arange(3.0))
        print("scipy.stats" in sys.modules)
    """
    assert run_script(script).communicate(timeout=120)[0].split() == ["False", "True"]


def test_evaluation_is_added_to_the_run_folder(tmp_path, monkeypatch, capsys):
    folder, calls = saved_run(tmp_path), [("native", 3), ("native", 3), ("dm_control", 3)]
    flags = ["--evaluate", folder, "--eval-episodes", 2, "--num-threads", 1, "--seed", 3]
    for engine, _ in calls:
        assert command(*flags, "--engine", engine, monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [folder]
    with (folder / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    records = json.loads((folder / "evaluation.json").read_text())
    for row, record in zip(rows, records, strict=True):
        assert float(row["mean"]) == record["mean"] == pytest.approx(np.mean(record["returns"]))
        assert len(record["returns"]) == int(row["episodes"]) == 2
        assert float(row["low"]) < float(row["mean"]) < float(row["high"])
        assert row["jax"] == jax.__version__
        assert row["mujoco"] == mujoco.__version__
        assert f"{record['mean']:.1f}" in shown
    assert "95% interval" in shown
    names = [(row["engine"], int(row["seed"]), row["kind"]) for row in rows]
    assert names == [(*call, kind) for call in calls for kind in ("sampled", "deterministic")]
    first, again, original = (records[k : k + 2] for k in (0, 2, 4))
    assert [r["returns"] for r in first] == [r["returns"] for r in again], "a seed repeats"
    # An untrained policy lets the pole fall, which doubles a difference many times: first digits.
    np.testing.assert_allclose(first[1]["returns"], original[1]["returns"], rtol=0.05)


def test_two_evaluations_at_once_are_both_kept(tmp_path, monkeypatch):
    folder, play, flags = saved_run(tmp_path), watch._played, ("--eval-episodes", 2, "--seed")

    def another_meanwhile(*arguments):
        monkeypatch.setattr(watch, "_played", play)
        assert command("--evaluate", folder, *flags, 6, monkeypatch=monkeypatch) == 0
        return play(*arguments)

    monkeypatch.setattr(watch, "_played", another_meanwhile)
    assert command("--evaluate", folder, *flags, 5, monkeypatch=monkeypatch) == 0
    records = json.loads((folder / "evaluation.json").read_text())
    assert [record["seed"] for record in records] == [6, 6, 5, 5]


def damage(name: str, data: bytes | None):
    def change(folder: Path) -> None:
        (folder / name).unlink() if data is None else (folder / name).write_bytes(data)

    return change


def set_args(**changes):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["args"] |= changes
        (folder / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("change", "flags", "says"),
    [
        (damage("config.json", None), [], "--evaluate"),
        (damage("config.json", b"{"), [], "config.json is damaged"),
        (damage("config.json", b"[]"), [], "config.json is damaged"),
        (damage("params.msgpack", None), [], "params.msgpack"),
        (damage("params.msgpack", b"\x00\x01"), [], "cannot be read"),
        (damage("params.msgpack", b""), [], "cannot be read"),
        (damage("evaluation.json", b"{}"), [], "evaluation.json"),
        (damage("evaluation.json", b"nonsense"), [], "evaluation.json"),
        (set_args(hidden_size=16), [], "does not fit"),
        (set_args(hidden_size="8"), [], "hidden_size"),
        (set_args(hidden_size=-32), [], "config.json is damaged: --hidden-size: needs"),
        (set_args(flow_steps=0), [], "config.json is damaged: --flow-steps: needs"),
        (set_args(ode_solver="foo"), [], "config.json is damaged: --ode-solver"),
        (set_args(no_such_argument=1), [], "no_such_argument"),
        (set_args(env_id="cartpole-two_poles"), [], "does not fit"),
        (set_args(env_id="reacher-easy"), [], "does not fit"),
        (set_args(env_id="h1-walk"), ["--engine", "dm_control"], "--engine"),
        (set_args(env_id="brax:ant"), ["--engine", "dm_control"], "--engine"),
        (None, ["--engine", "dm-control"], "--engine"),
        (None, ["--eval-episodes", "1"], "--eval-episodes"),
        (None, ["--eval-episodes", "100000"], "--eval-episodes"),
        (None, ["--seed", "-1"], "--seed"),
        (None, ["--hidden-size", "64"], "--hidden-size"),
        (None, ["--env-id", "cartpole-swingup"], "--env-id"),
        (None, ["--preset", "paper"], "--preset"),
        (None, ["--track"], "--track"),
        (None, ["--evaluate", ""], "--evaluate"),
        (None, ["--evaluate", "no/such/folder"], "--evaluate"),
        (None, ["--evaluate"], "--evaluate"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    change, flags, says, tmp_path, monkeypatch, capsys
):
    folder = saved_run(tmp_path)
    if change:
        change(folder)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    assert command("--evaluate", folder, *flags, monkeypatch=monkeypatch) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert says in captured.err
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    assert list(tmp_path.iterdir()) == [folder]


def test_the_original_is_for_evaluation_only():
    args = command_line.parse_args(flowrl.ALGORITHM, "cpu", ["--engine", "dm_control"])
    with pytest.raises(envs.UsageError, match="--engine"):
        flowrl.main(args)


def test_evaluation_takes_100_episodes_and_the_rest_from_the_run(tmp_path):
    folder = saved_run(tmp_path, hidden_size=64, flow_steps=3, engine="mjx", gamma=0.9)
    flags = ["--evaluate", str(folder)]
    args = command_line.parse_args(flowrl.ALGORITHM, "cpu", flags)
    assert (args.eval_episodes, args.hidden_size, args.flow_steps) == (100, 64, 3)
    assert (args.engine, args.gamma, args.seed) == ("mjx", 0.9, 3)
    args = command_line.parse_args(flowrl.ALGORITHM, "cpu", [*flags, "--engine", "native"])
    assert args.engine == "native"


# --- the exported policy --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "steps", "width", "tolerance"),
    [
        ("euler", 1, 512, 4e-6),  # both are 2e-6 from what float64 gives
        ("euler", 3, 64, 1e-6),
        ("midpoint", 2, 64, 1e-6),
        ("rk4", 2, 64, 1e-6),
    ],
)
def test_numpy_policy_is_the_jax_one(solver, steps, width, tolerance, tmp_path):
    folder = saved_run(tmp_path, hidden_size=width, ode_solver=solver, flow_steps=steps)
    ours, act = numpy_policy.load(folder / "policy.npz"), flowrl.load_policy(folder)
    obs = 3 * np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32)
    actions = ours(obs)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, act(obs), rtol=0, atol=tolerance)
    assert np.std(actions) > 0.01
    np.testing.assert_allclose(ours(obs[0]), actions[0], rtol=0, atol=tolerance)


def test_numpy_policy_samples_x0_as_the_jax_one(tmp_path):
    folder = saved_run(tmp_path)
    ours, act = numpy_policy.load(folder / "policy.npz"), flowrl.load_policy(folder)
    obs = np.tile(np.linspace(-1, 1, 5, dtype=np.float32), (20_000, 1))
    # Rounded: where x0 was clipped the values are all one, but for the last digit.
    theirs = np.round(np.asarray(act(obs, jax.random.key(0)), np.float64)[:, 0], 5)
    samples = np.round(ours(obs, np.random.default_rng(0)).astype(np.float64)[:, 0], 5)
    assert scipy.stats.ks_2samp(samples, theirs).pvalue > 0.001
    share = np.mean(samples == samples.max())  # where the normal is clipped to 1
    assert share == pytest.approx(scipy.stats.norm.sf(1), abs=0.01)


def test_numpy_policy_needs_numpy_alone(tmp_path):
    folder = saved_run(tmp_path)
    code = """
        import sys
        for name in ("jax", "flax", "mujoco"):
            sys.modules[name] = None
        import numpy as np, numpy_policy
        act = numpy_policy.load(sys.argv[1])
        print(act(np.zeros((2, 5))).shape)
    """
    code = "\n".join(
        line.strip() if "sys.modules" not in line else " " + line.strip()
        for line in code.strip().splitlines()
    )
    result = subprocess.run(
        [sys.executable, "-c", code, folder / "policy.npz"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "(2, 1)\n"


# --- videos ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def motion():
    """A pole that leans to one side and then the other, 1 s in 100 poses."""
    model = envs.load_task("cartpole-balance").model
    qpos = np.zeros((100, model.nq))
    qpos[:, 1] = np.linspace(-1, 1, 100)
    return watch.Motion(model, qpos, 0.01)


def test_video_shows_the_motion_at_its_speed(motion, tmp_path):
    reason = watch.film(tmp_path / "videos" / "a.mp4", motion)
    if reason:
        pytest.skip(f"no way to draw on this machine: {reason}")
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["a.mp4"]
    with av.open(str(tmp_path / "videos" / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert container.duration / 1e6 == pytest.approx(1.0, abs=0.05)
        pictures = [picture.to_ndarray(format="rgb24") for picture in container.decode(stream)]
    assert len(pictures) == 34  # every third pose
    assert pictures[0].shape == (film.HEIGHT, film.WIDTH, 3)

    def pole(picture) -> float:  # mean column of what is wood-coloured: more red than blue
        red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
        return np.nonzero(red - blue > 60)[1].mean()

    assert abs(pole(pictures[0]) - pole(pictures[-1])) > 20


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("humanoid-run", "side"),
        ("walker-walk", "side"),
        ("h1-walk", "side"),
        ("dog-run", "y-axis"),
        ("quadruped-walk", "x"),
        ("cartpole-balance", "fixed"),
        ("manipulator-bring_ball", "fixed"),
        ("swimmer-swimmer6", "tracking1"),
    ],
)
def test_camera_is_one_that_shows_the_robot(env_id, name):
    model = envs.load_task(env_id).model
    assert model.camera(film.camera(model)).name == name


def test_model_without_a_camera_is_looked_at_whole():
    xml = "<mujoco><worldbody><geom size='1'/></worldbody></mujoco>"
    camera = film.camera(mujoco.MjModel.from_xml_string(xml))
    assert camera.distance > 1


def test_where_nothing_can_draw_one_line_says_so(motion, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watch, "BACKENDS", ("nonsense", "rubbish"))
    monkeypatch.setenv("MUJOCO_GL", "disable")
    watch._tell_film(tmp_path / "a.mp4", motion, "cartpole-balance")
    shown = capsys.readouterr().out
    assert shown.startswith("no video: ")
    assert shown.count("\n") == 1
    assert "nonsense: " in shown
    assert "rubbish: " in shown
    assert not list(tmp_path.iterdir())


def test_ways_to_draw_are_tried_in_order(motion, tmp_path, monkeypatch):
    tried = []

    def draw(command, backend):
        tried.append(backend)
        if backend != "osmesa":
            return "no device"
        Path(command[4]).write_bytes(b"video")
        return None

    monkeypatch.setattr(watch, "_draw", draw)
    for wanted, order in [
        ("disable", ["egl", "osmesa"]),
        ("", ["egl", "osmesa"]),
        ("osmesa", ["osmesa"]),
        ("glfw", ["glfw", "egl", "osmesa"]),
    ]:
        tried.clear()
        monkeypatch.setenv("MUJOCO_GL", wanted)
        assert watch.film(tmp_path / "a.mp4", motion) is None
        assert tried == order
    assert (tmp_path / "a.mp4").read_bytes() == b"video"


def test_missing_packages_and_unwritable_folders_are_one_line(
    motion, tmp_path, monkeypatch, capsys
):
    watch._tell_film(tmp_path / "a.mp4", None, "brax:ant")
    (tmp_path / "videos").write_text("a file where the folder should be")
    monkeypatch.setattr(
        watch, "_draw", lambda command, _: Path(command[4]).write_bytes(b"") or None
    )
    watch._tell_film(tmp_path / "videos" / "a.mp4", motion, "cartpole-balance")
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: None)
    watch._tell_film(tmp_path / "a.mp4", motion, "cartpole-balance")
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("no video: ") for line in lines] == [True] * 3
    for line, text in zip(lines, ("brax:ant", "cannot write", "package av"), strict=True):
        assert text in line


def test_the_policy_is_filmed_after_training(monkeypatch, tmp_path):
    filmed = []
    monkeypatch.setattr(watch, "film", lambda path, motion: filmed.append((path, motion)))
    args = types.SimpleNamespace(env_id="cartpole-balance", seed=1, num_threads=1)
    watch.film_policy(
        types.SimpleNamespace(load_policy=lambda folder: balance), envs, args, tmp_path
    )
    ((path, motion),) = filmed
    assert path == tmp_path / "videos" / "trained.mp4"
    assert len(motion.qpos) == 1000
    assert np.abs(motion.qpos[-1]).max() < 0.5, "it holds the pole"


@pytest.mark.long
def test_program_trains_and_films(tmp_path):
    flags = ["--env-id", "cartpole-balance", "--num-envs", "4", "--hidden-size", "16"]
    flags += ["--batch-size", "16", "--log-interval", "400", "--learning-starts", "200"]
    flags += ["--eval-episodes", "2", "--buffer-size", "2000", "--total-timesteps", "400"]
    command = [sys.executable, str(ROOT / "flowrl_jax.py"), *flags, "--runs-dir", str(tmp_path)]
    command.append("--capture-video")
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    last = result.stdout.splitlines()[-1]
    (folder,) = tmp_path.iterdir()
    made = (folder / "videos" / "trained.mp4").exists()
    assert last == f"video {folder / 'videos' / 'trained.mp4'}" if made else "no video: " in last
