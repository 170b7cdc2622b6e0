"""The command line: flags over a preset or over an earlier run's, and errors as one line."""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import functools
import inspect
import io
import itertools
import math
import os
import re
import signal
import sys
import traceback
import typing
from collections.abc import Mapping
from pathlib import Path

import jax
import tyro

from harness import checkpoints, contract, machine, parallel, runs
from harness.contract import Algorithm
from harness.errors import RunError

EVALUATION_EPISODES = 100  # what --eval-episodes is with --evaluate, unless given
EVALUATION_FLAGS = ("evaluate", "eval_episodes", "engine", "seed", "num_threads", "warp_headroom")
EVALUATION_FLAGS += ("capture_video",)
# What the system says where a disk takes no more.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
# tyro's and Python's complaints of a value, and the one form that all have here: flag, what, fix.
_IN_OUR_WORDS = {
    r"^Error parsing (--\S+): (.*)$": r"\1: \2",
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is no whole number",
    r"could not convert string to float: (.*)": r"\1 is no number",
    r"^invalid choice (.*) for argument '(--\S+)'\. Expected (one of .*)\.$": r"\2: \1 is not \3",
    r"^Missing value for argument '(--\S+)'.*": r"\1: needs a value",
}


def exit_code(main, algorithm: Algorithm, *bad_input: type[Exception]) -> int:
    """Returns main(parsed command line)'s exit code, or that of an error told in one line.

    2 for bad input (RunError, and the exceptions `bad_input` that tell the user what to change), 1
    for a loss that is not finite, a full disk or another process that ended, 128 + signal for a
    stop that could not wait. One of several processes does not return from an error: it ends here.
    """
    try:
        if _asks_for_hosts():
            parallel.connect()
        args = parse_args(algorithm, preset_for_this_machine())
        machine.enable_compilation_cache()
        return main(args)
    except (RunError, *bad_input) as error:
        code, text = 2, " ".join(f"error: {error}".splitlines())  # a file's name may have several
    except (FloatingPointError, checkpoints.SaveError) as error:
        code, text = 1, f"error: {error}"
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        code, text = 128 + number, "stopped at once; what was saved before stands"
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in DISK_ERRORS
        if not (full or parallel.connected()):
            raise
        code, text = 1, parallel.LOST if parallel.is_loss(error) else traceback.format_exc()
        if full:
            text = f"error: cannot write the run's files: {error.strerror}; its checkpoints stand"
    print(text, file=sys.stderr)
    return parallel.leave(code, wait=code == 2) if parallel.connected() else code


def preset_for_this_machine() -> str:
    """Returns "cpu" or "gpu", by the device that JAX computes on.

    Raises RunError if JAX cannot start the device that JAX_PLATFORMS asks for.
    """
    try:
        return "cpu" if jax.default_backend() == "cpu" else "gpu"
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["no such device"])[0]
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise RunError(f"JAX_PLATFORMS={wanted}: JAX cannot start: {reason}; unset it") from None


def _asks_for_hosts() -> bool:
    """Whether the command line, or the run that it resumes, has --distributed.

    JAX wants to know before it starts a device.
    """
    asked = [word for word in sys.argv[1:] if word in ("--distributed", "--no-distributed")]
    if asked:  # by hand: argparse would exit over --distributed=-1
        return asked[-1] == "--distributed"
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?")
    folder = parser.parse_known_args()[0].resume
    try:
        return bool(folder) and bool(runs.read_config(folder)["args"].get("distributed"))
    except RunError:  # parse_args tells
        return False


def parse_args(algorithm: Algorithm, automatic: str, arguments: list[str] | None = None):
    """Parses the command line into `algorithm.args`: preset first, then the flags over it.

    With --resume FOLDER the arguments are those of the run there, and flags may change few of them.

    Args:
      algorithm: whose flags they are; their types and comments are what `--help` shows.
      automatic: the preset that "auto" stands for on this machine.
      arguments: the command line without the program's name; None takes this process's. With
        --evaluate FOLDER the run in that folder takes the preset's place.

    Raises:
      RunError: an unknown preset or flag, a value that does not parse, a folder without a run, or a
        flag that the run to resume or to evaluate has settled.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--preset", default="auto", nargs="?")
    chooser.add_argument("--resume", nargs="?", const="")
    chooser.add_argument("--evaluate", nargs="?", const="")
    chosen = chooser.parse_known_args(arguments)[0]
    if chosen.resume == "":
        raise RunError("--resume: needs a run folder")
    if chosen.resume and chosen.evaluate is not None:
        raise RunError("--resume: trains, --evaluate does not; leave one of them out")
    if chosen.resume:
        return _parse_resume(algorithm, Path(chosen.resume), arguments)
    name, kind, presets = chosen.preset, algorithm.args, algorithm.presets
    if name not in ("auto", *presets):
        what = "needs a value," if name is None else f"{name!r} is not"
        raise RunError(f"--preset: {what} one of auto, {', '.join(presets)}")
    if chosen.evaluate is not None:
        return _evaluation_args(algorithm, arguments, chosen.evaluate)
    name = automatic if name == "auto" else name
    default = dataclasses.replace(kind(), **presets[name])
    whose = f"preset {name}'s"
    if chosen.preset == "auto":
        whose += (
            ", which is what auto takes on this machine; `--preset paper --help` shows another's"
        )
    return dataclasses.replace(_parse(kind, arguments, default, whose), preset=name)


def _evaluation_args(algorithm: Algorithm, arguments: list[str], folder: str):
    """The arguments of the run in `folder`, with EVALUATION_FLAGS from the command line."""
    if not folder:
        raise RunError("--evaluate: needs a run folder")
    try:
        default = _stored_args(algorithm, folder)
    except RunError as error:
        raise RunError(f"--evaluate: {error}") from None
    fresh = dict(evaluate=folder, eval_episodes=EVALUATION_EPISODES, capture_video=False)
    default = dataclasses.replace(default, **fresh)
    args = _parse(algorithm.args, arguments, default, f"those of the run in {folder}")
    for name, value in vars(args).items():
        if name not in EVALUATION_FLAGS and value != getattr(default, name):
            flag = "--" + name.replace("_", "-")
            raise RunError(f"{flag}: --evaluate takes it from the run folder; leave it out")
    return args


def _parse_resume(algorithm: Algorithm, folder: Path, arguments: list[str]):
    """The arguments of the run in `folder`, with those flags over them that a resume may change.

    Raises RunError: it is no run's folder, it has no checkpoint, is finished or at work, or a flag
    is in conflict with what the run was begun with. Nothing is written.
    """
    try:
        status, was = runs.read_config(folder)["status"], _stored_args(algorithm, folder)
    except RunError as error:
        raise RunError(f"--resume: {error}") from None
    was = dataclasses.replace(was, num_seeds=1)  # of several seeds each has its folder
    default = dataclasses.replace(was, resume=str(folder))
    args = _parse(algorithm.args, arguments, default, f"those of the run in {folder}")
    if args.num_seeds != 1:
        raise RunError("--num-seeds: each seed is resumed alone, by its own folder; leave it out")
    for name, before in dataclasses.asdict(was).items():
        value, flag = getattr(args, name), "--" + name.replace("_", "-")
        chosen_then = before == "auto"  # what it stood for stands in the checkpoint
        if name == "total_timesteps" and value < before:
            text = f"{_number(value)} is less than the {_number(before)} of the run"
            raise RunError(f"{flag}: {text} in '{folder}'; a resume may only add to them")
        if value not in (before, "auto") and not chosen_then and name not in runs.CHANGEABLE:
            text = f"{value} is in conflict with the run in '{folder}', which has {before}"
            raise RunError(f"{flag}: {text}; leave it out, or begin a new run without --resume")
        args = args if value != "auto" else dataclasses.replace(args, **{name: before})
    args = dataclasses.replace(args, resume=str(folder), runs_dir=str(folder))
    chunks = contract.num_chunks(was)
    if not checkpoints.steps(folder / "checkpoints"):
        raise RunError(f"--resume: '{folder}' has no checkpoint; begin a new run without --resume")
    if status == "finished" and contract.num_chunks(args) == chunks:  # a run ends with a chunk
        steps = _number(chunks * contract.steps_per_chunk(was))
        fix = f"for more raise --total-timesteps above {steps}"
        raise RunError(f"--resume: the run in '{folder}' has finished all of its steps; {fix}")
    os.close(runs.lock(folder, shared=True))
    runs.rows_until(folder / "metrics.csv", args.total_timesteps)  # damaged: tell before compiling
    return args


def _stored_args(algorithm: Algorithm, folder: str | Path):
    """As `runs.read_args`, which raises RunError; so does a value that no flag could have had."""
    args = runs.read_args(algorithm, folder)
    try:
        check(args, algorithm)
        for name, hint in typing.get_type_hints(type(args)).items():
            choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
            if choices and getattr(args, name) not in choices:
                flag = "--" + name.replace("_", "-")
                raise RunError(f"{flag}: {getattr(args, name)!r} is not one of {choices}")
    except RunError as error:
        raise RunError(f"'{folder}': config.json is damaged: {error}") from None
    return args


def _parse(kind: type, arguments: list[str], default, whose: str):
    """The command line over `default`. Raises RunError where it does not parse.

    whose: the values in `default`, for `--help`.
    """
    complaint = io.StringIO()
    if {"-h", "--help"} & set(arguments):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    try:
        with contextlib.redirect_stderr(complaint):
            sections = tyro.cli(
                _in_sections(kind, default),
                args=arguments,
                description=f"{_title(kind)}\n\nThe defaults shown are {whose}.",
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise RunError(_first_sentence(complaint.getvalue(), kind, arguments)) from None
    values = [vars(section) for section in vars(sections).values()]
    return kind(**{name: value for section in values for name, value in section.items()})


def sections(kind: type) -> dict[str, list[str]]:
    """The names of its fields as `--help` and the table of flags group them, by title."""
    groups = {title: names.split() for title, names in contract.GROUPS.items()}
    shared = {name for names in groups.values() for name in names}
    names = [field.name for field in dataclasses.fields(kind)]
    own = {"algorithm": [name for name in names if name not in shared]}
    groups = {title: [name for name in group if name in names] for title, group in groups.items()}
    first, *rest = groups.items()
    return {title: group for title, group in (first, *own.items(), *rest) if group}


@functools.cache
def help_texts(kind: type) -> dict[str, str]:
    """Field -> the comment on its line, in the class that defines it."""
    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        source = Path(inspect.getfile(one)).read_text()
        body = re.search(rf"^class {one.__name__}\b.*?(?=^\S|\Z)", source, re.M | re.S)
        texts |= dict(re.findall(r"^    (\w+): .*?  # (.*)$", body[0] if body else "", re.M))
    return texts


def _in_sections(kind: type, default) -> type:
    """A dataclass of one dataclass for each section: tyro shows a box for each."""
    texts, types, boxes = help_texts(kind), typing.get_type_hints(kind), []
    for title, names in sections(kind).items():
        fields = []
        for name in names:
            shown = typing.Annotated[types[name], tyro.conf.arg(help=texts.get(name))]
            fields.append((name, shown, dataclasses.field(default=getattr(default, name))))
        box = dataclasses.make_dataclass(title.replace(" ", "_"), fields, frozen=True)
        boxes.append((box.__name__, box, dataclasses.field(default_factory=box)))
    return dataclasses.make_dataclass(kind.__name__, boxes, frozen=True)


def _title(kind: type) -> str:
    """The first line of what the algorithm's file says of itself."""
    return (sys.modules[kind.__module__].__doc__ or kind.__name__).strip().splitlines()[0]


def _first_sentence(boxed: str, kind: type, arguments: list[str]) -> str:
    """The message inside tyro's box, as one line, with the nearest flag to an unknown one."""
    lines = boxed.splitlines()
    # Dashes instead of lines where the terminal cannot draw them. The first rule is the box's top.
    rules = [i for i, line in enumerate(lines) if re.search("─{3}|-{3}", line)] or [-1]
    inside = lines[rules[0] + 1 : rules[1] if len(rules) > 1 else len(lines)]
    text = " ".join(re.sub(r"[╭╮╰╯│─]+", " ", " ".join(inside)).split())
    for theirs, ours in _IN_OUR_WORDS.items():
        text = re.sub(theirs, ours, text)
    unknown = re.match(r"Unrecognized options: (--)?([^,=\s]+)", text)
    if unknown and unknown[1]:
        flags = [field.name.replace("_", "-") for field in dataclasses.fields(kind)]
        near = difflib.get_close_matches(unknown[2].replace("_", "-"), flags, 1)
        text = f"--{unknown[2]}: there is no such flag" + "".join(f", but --{x}" for x in near)
    elif unknown:
        text = _of_no_flag(unknown[2], kind, arguments)
    return f"{text or 'the command line does not parse'}; see --help"


def _of_no_flag(word: str, kind: type, arguments: list[str]) -> str:
    """What to say of a word that no flag takes; after a switch, true say, that it takes none."""
    switches = {name for name, hint in typing.get_type_hints(kind).items() if hint is bool}
    words = [part for argument in arguments for part in argument.split("=", 1)]
    for before, after in itertools.pairwise(words):
        name = re.sub("^--(no[-_])?", "", before).replace("-", "_")
        if after == word and before.startswith("--") and name in switches:
            flag = name.replace("_", "-")
            return f"--{flag}: takes no value, got {word!r}; use --{flag} or --no-{flag}"
    return f"{word!r}: a flag's name has to stand before it, such as --env-id"


def check(args, algorithm: Algorithm) -> None:
    """`check_bounds` by all bounds that there are of an algorithm's arguments."""
    check_bounds(args, {**contract.BOUNDS, **algorithm.bounds})


def check_bounds(args, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Raises RunError, naming the flag, unless every field lies within its bounds (low, high)."""
    for name, (low, high) in bounds.items():
        value = getattr(args, name)
        if not low <= value <= high:  # also false for nan
            flag = "--" + name.replace("_", "-")
            upper = "" if high == math.inf else f" and at most {_number(high)}"
            raise RunError(f"{flag}: needs at least {_number(low)}{upper}, got {_number(value)}")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
