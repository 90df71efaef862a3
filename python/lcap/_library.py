# SPDX-License-Identifier: LGPL-3.0-or-later
"""liblcapclient by ctypes: prototypes, and errors as exceptions."""

import ctypes
import os
from ctypes import POINTER, c_char_p, c_int, c_longlong, c_size_t, c_ulonglong, c_void_p

FOLLOW = 0x01
BLOCK = 0x02

OPT_READER = 1
OPT_STREAM = 2
OPT_FILTER = 3
OPT_PREFETCH = 4
OPT_ACK_INTERVAL = 5
OPT_TIMEOUT = 6
OPT_SNAPSHOT = 7


class Error(OSError):
    """lcapd or its library refuses, or nobody answers; `errno` says which, the text what to do."""


class CStats(ctypes.Structure):
    """struct lcap_cl_stats"""

    NAMES = (
        "records", "bytes", "last_index", "head_index", "lag_records", "gaps", "gap_first",
        "gap_last", "redelivered", "repeated", "reconnects", "malformed",
    )
    _fields_ = [(name, c_ulonglong) for name in NAMES] + [("reserved", c_ulonglong * 12)]


def _load():
    name = os.environ.get("LCAP_CLIENT_LIBRARY", "liblcapclient.so.1")
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise ImportError(
            f"{error}; install the lcap client library, or say where it is with LCAP_CLIENT_LIBRARY"
        ) from None
    prototypes = {
        "start": (c_int, POINTER(c_void_p), c_int, c_char_p, c_longlong),
        "fini": (c_int, c_void_p),
        "recv": (c_int, c_void_p, POINTER(c_void_p)),
        "free": (c_int, c_void_p, POINTER(c_void_p)),
        "clear": (c_int, c_void_p, c_char_p, c_char_p, c_longlong),
        "setopt": (c_int, c_void_p, c_int, c_void_p, c_size_t),
        "get_fd": (c_int, c_void_p),
        "in_buf": (c_int, c_void_p),
        "stats": (c_int, c_void_p, POINTER(CStats)),
        "error": (c_char_p, c_void_p),
    }
    for name, (result, *arguments) in prototypes.items():
        function = getattr(library, "lcap_changelog_" + name)
        function.restype, function.argtypes = result, arguments
    return library


LIBRARY = _load()


def check(rc, context):
    """Gives back what is not an error."""
    if rc >= 0:
        return rc
    text = LIBRARY.lcap_changelog_error(context) or b""
    raise Error(-rc, text.decode(errors="replace") or os.strerror(-rc))
