"""What `python -m pytest` says before it begins."""

import importlib.util
import os
from types import SimpleNamespace

import conftest
import pytest


def header(monkeypatch, expression: str, asked: str = "TESTPATHS", absent=()) -> str:
    find_spec = importlib.util.find_spec
    found = lambda name: None if name in absent else find_spec("pytest")  # noqa: E731
    monkeypatch.setattr(conftest.importlib.util, "find_spec", found)
    config = SimpleNamespace(
        option=SimpleNamespace(markexpr=expression),
        args_source=getattr(pytest.Config.ArgsSource, asked),
        ArgsSource=pytest.Config.ArgsSource,
    )
    return "\n".join(conftest.pytest_report_header(config))


def test_the_default_set_has_a_time_and_is_told_from_the_others(monkeypatch, pytestconfig):
    text = header(monkeypatch, conftest.FAST)
    assert conftest.FAST in pytestconfig.getini("addopts")
    assert f"about {conftest.ABOUT[conftest.FAST]} on 2 idle cores" in text
    assert "left out: those marked slow (`python -m pytest -m slow`) and long" in text
    assert "without" not in text


@pytest.mark.parametrize("marker", ["slow", "long"])
def test_the_others_have_theirs(monkeypatch, pytestconfig, marker):
    text = header(monkeypatch, marker)
    assert f"about {conftest.ABOUT[marker]}" in text
    assert "left out: " in text
    assert any(line.startswith(f"{marker}:") for line in pytestconfig.getini("markers"))


def test_of_some_files_or_of_another_selection_no_time_is_told(monkeypatch):
    text = header(monkeypatch, conftest.FAST, "ARGS")
    assert "about" not in text
    assert "left out: those marked slow" in text
    assert header(monkeypatch, "not long") == ""


def test_absent_packages_are_named_with_what_installs_them(monkeypatch):
    text = header(monkeypatch, "slow", absent=("warp", "brax"))
    command = "`pip install -r requirements-warp.txt -r requirements-optional.txt`"
    assert f"skipped without warp, brax: {command}" in text
    for name in conftest.OPTIONAL.values():
        assert os.path.exists(f"{os.path.dirname(__file__)}/../requirements-{name}.txt")
    assert "requirements-warp" not in header(monkeypatch, "slow", absent=("wandb",))


def test_a_process_a_core_but_no_more_than_memory_is_for(monkeypatch):
    for cores, expected in ((1, 1), (2, 2), (64, conftest.MAX_PROCESSES)):
        affinity = lambda _, cores=cores: set(range(cores))  # noqa: E731
        monkeypatch.setattr(os, "sched_getaffinity", affinity)
        assert conftest.pytest_xdist_auto_num_workers(None) == expected
