"""Many short positioned reads of one file in one call, without the interpreter between them."""

from __future__ import annotations

from typing import Any

from numba import njit
from numba.core import types

__all__ = ["read_pieces"]

_pread: Any = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))
_kernel: Any = njit(nogil=True, cache=True)


@_kernel
def read_pieces(descriptor, out, places, lengths, offsets):  # pragma: no cover - compiled
    """out[places_i : places_i + lengths_i] = the file's bytes from offsets_i (int64 each), piece after piece.

    Returns the first piece that the system did not read whole, or how many there are: the caller reads that one by
    the ordinary way, which tries again or says what is wrong.
    """
    address = out.ctypes.data
    for i in range(len(places)):
        if places[i] < 0 or lengths[i] < 0 or places[i] + lengths[i] > len(out):
            return i
        if _pread(descriptor, address + places[i], lengths[i], offsets[i]) != lengths[i]:
            return i
    return len(places)
