"""The H1's body as tables: links, the hinges that they hang on, and servos.

Masses, inertias, axes, ranges and offsets are Unitree's, as HumanoidBench has them.
"""

import dataclasses

STAND = (0.0, 0.0, 0.98)  # m, the pelvis at a reset
LEG_POSE = (0.0, 0.0, -0.4, 0.8, -0.4)  # rad, hip yaw, roll and pitch, knee, ankle at a reset
DAMPING, ARMATURE = 1.0, 0.1  # of every joint, N m s/rad and kg m^2

# position actuators: stiffness kp (N m/rad), damping kv (N m s/rad), largest force (N m)
SERVOS = {
    "hip": (200, 5, 200),
    "knee": (300, 6, 300),
    "ankle": (40, 2, 40),
    "torso": (300, 6, 200),
    "shoulder": (100, 2, 40),
    "arm": (100, 2, 18),
}


@dataclasses.dataclass(frozen=True)
class Link:
    """A link of the robot and the hinge that it hangs on; lengths in m, in the link's own frame."""

    parent: str
    offset: tuple[float, ...]  # of the link's frame, in the parent's
    joint: tuple[str, str, float, float]  # servo, axis, lowest and highest angle (rad)
    mass: float  # kg
    com: tuple[float, ...]  # centre of mass
    axes: tuple[float, ...]  # principal axes of inertia, a quaternion
    inertia: tuple[float, ...]  # about them, kg m^2
    turn: tuple[float, float] = (1.0, 0.0)  # w and x of the frame's quaternion; about x only


# Of pairs the left one; the right is its mirror image. Depth first, which is qpos's order.
# fmt: off
LEG = {
    "hip_yaw": Link("pelvis", (0, 0.0875, -0.1742), ("hip", "z", -0.43, 0.43), 2.244,
        (-0.04923, 0.0001, 0.0072), (0.69699, 0.219193, 0.233287, 0.641667),
        (0.00304494, 0.00296885, 0.00189201)),
    "hip_roll": Link("hip_yaw", (0.039468, 0, 0), ("hip", "x", -0.43, 0.43), 2.232,
        (-0.0058, -0.00319, -9e-05), (0.0438242, 0.70721, -0.0729075, 0.701867),
        (0.00243264, 0.00225325, 0.00205492)),
    "hip_pitch": Link("hip_roll", (0, 0.11536, 0), ("hip", "y", -3.14, 2.53), 4.152,
        (0.00746, -0.02346, -0.08193), (0.979828, 0.0513522, -0.0169854, -0.192382),
        (0.0829503, 0.0821457, 0.00510909)),
    "knee": Link("hip_pitch", (0, 0, -0.4), ("knee", "y", -0.26, 2.05), 1.721,
        (-0.00136, -0.00512, -0.1384), (0.626132, -0.034227, -0.0416277, 0.777852),
        (0.0125237, 0.0123104, 0.0019428)),
    "ankle": Link("knee", (0, 0, -0.4), ("ankle", "y", -0.87, 0.52), 0.552448,
        (0.048568, 0, -0.045609), (0.489385, 0.510394, 0.510394, 0.489385),
        (0.00362, 0.00355701, 0.000149987)),
}
TORSO = {
    "torso": Link("pelvis", (0, 0, 0), ("torso", "z", -2.35, 2.35), 17.789,
        (0.000489, 0.002797, 0.20484), (0.999989, -0.00130808, -0.00282289, -0.00349105),
        (0.487315, 0.409628, 0.127837)),
}
ARM = {
    "shoulder_pitch": Link("torso", (0.0055, 0.15535, 0.42999), ("shoulder", "y", -2.87, 2.87),
        1.033, (0.005045, 0.053657, -0.015715), (0.814858, 0.579236, -0.0201072, -0.00936488),
        (0.00129936, 0.000987113, 0.000858198),
        turn=(0.976296, 0.216438)),
    "shoulder_roll": Link("shoulder_pitch", (-0.0055, 0.0565, -0.0165),
        ("shoulder", "x", -0.34, 3.11),
        0.793, (0.000679, 0.00115, -0.094076), (0.732491, 0.00917179, 0.0766656, 0.676384),
        (0.00170388, 0.00158256, 0.00100336),
        turn=(0.976296, -0.216438)),
    "shoulder_yaw": Link("shoulder_roll", (0, 0, -0.1343), ("arm", "z", -1.3, 4.45), 0.839,
        (0.01365, 0.002767, -0.16266), (0.703042, -0.0331229, -0.0473362, 0.708798),
        (0.00408038, 0.00370367, 0.000622687)),
    "elbow": Link("shoulder_yaw", (0.0185, 0, -0.198), ("arm", "y", -1.25, 2.61), 0.669,
        (0.15908, -0.000144, -0.015776), (0.0765232, 0.720327, 0.0853116, 0.684102),
        (0.00601829, 0.00600579, 0.000408305)),
}
# fmt: on
PELVIS_MASS, PELVIS_COM = 5.39, (-0.0002, 4e-05, -0.04522)
PELVIS_AXES = (0.498303, 0.499454, -0.500496, 0.501741)
PELVIS_INERTIA = (0.0490211, 0.0445821, 0.00824619)
# site -> its link and place: the head's height is the reward's, eyes and hands are no links
SITES = {
    "head": ("torso", (0, 0, 0.7)),
    "imu": ("torso", (-0.04452, -0.01891, 0.27756)),
    "left_foot": ("left_ankle", (0, 0, -0.05)),
    "right_foot": ("right_ankle", (0, 0, -0.05)),
    "left_hand": ("left_elbow", (0.31, 0, -0.01)),
}
