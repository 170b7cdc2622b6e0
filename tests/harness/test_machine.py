"""What is said of the machine and the code, the compilation cache, free memory."""

import subprocess
import types
from unittest import mock

import jax
from scripts import run_script

from harness import machine


def test_git_state_names_commit_and_changes(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert machine.git_state(tmp_path) is None
    git("init", "-q")
    assert machine.git_state(tmp_path) is None  # another project's repository, not this code's
    (tmp_path / "machine.py").write_text("1")
    git("add", "machine.py")
    git("commit", "-qm", "first")
    assert machine.git_state(tmp_path) == {
        "commit": git("rev-parse", "HEAD").strip(),
        "dirty": False,
    }
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "evaluation.json").write_text("1")
    git("add", "policies")
    git("commit", "-qm", "second")
    (tmp_path / "policies" / "evaluation.json").write_text("2")  # as --evaluate does
    assert machine.git_state(tmp_path)["dirty"] is False
    (tmp_path / "machine.py").write_text("2")
    assert machine.git_state(tmp_path)["dirty"] is True
    monkeypatch.setenv("PATH", "")
    assert machine.git_state(tmp_path) is None


def test_a_second_process_finds_the_compiled_program(tmp_path):
    script = f"""
        import jax
        from harness import machine
        from pathlib import Path
        events = []
        jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
        assert machine.enable_compilation_cache(Path({str(tmp_path)!r})) == Path({str(tmp_path)!r})
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((3, 3))).block_until_ready()
        print("hits", sum(event.endswith("compilation_cache/cache_hits") for event in events))
    """
    hits = [int(run_script(script).communicate(timeout=60)[0].split()[-1]) for _ in range(2)]
    assert hits[0] == 0
    assert hits[1] > 0


def test_training_goes_on_without_a_cache(tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    script = f"""
        import jax
        from harness import machine
        from pathlib import Path
        print(machine.enable_compilation_cache(Path({str(blocker / "cache")!r})))
        print(jax.jit(lambda x: x + 1)(1))
    """
    output, _ = run_script(script).communicate(timeout=60)
    lines = output.splitlines()
    assert lines[0].startswith("no compilation cache: ")
    assert lines[1:] == ["None", "2"]


def test_accelerators_are_counted(monkeypatch):
    def devices(*platforms):
        return [types.SimpleNamespace(platform=platform) for platform in platforms]

    monkeypatch.setattr(jax, "devices", lambda: devices("cpu", "cpu"))
    assert machine.accelerators() == 0
    monkeypatch.setattr(jax, "devices", lambda: devices("gpu", "gpu"))
    assert machine.accelerators() == 2
    monkeypatch.setattr(jax, "devices", mock.Mock(side_effect=RuntimeError("no CUDA")))
    assert machine.accelerators() == 0


def test_free_memory_is_between_nothing_and_all():
    free = machine.device_memory_bytes()
    assert free is not None
    assert free > 2**20
    if jax.default_backend() == "cpu":
        assert free <= machine._physical_memory()
