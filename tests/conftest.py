"""What all tests share: no display, and compiled programs kept between runs."""

import os
import pathlib

os.environ.setdefault("MUJOCO_GL", "disable")

import jax

CACHE = pathlib.Path(__file__).parents[1] / ".jax_cache"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
