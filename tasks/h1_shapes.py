"""What of the H1 collides: capsules and spheres in place of HumanoidBench's meshes.

So there are no files, and every engine agrees on contacts. A mesh collides as its convex hull; the
shapes were fitted to the hulls' surfaces (root mean square distance 4 to 9 mm, up to 33 mm at
corners) and to their extents, which tests/test_h1.py has.
"""

# Of pairs the left one; the right is its mirror image. link -> suffix of the geom's name -> radius
# (m) and place of a sphere (3 numbers) or of the two ends of a capsule (6), in the link's frame.
Shapes = dict[str, tuple[float, tuple[float, ...]]]
# fmt: off
SHAPES: dict[str, Shapes] = {
    "pelvis": {
        "_front": (0.044, (0.025, -0.107, -0.041, 0.025, 0.107, -0.041)),
        "_back": (0.044, (-0.025, -0.107, -0.041, -0.025, 0.107, -0.041)),
        "_edge": (0.0145, (0.0535, -0.118, -0.0695, 0.0535, 0.118, -0.0695)),
    },
    "hip_yaw": {  # a disc of radius 0.06 across x, and where its rims meet thigh and other hip
        "_0": (0.035, (-0.065, -0.027, 0.004, -0.07, 0.028, -0.006)),
        "_1": (0.036, (-0.067, -0.013, -0.023, -0.067, 0.017, 0.02)),
        "_2": (0.035, (-0.065, -0.011, 0.026, -0.07, 0.012, -0.026)),
        "_front": (0.0145, (-0.0445, 0.015, -0.047, -0.0445, 0.035, -0.035)),
        "_back": (0.016, (-0.087, -0.0455, 0.014, -0.087, -0.0455, -0.011)),
    },
    "hip_roll": {
        "_0": (0.05, (-0.005, -0.01, 0.014, -0.023, -0.007, -0.014)),
        "_1": (0.044, (-0.03, 0.008, 0.009, 0.016, -0.014, -0.006)),
    },
    "hip_pitch": {  # the thigh; two corners of its motor's housing meet hip_yaw's and pelvis's
        "_motor": (0.042, (-0.015, -0.053, 0.011, -0.01, -0.046, -0.087)),
        "_upper": (0.054, (0.003, -0.016, 0.013, 0.007, -0.023, -0.184)),
        "_lower": (0.041, (0.018, -0.051, 0.008, 0.024, -0.002, -0.409)),
        "_front": (0.019, (0.039, -0.068, -0.087, 0.036, -0.062, -0.094)),
        "_back": (0.013, (-0.036, -0.07, -0.092, -0.0395, -0.0755, -0.0715)),
    },
    "knee": {  # the shin
        "_calf": (0.041, (-0.005, -0.004, -0.232, -0.015, -0.007, -0.096)),
        "_front": (0.038, (0.013, -0.001, -0.385, 0.013, -0.006, -0.065)),
        "_back": (0.027, (-0.029, -0.006, -0.107, 0.02, 0, 0.018)),
    },
    "ankle": {  # the foot, a bar; the first two are its sole, flat on 0.289 x 0.024 m
        "_outer": (0.0055, (-0.0945, 0.012, -0.0645, 0.1945, 0.012, -0.0645)),
        "_inner": (0.0055, (-0.0945, -0.012, -0.0645, 0.1945, -0.012, -0.0645)),
        "_toe": (0.015, (0, 0, -0.004, 0.183, 0, -0.052)),
        "_heel": (0.015, (0, 0, -0.004, -0.083, 0, -0.052)),
    },
    "torso": {
        "_left": (0.078, (0.002, 0.04, 0.076, 0.006, 0.093, 0.409)),
        "_right": (0.078, (0.002, -0.04, 0.076, 0.006, -0.093, 0.409)),
        "_left_shoulder": (0.084, (0.032, 0.02, 0.58, 0.01, 0.069, 0.452)),
        "_right_shoulder": (0.084, (0.032, -0.02, 0.58, 0.01, -0.069, 0.452)),
        "_left_neck": (0.082, (0.007, 0.048, 0.249, 0.043, 0, 0.672)),
        "_right_neck": (0.082, (0.007, -0.048, 0.249, 0.043, 0, 0.672)),
        "_face": (0.016, (0.108, -0.033, 0.69, 0.108, 0.033, 0.69)),
    },
    "shoulder_pitch": {
        "_inner": (0.035, (-0.005, 0.046, -0.03, -0.003, 0.032, 0.003)),
        "_outer": (0.036, (-0.004, 0.069, -0.005, -0.005, 0.07, -0.025)),
    },
    "shoulder_roll": {
        "_0": (0.032, (0.017, 0.007, -0.054, -0.013, -0.013, -0.107)),
        "_1": (0.034, (0.013, 0.011, -0.102, -0.008, 0.013, -0.103)),
        "_2": (0.023, (0.033, 0, 0.004, 0.003, -0.028, -0.115)),
        "_inner": (0.028, (0.013, -0.014, -0.059)),
    },
    "shoulder_yaw": {
        "_front": (0.026, (0.042, 0, -0.202, 0.015, 0, -0.025)),
        "_back": (0.029, (0.001, 0.002, -0.215, -0.002, -0.002, -0.028)),
    },
    "elbow": {
        "": (0.037, (-0.003, 0.001, 0, 0.137, 0.001, -0.01)),
        "_hand": (0.035, (0.137, 0, -0.01, 0.28, 0.001, -0.019)),
    },
}
# fmt: on
# Links that are no neighbours, and whose shapes overlap as the robot is built.
OVERLAPS = (("pelvis", "hip_roll"),)
# What touches on mjx: feet, hands, hips and pelvis; nothing else of the robot.
MJX_PARTS = ("{}_ankle_outer", "{}_ankle_inner", "{}_elbow_hand", "{}_hip_yaw_1")
MJX_ROBOT = (
    "pelvis_front",
    *(part.format(side) for side in ("left", "right") for part in MJX_PARTS),
)
