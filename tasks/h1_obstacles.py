"""What stands around the H1: stairs, slopes, hurdles, poles, a tunnel, a maze, chair and board.

Sizes and places are HumanoidBench's. Where it has meshes (slopes) or cylinders (poles), here are
boxes and capsules whose surfaces are the same wherever the robot can touch them.
"""

import dataclasses
import math

import mujoco
import numpy as np

WOOD, STONE, GLASS = (0.72, 0.55, 0.37, 1), (0.62, 0.64, 0.68, 1), (0.5, 0.55, 0.65, 0.25)
POLE, METAL = (0.42, 0.44, 0.5, 1), (0.35, 0.38, 0.42, 1)
CHECKPOINTS = ((0, 0), (3, 0), (3, 6), (6, 6), (6, 6))  # m, through the maze; the last is the end
# The maze from above, x to the right, y upwards, in squares of 1.5 m; # is a wall 1.2 m high.
MAZE = (
    "#######",
    "#     #",
    "### # #",
    "#     #",
    "# # ###",
    "#     #",
    "#######",
)
ALONG_THE_WAY = ("stair", "crawl", "pole", "slide", "hurdle", "maze")
SQUARE, MAZE_ORIGIN = 1.5, -2.25  # m, the lower left corner in x and in y


@dataclasses.dataclass(frozen=True)
class Obstacles:
    """Names of what was added to a world.

    Attributes:
      fixed: geoms that do not move.
      loose: geoms of bodies that do.
      bodies: whose positions the rewards read.
      touches: sensor -> the geom whose contacts it counts, and with which other ("": with any).
    """

    fixed: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    bodies: tuple[str, ...] = ()
    touches: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)


def add(spec: mujoco.MjSpec, task: str) -> Obstacles:
    """Adds a task's obstacles to a world with the robot, and their pose to its keyframe."""
    builders = {
        "stair": _stairs,
        "crawl": _tunnel,
        "pole": _poles,
        "slide": _slopes,
        "hurdle": _hurdles,
        "maze": _maze,
        "sit_simple": _chair,
        "sit_hard": lambda spec: _chair(spec, loose=True),
        "balance_simple": _board,
        "balance_hard": lambda spec: _board(spec, rolling=True),
        "reach": _target,
    }
    return builders[task](spec) if task in builders else Obstacles()


def _box(body, name: str, centre, half, look=STONE, **more) -> str:
    box = mujoco.mjtGeom.mjGEOM_BOX
    body.add_geom(name=name, type=box, pos=centre, size=half, rgba=look, **more)
    return name


def _boxes(body, prefix: str, rows, look=STONE) -> tuple[str, ...]:
    """Adds boxes given as (centre, half sizes)."""
    return tuple(_box(body, f"{prefix}{i}", *row, look) for i, row in enumerate(rows))


def _stairs(spec: mujoco.MjSpec) -> Obstacles:
    """Four stepped hills of five layers: steps 0.18 m high and 0.6 m deep."""
    layers = [
        ((0.2 + x, 0, 0.09 + 0.18 * i), (2.7 - 0.6 * i, 5, 0.09))
        for x in (3, 9, 15, 21)
        for i in range(5)
    ]
    walls = [((13.5, y, 2), (15.5, 0.1, 2)) for y in (-5.05, 5.05)] + [
        ((-2.1, 0, 2), (0.1, 7.25, 2))
    ]
    world = spec.worldbody
    return Obstacles(_boxes(world, "step", layers) + _boxes(world, "wall", walls, GLASS))


def _slopes(spec: mujoco.MjSpec) -> Obstacles:
    """Nine hills, 5 m up by 1.75 m and 5 m down: their two faces are tilted boxes."""
    run, rise, thick = 5.0, 1.75, 0.5
    tilt, names = math.atan2(rise, run), []
    length = math.hypot(run, rise)
    for hill in range(9):
        for side, up in (("up", 1), ("down", -1)):
            # From the middle of the face inwards by half the box's thickness.
            x = 0.3 + 10 * hill + run * (0.5 if up > 0 else 1.5)
            inwards = np.array([up * math.sin(tilt), 0, -math.cos(tilt)]) * thick / 2
            centre = np.array([x, 0, rise / 2]) + inwards
            turn = (math.cos(tilt / 2), 0, -up * math.sin(tilt / 2), 0)
            half = (length / 2, 5, thick / 2)
            names.append(_box(spec.worldbody, f"{side}{hill}", centre, half, quat=turn))
    walls = [((48.85, y, 4), (53, 0.15, 4)) for y in (-5.15, 5.15)] + [
        ((-4, 0, 4), (0.15, 5.15, 4))
    ]
    return Obstacles((*names, *_boxes(spec.worldbody, "wall", walls, GLASS)))


def _tunnel(spec: mujoco.MjSpec) -> Obstacles:
    """Two walls and a ceiling at 1.15 m, from 2.2 m to 18.2 m."""
    rows = [((10.2, y, 0.775), (8, 0.2, 0.775)) for y in (-1.35, 1.35)]
    rows.append(((10.2, 0, 1.35), (8, 1.15, 0.2)))
    return Obstacles(_boxes(spec.worldbody, "tunnel", rows, GLASS))


def _poles(spec: mujoco.MjSpec) -> Obstacles:
    """41 rows of poles, a metre apart, four and three in turn, and barriers on three sides."""
    names = []
    for row in range(1, 42):
        for y in (2.25, 0.75, -0.75, -2.25) if row % 2 else (1.5, 0, -1.5):
            names.append(f"pole{len(names)}")
            # Of height 2 m, taller than the robot: its rounded ends are out of reach.
            spec.worldbody.add_geom(
                name=names[-1],
                type=mujoco.mjtGeom.mjGEOM_CAPSULE,
                pos=(row, y, 1),
                size=(0.05, 1, 0),
                rgba=POLE,
            )
    walls = [((20, y, 1), (20.75, 0.15, 1)) for y in (-3.15, 3.15)]
    walls.append(((-0.6, 0, 1), (0.15, 3, 1)))
    fixed = (*names, *_boxes(spec.worldbody, "wall", walls, GLASS))
    return Obstacles(fixed, touches={f"touch_{name}": (name, "") for name in names})


def _hurdles(spec: mujoco.MjSpec) -> Obstacles:
    """Ten hurdles 0.375 m high, 7 m apart, between barriers that cost reward to touch."""
    rows = [((7 * i, 0, 0.1875), (0.03, 5, 0.1875)) for i in range(1, 11)]
    walls = [((35, y, 1), (35.5, 0.275, 1)) for y in (-4.725, 4.725)]
    walls.append(((-0.525, 0, 1), (0.05, 5, 1)))
    barriers = _boxes(spec.worldbody, "barrier", walls, GLASS)
    fixed = _boxes(spec.worldbody, "hurdle", rows, WOOD) + barriers
    return Obstacles(fixed, touches={f"touch_{name}": (name, "") for name in barriers})


def _maze(spec: mujoco.MjSpec) -> Obstacles:
    rows = []
    for i, line in enumerate(reversed(MAZE)):
        for j, square in enumerate(line):
            x, y = (MAZE_ORIGIN + SQUARE * (k + 0.5) for k in (j, i))
            if square == "#":
                rows.append(((x, y, 0.6), (0.75, 0.75, 0.6)))
    blocks = _boxes(spec.worldbody, "block", rows, (*STONE[:3], 0.6))
    for i, place in enumerate(CHECKPOINTS[:-1]):
        _marker(spec.worldbody, f"checkpoint{i}", (*place, 1))
    return Obstacles(blocks, touches={f"touch_{name}": (name, "") for name in blocks})


def _chair(spec: mujoco.MjSpec, loose: bool = False) -> Obstacles:
    """A chair with its seat at 0.475 m: what is seen has the mass, two plain boxes collide."""
    chair = spec.worldbody.add_body(name="chair", pos=(-0.25, 0, 0))
    parts = [((x, y, 0.225), (0.02, 0.02, 0.225)) for x in (-0.19, 0.19) for y in (-0.19, 0.19)]
    parts += [((-0.23, y, 0.6375), (0.02, 0.02, 0.2125)) for y in (-0.19, 0.19)]
    parts += [((0, 0, 0.45), (0.21, 0.21, 0.025)), ((-0.23, 0, 0.77), (0.02, 0.21, 0.08))]
    for centre, half in parts:
        _box(chair, "", centre, half, WOOD, contype=0, conaffinity=0, density=1000)
    hidden = {"look": (0, 0, 0, 0), "density": 0, "group": 3}
    solid = (
        _box(chair, "back", (-0.23, 0, 0.65), (0.02, 0.21, 0.2), **hidden),
        _box(chair, "seat", (0, 0, 0.2375), (0.21, 0.21, 0.2375), **hidden),
    )
    if not loose:
        return Obstacles(solid, bodies=("chair",))
    chair.add_freejoint(name="chair")
    _extend_start(spec, (-0.25, 0, 0))
    return Obstacles(loose=solid, bodies=("chair",))


def _board(spec: mujoco.MjSpec, rolling: bool = False) -> Obstacles:
    """A board on a ball, which rolls or does not; the robot starts above it."""
    board = spec.worldbody.add_body(name="board", pos=(0, 0, 0.37))
    board.add_freejoint(name="board")
    _box(board, "board", (0, 0, 0), (0.15, 0.55, 0.03), WOOD, density=1000)
    ball = spec.worldbody.add_body(name="ball", pos=(0, 0, 0.17))
    sphere, size = mujoco.mjtGeom.mjGEOM_SPHERE, (0.17, 0, 0)
    ball.add_geom(name="ball", type=sphere, size=size, rgba=METAL, density=1000)
    _extend_start(spec, (0, 0, 0.37))
    if rolling:
        ball.add_freejoint(name="ball")
        _extend_start(spec, (0, 0, 0.17))
    start = spec.key("start")
    start.qpos = [-0.1, 0, 1.38, *list(start.qpos)[3:]]
    touches = {"touch_ball": ("ball", ""), "touch_floor": ("floor", "")}
    touches |= {"ball_floor": ("ball", "floor"), "ball_board": ("ball", "board")}
    loose = ("board", "ball") if rolling else ("board",)
    return Obstacles(() if rolling else ("ball",), loose, touches=touches)


def _target(spec: mujoco.MjSpec) -> Obstacles:
    target = spec.worldbody.add_body(name="target", pos=(0.5, 0.3, 1.2))
    _marker(target, "target", (0, 0, 0))
    return Obstacles()


def _marker(body, name: str, place) -> None:
    sphere, look = mujoco.mjtGeom.mjGEOM_SPHERE, (0.85, 0.25, 0.25, 1)
    untouched = {"contype": 0, "conaffinity": 0}
    body.add_geom(name=name, type=sphere, pos=place, size=(0.05, 0, 0), rgba=look, **untouched)


def _extend_start(spec: mujoco.MjSpec, place) -> None:
    """Adds a free body's place, upright, to the end of the keyframe."""
    start = spec.key("start")
    start.qpos = [*start.qpos, *place, 1, 0, 0, 0]
