"""benchmark.sh beside a training program that only says what it was asked for.

The stand-in writes what a run would leave (folder, config.json), and how it ends is its task's
name: ok, fails, fails-once, bad-input, dies-silently, slow.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="benchmark.sh is for Linux")
TASKS = "ok-a ok-b fails-a fails-once bad-input dies-silently slow-a slow-b dog-run"
PROGRAM = r"""
import json, os, pathlib, signal, sys, time
ALGORITHM = pathlib.Path(__file__).stem
words = sys.argv[1:]
if "--help" in words:
    print("usage: --env-id STR  --seed INT --gamma FLOAT --w2-indicator, --no-w2-indicator RESUME")
    sys.exit()
here = pathlib.Path(__file__).parent
events = here / "events"
def note(text):
    with events.open("a") as file:
        file.write(f"{time.time()} {os.getpid()} {text}\n")
if "--resume" in words:
    folder = pathlib.Path(words[1])
    config = json.loads((folder / "config.json").read_text())
else:
    get = lambda name: words[words.index(name) + 1]
    name = f"{get('--env-id')}__{ALGORITHM}__{get('--seed')}__20261121-{time.time_ns()}"
    folder = pathlib.Path(get("--runs-dir")) / name
    config = {"args": {"env_id": get("--env-id"), "seed": int(get("--seed"))}, "git": {}}
task = config["args"]["env_id"]
def save(status):
    config.update(status=status, commit="c0ffee", dirty=False, python="3.11.7", jax="0.10.2",
                  mujoco="3.17.0", environment=dict(os.environ), words=words)
    config["cores"] = len(os.sched_getaffinity(0))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
if task == "bad-input":
    sys.exit(print("error: --gamma: too large", file=sys.stderr) or 2)
if "--resume" in words and "unresumable" in config:
    sys.exit(print("error: --resume: no checkpoint", file=sys.stderr) or 2)
folder.mkdir(parents=True, exist_ok=True)
save("running")
print("run folder", folder, flush=True)
note(f"start {task}")
stopped = []
def stop(number, frame):
    stopped.append(number)
    note(f"signal {number}")
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
if task == "dies-silently":
    os.kill(os.getpid(), signal.SIGKILL)
deadline = time.time() + (20 if task.startswith("slow") else 0.3)
while time.time() < deadline and not stopped:
    time.sleep(0.02)
time.sleep(0.2 * bool(stopped))  # what saving takes; a second signal would be noted
once = here / f"once-{task}"
if task == "fails-a" or task == "fails-once" and not once.exists():
    once.touch()
    save("failed")
    print('error: not finite, "really"\n', file=sys.stderr)
    sys.exit(1)
save("interrupted" if stopped else "finished")
note(f"end {task}")
sys.exit(128 + stopped[0] if stopped else 0)
"""


MACHINE = """
import os

def accelerators():  # all that it may see, unless the test says otherwise
    named = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    return int(os.environ.get("JAX_HAS", len(named)))
"""

CHECK = """
import sys

if "abc" in sys.argv:
    sys.exit(print("error: --gamma: invalid value 'abc'", file=sys.stderr) or 2)
"""


@pytest.fixture
def bench(tmp_path):
    """Returns a function that runs benchmark.sh's copy with flags; its folder is `bench.folder`."""
    folder = tmp_path / "a clone"  # with a space, as some have
    folder.mkdir()
    shutil.copy(ROOT / "benchmark.sh", folder)
    for name in ("flowrl_jax.py", "sac_jax.py"):
        (folder / name).write_text(PROGRAM.replace("RESUME", ""))
    (folder / "envs.py").write_text(f"def task_ids():\n    return {TASKS.split()}\n")
    (folder / "harness").mkdir()
    (folder / "harness" / "machine.py").write_text(MACHINE)
    (folder / "harness" / "check.py").write_text(CHECK)
    (folder / "report.py").write_text("import sys\nprint('REPORT', *sys.argv[1:])\n")
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    environment |= {"PYTHON": sys.executable}

    def run(*flags: str, wait: bool = True, **more: str):
        command = ["bash", str(folder / "benchmark.sh"), *flags]
        keywords = {"cwd": tmp_path, "env": environment | more, "text": True}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
        # Where these tests run in the background SIGINT is ignored, and bash cannot change that.
        heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
        process = subprocess.Popen(command, **keywords, **pipes, **heard)
        if not wait:
            return process
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    run.folder, run.out = folder, tmp_path / "results"
    return run


def ledger(bench) -> list[dict[str, str]]:
    with (bench.out / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def configs(bench) -> dict[tuple[str, int], dict]:
    found = [json.loads(path.read_text()) for path in bench.out.glob("runs/*/config.json")]
    return {(c["args"]["env_id"], c["args"]["seed"]): c for c in found}


def events(bench) -> list[tuple[float, int, str]]:
    lines = [line.split(" ", 2) for line in (bench.folder / "events").read_text().splitlines()]
    return [(float(when), int(who), what) for when, who, what in lines]


def flags_of(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def test_every_task_and_seed_runs_once(bench):
    extra = ["--", "--gamma", "0.9"]
    done = bench("--tasks", "ok-a,ok-b", "--seeds", "2", "--devices", "cpu", *extra)
    assert done.returncode == 0, done.stderr
    found = configs(bench)
    assert set(found) == {(task, seed) for task in ("ok-a", "ok-b") for seed in (1, 2)}
    asked = flags_of(found["ok-b", 2]["words"])
    assert asked == {
        "--env-id": "ok-b",
        "--seed": "2",
        "--preset": "auto",
        "--runs-dir": str(bench.out / "runs"),
        "--gamma": "0.9",
    }
    assert found["ok-a", 1]["environment"]["JAX_PLATFORMS"] == "cpu"
    rows = ledger(bench)
    assert [(row["task"], row["seed"]) for row in rows] == sorted(
        map(lambda k: (k[0], str(k[1])), found)
    )
    for row in rows:
        assert (row["attempt"], row["exit_code"], row["error"]) == ("1", "0", "")
        assert (row["git_commit"], row["python"], row["jax"], row["mujoco"]) == (
            "c0ffee",
            "3.11.7",
            "0.10.2",
            "3.17.0",
        )
        assert (bench.out / row["folder"] / "config.json").exists()
        assert 0 <= int(row["seconds"]) < 20
    assert re.search(
        r"^\[4/4\] .* exit code 0 after 0:00:0\d; about 0:00:00 left$", done.stdout, re.M
    )
    report = f"REPORT {bench.out} --out {bench.out}/report --html {bench.out}/report.html"
    assert report in done.stdout

    again = bench("--tasks", "ok-a ok-b", "--seeds", "1-3", "--devices", "cpu", *extra)
    assert again.returncode == 0
    assert again.stdout.count("finished already") == 4
    assert set(configs(bench)) - set(found) == {("ok-a", 3), ("ok-b", 3)}
    assert len(list(bench.out.glob("runs/*"))) == 6
    other = bench("--tasks", "ok-a", "--devices", "cpu", "--", "--gamma", "0.8")
    assert other.returncode == 2
    assert "--out: " in other.stderr
    assert "--gamma 0.9; choose another" in other.stderr


def test_another_algorithm_has_its_runs_in_a_folder_of_its_own(bench):
    flags = ["--tasks", "ok-a", "--seeds", "1", "--devices", "cpu"]
    sac = [*flags, "--algorithm", "sac_jax"]
    assert " sac_jax.py --env-id ok-a " in bench(*sac, "--dry-run").stdout
    assert bench(*sac).returncode == 0
    (folder,) = bench.out.glob("runs/*")
    assert folder.name.startswith("ok-a__sac_jax__1__")
    assert ledger(bench)[0]["folder"] == f"runs/{folder.name}"
    assert "finished already: ok-a seed 1" in bench(*sac).stdout
    mixed = bench(*flags)
    assert mixed.returncode == 2
    assert "holds runs of --algorithm sac_jax --preset auto" in mixed.stderr
    assert len(list(bench.out.glob("runs/*"))) == 1
    # Settings that name no algorithm are of before there was a second: FlowRL's.
    (bench.out / "settings.txt").write_text("--preset auto \n")
    assert "holds runs of --algorithm flowrl_jax" in bench(*sac).stderr
    assert bench(*flags).returncode == 0
    script = bench(*sac, "--slurm", "--dry-run", "--out", "elsewhere").stdout
    assert "benchmark.sh --algorithm sac_jax " in script


def test_what_fails_is_tried_twice_and_told(bench):
    tasks = "fails-a fails-once bad-input dies-silently ok-a"
    done = bench("--tasks", tasks, "--seeds", "1", "--devices", "cpu", "--jobs-per-device", "5")
    assert done.returncode == 1
    codes = {}
    for row in ledger(bench):
        codes.setdefault(row["task"], []).append((row["attempt"], row["exit_code"], row["error"]))
    assert codes["fails-a"] == [(n, "1", "error: not finite, 'really'") for n in ("1", "2")]
    assert [row[:2] for row in codes["fails-once"]] == [("1", "1"), ("2", "0")]
    assert codes["bad-input"] == [("1", "2", "error: --gamma: too large")]  # stays bad
    assert [row[:2] for row in codes["dies-silently"]] == [("1", "137"), ("2", "137")]
    assert [row[:2] for row in codes["ok-a"]] == [("1", "0")]
    listed = done.stdout.split("not finished:")[1]
    assert [line.split()[0] for line in listed.strip().splitlines()] == [
        "fails-a",
        "bad-input",
        "dies-silently",
    ]
    assert "error: not finite, 'really' (log: " in listed
    assert "REPORT" in done.stdout
    assert len(list(bench.out.glob("runs/fails-once*"))) == 2  # a new folder after a failure


@pytest.mark.parametrize("can_resume", [True, False])
def test_what_is_half_done_is_resumed(bench, can_resume):
    if can_resume:
        text = PROGRAM.replace("RESUME", "--resume STR")
        (bench.folder / "flowrl_jax.py").write_text(text)
    half = bench.out / "runs" / "ok-a__flowrl_jax__1__20261120-000000"
    lost = bench.out / "runs" / "ok-b__flowrl_jax__1__20261120-000000"
    for folder, more in ((half, {}), (lost, {"unresumable": 1})):
        folder.mkdir(parents=True)
        args = {"env_id": folder.name[:4], "seed": 1}
        config = {"args": args, "status": "interrupted"} | more
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        (folder / "checkpoints" / "000000000100").mkdir(parents=True)
    shown = bench("--tasks", "ok-a", "--seeds", "1", "--devices", "cpu", "--dry-run").stdout
    assert ("flowrl_jax.py --resume" in shown) == can_resume
    done = bench("--tasks", "ok-a ok-b", "--seeds", "1", "--devices", "cpu")
    assert done.returncode == 0, done.stdout
    folders = {path.name for path in bench.out.glob("runs/*")}
    status = json.loads((half / "config.json").read_text())["status"]
    rows = [(row["task"], row["exit_code"], row["folder"]) for row in ledger(bench)]
    if can_resume:
        assert status == "finished"
        assert ("ok-a", "0", f"runs/{half.name}") in rows
        assert ("ok-b", "2", f"runs/{lost.name}") in rows  # and then anew:
        assert len(folders) == 3
    else:
        assert status == "interrupted"
        assert "half done, but this flowrl_jax.py has no --resume" in done.stdout
        assert len(folders) == 4


def test_what_ended_before_its_first_checkpoint_is_run_anew(bench):
    """At once, and not after an attempt to resume it."""
    (bench.folder / "flowrl_jax.py").write_text(PROGRAM.replace("RESUME", "--resume STR"))
    folder = bench.out / "runs" / "ok-a__flowrl_jax__1__20261120-000000"
    folder.mkdir(parents=True)
    config = {"args": {"env_id": "ok-a", "seed": 1}, "status": "killed"}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    done = bench("--tasks", "ok-a", "--seeds", "1", "--devices", "cpu")
    assert done.returncode == 0, done.stdout
    assert "ended before its first checkpoint" in done.stdout
    assert [(row["attempt"], row["exit_code"]) for row in ledger(bench)] == [("1", "0")]
    assert len(list(bench.out.glob("runs/*"))) == 2


@pytest.mark.parametrize(
    ("error", "has_checkpoint", "goes_on"),
    [
        ("OSError: No space left on device", True, True),
        ("OSError: No space left on device", False, False),
        ("FloatingPointError: not finite at step 5", True, False),
    ],
)
def test_a_failed_run_goes_on_if_what_it_learned_is_sound(bench, error, has_checkpoint, goes_on):
    (bench.folder / "flowrl_jax.py").write_text(PROGRAM.replace("RESUME", "--resume STR"))
    folder = bench.out / "runs" / "ok-a__flowrl_jax__1__20261120-000000"
    folder.mkdir(parents=True)
    config = {"args": {"env_id": "ok-a", "seed": 1}, "status": "failed", "error": error}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if has_checkpoint:
        (folder / "checkpoints" / "000000000100").mkdir(parents=True)
    shown = bench("--tasks", "ok-a", "--seeds", "1", "--devices", "cpu", "--dry-run").stdout
    assert ("flowrl_jax.py --resume" in shown) == goes_on


@pytest.mark.parametrize(("to_group", "number"), [(True, signal.SIGINT), (False, signal.SIGTERM)])
def test_a_stop_reaches_each_run_once_and_waits_for_it(bench, to_group, number):
    """A terminal's Ctrl-C goes to the whole foreground group, `kill` to benchmark.sh only."""
    flags = ["--tasks", "slow-a slow-b ok-a", "--seeds", "1", "--devices", "cpu"]
    process = bench(*flags, "--jobs-per-device", "2", wait=False)
    deadline = time.time() + 20
    while time.time() < deadline:
        if (bench.folder / "events").exists() and len(events(bench)) == 2:
            break
        time.sleep(0.05)
    time.sleep(0.2)
    (os.killpg if to_group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    happened = [what for _, _, what in events(bench)]
    assert happened.count("signal 15") == 2
    assert "signal 2" not in happened
    assert {"end slow-a", "end slow-b"} < set(happened)
    assert "start ok-a" not in happened
    assert {c["status"] for c in configs(bench).values()} == {"interrupted"}
    rows = {row["task"]: (row["exit_code"], row["error"]) for row in ledger(bench)}
    assert rows["slow-a"][0] == "143"
    assert rows["ok-a"] == ("", "not started")
    assert "REPORT" not in out
    assert "stopping: 2 runs" in err


def test_devices_are_shared_out(bench):
    flags = ["--tasks", "ok-a ok-b", "--seeds", "4", "--devices", "0,GPU-7", "--preset", "gpu"]
    done = bench(*flags, "--jobs-per-device", "2")
    assert done.returncode == 0, done.stderr
    at_once, most, used = 0, 0, []
    for _, _, what in sorted(events(bench)):
        at_once += 1 if what.startswith("start") else -1
        most = max(most, at_once)
    for config in configs(bench).values():
        environment = config["environment"]
        used.append(environment["CUDA_VISIBLE_DEVICES"])
        assert environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"
        assert flags_of(config["words"])["--preset"] == "gpu"
    assert 2 < most <= 4
    assert set(used) == {"0", "GPU-7"}


@pytest.mark.parametrize("has", [0, 1])
def test_a_gpu_that_jax_cannot_use_is_refused(bench, has):
    flags = ["--tasks", "ok-a", "--seeds", "1"]
    done = bench(*flags, "--devices", "0,1", JAX_HAS=str(has))
    assert done.returncode == 2
    assert done.stderr.strip().startswith(f"error: --devices: of 0,1 JAX can use {has}; ")
    assert not configs(bench)
    assert bench(*flags, "--devices", "cpu", JAX_HAS=str(has)).returncode == 0


def test_runs_on_a_cpu_share_its_cores(bench):
    cores = len(os.sched_getaffinity(0))
    done = bench("--tasks", "ok-a", "--seeds", "2", "--devices", "cpu", "--jobs-per-device", "2")
    assert done.returncode == 0
    expected = cores // 2 or cores
    assert {config["cores"] for config in configs(bench).values()} == {expected}


def test_two_benchmarks_do_not_run_the_same_job(bench):
    first = bench("--tasks", "slow-a", "--seeds", "1", "--devices", "cpu", wait=False)
    while not (bench.folder / "events").exists():
        time.sleep(0.05)
    second = bench("--tasks", "slow-a", "--seeds", "1", "--devices", "cpu")
    assert second.returncode == 1
    assert "another process runs this job" in second.stdout
    first.terminate()
    first.communicate(timeout=20)
    assert len(list(bench.out.glob("runs/*"))) == 1


NVIDIA_SMI = "#!/usr/bin/env bash\nprintf '0\\n1\\n'\n"


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, ["0", "1"]), ("3", ["3", "3"]), ("", ["", ""])]
)
def test_devices_are_found(bench, tmp_path, visible, expected):
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    more = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = bench("--tasks", "ok-a", "--seeds", "2", "--dry-run", PATH=path, **more)
    assert re.findall(r"CUDA_VISIBLE_DEVICES=(\S*)", done.stdout) == expected
    assert ("JAX_PLATFORMS=cpu" in done.stdout) == (visible == "")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("", "--tasks"),
        ("--tasks nowhere-run", "--tasks: 'nowhere-run' is no task"),
        ("--tasks ok-a --algorithm envs", "--algorithm: 'envs' is none"),
        ("--tasks ok-a --algorithm ../clone/sac_jax", "--algorithm: '../clone/sac_jax'"),
        ("--tasks ok-a --algorithm sac_jax -- --gama 3", "--gama: sac_jax.py has no such flag"),
        ("--tasks ok-a --seeds 0", "--seeds"),
        ("--tasks ok-a --seeds 5-3", "--seeds"),
        ("--tasks ok-a --preset fast", "--preset: 'fast'"),
        ("--tasks ok-a --jobs-per-device 0", "--jobs-per-device"),
        ("--tasks ok-a --devices 0,,1", "--devices"),
        ("--tasks ok-a --faster", "--faster: no such flag"),
        ("--tasks ok-a --seeds", "--seeds: needs a value"),
        ("--tasks ok-a --slurm-args --time=1", "--slurm-args: needs --slurm"),
        ("--tasks ok-a --slurm", "--slurm: there is no sbatch"),
        ("--tasks ok-a -- --seed 3", "--seed: is set by benchmark.sh"),
        ("--tasks ok-a -- --gama 3", "--gama: flowrl_jax.py has no such flag"),
        ("--tasks ok-a -- --gamma abc", "error: --gamma: invalid value 'abc'"),
        ("--tasks ok-a --out a/clone/README", "--out: cannot make folders"),
        ("--tasks ok-a --out nowhere --report-only", "--out: 'nowhere' holds no runs"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(bench, flags, says, tmp_path):
    (tmp_path / "a").write_text("a file")
    before = sorted(tmp_path.rglob("*"))
    done = bench(*flags.split())
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr
    left = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)]
    assert left == before


def test_a_value_that_is_empty_is_none(bench, tmp_path):
    done = bench("--tasks", "ok-a", "--out", "", "--dry-run")
    assert (done.returncode, done.stderr) == (2, "error: --out: needs a value\n")


def test_a_task_named_twice_runs_once(bench):
    done = bench("--tasks", "ok-a ok-b ok-a", "--seeds", "2", "--devices", "cpu", "--dry-run")
    assert done.stdout.count("--env-id ok-a --seed 1") == 1
    assert len(done.stdout.splitlines()) == 4


def test_a_folder_without_a_run_takes_other_settings(bench):
    (bench.out / "runs").mkdir(parents=True)
    (bench.out / "settings.txt").write_text("--algorithm flowrl_jax --preset cpu --gamma 3\n")
    flags = ["--tasks", "ok-a", "--seeds", "1", "--devices", "cpu", "--out", str(bench.out)]
    assert bench(*flags).returncode == 0
    other = bench(*flags, "--", "--gamma", "0.5")
    assert other.returncode == 2
    assert "holds runs of" in other.stderr


def test_a_python_beside_the_caller_is_found(bench, tmp_path):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "python").symlink_to(sys.executable)
    flags = ["--tasks", "ok-a", "--seeds", "1", "--devices", "cpu", "--dry-run"]
    done = bench(*flags, PYTHON="venv/python")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/venv/python" in done.stdout


def test_a_dry_run_shows_and_writes_nothing(bench):
    flags = ["--tasks", "dmc-hard", "--seeds", "2", "--devices", "0,1", "--dry-run"]
    done = bench(*flags, "--", "--gamma", "0.9")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 7 * 2
    assert "CUDA_VISIBLE_DEVICES=0" in lines[0]
    assert "CUDA_VISIBLE_DEVICES=1" in lines[1]
    assert "--env-id dog-stand --seed 1" in lines[0]
    assert "--gamma 0.9 # new run" in lines[0]
    assert not bench.out.exists()


def test_paper15_are_the_papers_tasks(bench):
    done = bench("--tasks", "paper15", "--seeds", "1", "--devices", "cpu", "--dry-run")
    tasks = re.findall(r"--env-id (\S+)", done.stdout)
    assert len(tasks) == len(set(tasks)) == 15
    assert set(tasks) >= {"walker-run", "quadruped-walk", "h1-balance_hard", "h1-maze", "dog-stand"}
    known = re.findall(r"^\| (\S+) \|", (ROOT / "docs" / "tasks.md").read_text(), re.M)
    assert set(tasks) <= set(known)


SBATCH = r"""#!/usr/bin/env bash
# Takes what it is given, as sbatch would, and runs nothing.
printf '%s\n' "$@" >>"$(dirname "$0")/submitted"
echo 77
"""


def test_slurm_gets_an_array_and_a_report(bench, tmp_path):
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(SBATCH)
    sbatch.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    flags = ["--tasks", "ok-a ok-b", "--seeds", "2", "--preset", "cpu"]
    slurm = ["--slurm", "--slurm-args", "--time=1:00:00 --gres=gpu:1"]
    done = bench(*flags, *slurm, "--", "--gamma", "0.9", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "submitted 4 runs as array 77" in done.stdout
    script = bench.out / "array.sbatch"
    text = script.read_text()
    for line in ("--array=1-4", "#SBATCH --time=1:00:00\n", "#SBATCH --gres=gpu:1\n"):
        assert line in text
    submitted = (tmp_path / "bin" / "submitted").read_text().splitlines()
    assert submitted[:2] == ["--parsable", str(script)]
    assert "--dependency=afterany:77" in submitted
    assert len(ledger(bench)) == 4
    # Job 3 of the array, as slurm would start it: from another folder, with a device of its own.
    more = {"SLURM_ARRAY_TASK_ID": "3", "CUDA_VISIBLE_DEVICES": "5"}
    ended = subprocess.run(["bash", str(script)], env=os.environ | more, cwd="/", check=False)
    assert ended.returncode == 0
    (config,) = configs(bench).values()
    assert config["args"] == {"env_id": "ok-b", "seed": 1}
    assert config["environment"]["CUDA_VISIBLE_DEVICES"] == "5"
    assert flags_of(config["words"])["--gamma"] == "0.9"
    assert [row["exit_code"] for row in ledger(bench)] == ["", "", "0", ""]
    # What follows the array: a report of all, and a list of what is not finished.
    command = next(word for word in submitted if "report-only" in word)
    ended = subprocess.run(command, shell=True, cwd="/", capture_output=True)
    assert ended.returncode == 1
    assert b"REPORT" in ended.stdout
    assert ended.stdout.count(b"not started") == 3
    shown = bench(*flags, "--slurm", "--dry-run", "--out", "elsewhere")
    assert "--array=1-4" in shown.stdout
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here")
def test_shellcheck_has_no_complaint():
    command = ["shellcheck", str(ROOT / "benchmark.sh")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.long
def test_a_benchmark_of_real_runs_ends_with_a_report(tmp_path):
    flags = ["--tasks", "cartpole-balance", "--seeds", "2", "--devices", "cpu"]
    flags += ["--jobs-per-device", "2"]
    sizes = {"--total-timesteps": 400, "--log-interval": 200, "--eval-interval": 200}
    sizes |= {"--num-envs": 2, "--hidden-size": 16, "--batch-size": 8, "--eval-episodes": 1}
    sizes |= {"--learning-starts": 100, "--buffer-size": 1000}
    extra = [str(word) for pair in sizes.items() for word in pair]
    command = ["bash", str(ROOT / "benchmark.sh"), *flags, "--preset", "cpu", "--out", "out", "--"]
    environment = os.environ | {"PYTHON": sys.executable}
    keywords = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    ended = subprocess.run([*command, *extra], **keywords)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with (tmp_path / "out" / "report" / "results.csv").open() as file:
        row = next(csv.DictReader(file))
    assert (row["task"], row["at"], row["runs"]) == ("cartpole-balance", "400", "2")
    assert 0 < float(row["iqm"]) <= 1000
    assert (tmp_path / "out" / "report.html").stat().st_size > 20_000
