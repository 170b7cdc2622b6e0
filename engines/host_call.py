"""Calls a Python function from a compiled program on a CPU: XLA's foreign function interface.

`jax.pure_callback` would do, but for two things: JAX never writes a program with one to its
persistent cache, so that each start compiles anew; and a call costs over 0.1 ms. Here the program
holds a name only. A function is registered under it, in C's terms, by the structures of XLA's
`c_api.h` (in `jax.ffi.include_dir()`), whose binary interface XLA keeps for a year at least and
extends at the end.
"""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p, pointer

import jax
import numpy as np

API_VERSION = (0, 3)  # of c_api.h in jax 0.10.2; jax 0.11.2 has 0.4 and 0.12.0.1 has 0.5
METADATA, EXECUTE, INTERNAL = 1, 3, 13  # kind of extension, stage, kind of error


class _Structure(ctypes.Structure):
    """What each of `c_api.h` begins with."""

    _fields_ = [("struct_size", c_size_t), ("extension_start", c_void_p)]


class _Version(_Structure):
    _fields_ = [("major", c_int), ("minor", c_int)]


class _Metadata(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("version", _Version), ("traits", c_uint32)]


class _Extension(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("kind", c_int), ("next", c_void_p)]
    _fields_ += [("metadata", POINTER(_Metadata))]


class _Buffer(_Structure):
    _fields_ = [("dtype", c_int), ("data", c_void_p), ("rank", c_int64), ("dims", POINTER(c_int64))]


class _Buffers(_Structure):  # arguments, and results
    _fields_ = [("size", c_int64), ("kinds", c_void_p), ("buffers", POINTER(POINTER(_Buffer)))]


class _Error(_Structure):
    _fields_ = [("message", c_char_p), ("code", c_int)]


class _Api(_Structure):
    _fields_ = [("version", _Version), ("internal", c_void_p)]
    _fields_ += [("create_error", ctypes.CFUNCTYPE(c_void_p, POINTER(_Error)))]


class _Frame(_Structure):
    _fields_ = [("api", POINTER(_Api)), ("context", c_void_p), ("stage", c_int)]
    _fields_ += [("arguments", _Buffers), ("results", _Buffers)]


_HANDLER = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))
_registered: dict[str, Callable] = {}  # XLA's registry is the process's, and so is this


def register(name: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
    """Makes `function`, float32 array -> float32 array, known to compiled programs as `name`.

    It is called from XLA's threads. A name that is known keeps its function: the name is all that
    a program in the cache has, so it must say all that the function's results depend on.
    """
    if name in _registered:
        return

    def handle(frame) -> int | None:
        try:
            return _handle(frame[0], function)
        except BaseException as error:  # nothing can pass through C
            text = f"{type(error).__name__}: {error}".encode()
            size = ctypes.sizeof(_Error)
            return frame[0].api[0].create_error(pointer(_Error(size, None, text, INTERNAL)))

    handler = _HANDLER(handle)
    _registered[name] = handler  # XLA has its address only
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")


def call(name: str, shape: tuple[int, ...], inputs: jax.Array) -> jax.Array:
    """The registered function's result, float32 of `shape`, as a part of a jitted program.

    Under `vmap` the function gets all inputs at once, with the new axis in front.
    """
    result = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.ffi.ffi_call(name, result, vmap_method="broadcast_all")(inputs)


def _handle(frame: _Frame, function: Callable[[np.ndarray], np.ndarray]) -> None:
    if frame.extension_start:  # XLA asks what the handler was written for
        extension = ctypes.cast(frame.extension_start, POINTER(_Extension))[0]
        if extension.kind == METADATA:
            version = extension.metadata[0].version
            version.major, version.minor = API_VERSION
            return
    if frame.stage == EXECUTE:
        result = _array(frame.results)
        result[...] = function(_array(frame.arguments))


def _array(buffers: _Buffers) -> np.ndarray:
    """The only buffer, without a copy."""
    buffer = buffers.buffers[0][0]
    shape = buffer.dims[: buffer.rank]
    count = int(np.prod(shape))
    data = (ctypes.c_float * count).from_address(buffer.data)
    return np.frombuffer(data, np.float32, count).reshape(shape)
