"""C's contact tangents for a capsule on a plane, in MuJoCo Warp. Import it where Warp is there.

As in MJX's own port (`mjx._plane_capsule`), Warp turns the first tangent of a steep capsule to a
world axis, where C lets it follow the capsule, and a pyramidal friction cone depends on it.
"""

import warp as wp
from mujoco.mjx.third_party.mujoco_warp._src import collision_primitive, collision_primitive_core

_warps_own = collision_primitive_core.plane_capsule
# Below this length float32 does not tell where a capsule points, seen from above.
UPRIGHT = wp.constant(1e-6)


@wp.func
def plane_capsule(
    normal: wp.vec3,
    plane_pos: wp.vec3,
    pos: wp.vec3,
    axis: wp.vec3,
    radius: float,
    half_length: float,
):
    """As Warp's own: distances (2,), points (2, 3), frame (3, 3); only the frame is another."""
    distances, points, frame = _warps_own(normal, plane_pos, pos, axis, radius, half_length)
    along = axis - normal * wp.dot(normal, axis)
    length = wp.length(along)
    if length > UPRIGHT:
        tangent = along / length
        side = wp.cross(normal, tangent)
        frame = wp.matrix_from_rows(normal, tangent, side)
    return distances, points, frame


def install() -> None:
    """Puts it in the place of Warp's own, in this process; before any kernel is built."""
    collision_primitive.plane_capsule = plane_capsule
