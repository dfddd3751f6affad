"""Memory that is about to be overwritten: a bytearray of zeros costs 30 us per MiB, to clear what a read then fills."""

import ctypes

_new = ctypes.pythonapi.PyByteArray_FromStringAndSize
_new.restype = ctypes.py_object
_new.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)


def unfilled(length: int) -> bytearray:
    """So many bytes that hold anything. Whoever takes it fills all of it, or throws it away."""
    made: bytearray = _new(None, length)
    return made
