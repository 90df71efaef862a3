# SPDX-License-Identifier: LGPL-3.0-or-later
"""Reading from lcapd: one MDT, or several at once."""

import collections
import ctypes
import errno
import json
import os
import select
import subprocess
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Union

from . import _library as lib
from .record import HEAD_BYTES, Record, packed_size, unpack

_C = lib.LIBRARY

#: What a context has seen; see lcap_client(3).
Stats = collections.namedtuple("Stats", lib.CStats.NAMES)


class Gap(NamedTuple):
    """Records that are gone for good: who mirrors the file system should rescan."""

    mdt: str
    first: int
    #: 0 if that is not known.
    last: int


class Changelog:
    """The records of one MDT, as an iterator.

    ``reader``: a name that was registered (`lcap reader register`); records are kept for it until it has
    acknowledged them. Without one, nothing is kept, and reading begins with the oldest record there is.
    ``stream``, ``filter``: as for `lcap changelog`. ``follow``: go on with new records; otherwise the
    iterator ends where the records do. ``start``: first index. ``auto_ack``: a record is acknowledged
    when the next one is asked for. ``on_gap``: called with a `Gap`. ``snapshot``: of a stream of HSM
    events, begin with what is there now. ``wait``: wait for an lcapd that is not there.

    Used by one thread at a time. The server is named by LCAP_REC_URI.
    """

    def __init__(
        self,
        mdt: str,
        *,
        reader: Optional[str] = None,
        stream: Optional[str] = None,
        filter: Optional[str] = None,
        follow: bool = False,
        wait: bool = False,
        start: int = 0,
        auto_ack: bool = False,
        on_gap: Optional[Callable[[Gap], None]] = None,
        snapshot: Optional[bool] = None,
        timeout: Optional[float] = None,
        ack_interval: Optional[float] = None,
    ):
        self.mdt = mdt
        self._context = ctypes.c_void_p()
        self._auto_ack, self._on_gap = auto_ack, on_gap
        self._last: Optional[int] = None
        flags = (lib.FOLLOW if follow else 0) | (lib.BLOCK if wait else 0)
        context = ctypes.c_void_p()
        lib.check(
            _C.lcap_changelog_start(ctypes.byref(context), flags, mdt.encode(), start), None
        )
        self._context = context
        try:
            for option, value in (
                (lib.OPT_READER, reader), (lib.OPT_STREAM, stream), (lib.OPT_FILTER, filter)
            ):
                if value is not None:
                    data = value.encode("utf-8", "surrogateescape")
                    self._set(option, data, len(data))
            for option, seconds in ((lib.OPT_TIMEOUT, timeout), (lib.OPT_ACK_INTERVAL, ack_interval)):
                if seconds is not None:
                    self._set_number(option, int(seconds * 1000))
            if snapshot is not None:
                self._set_number(lib.OPT_SNAPSHOT, int(snapshot))
        except BaseException:
            self.close()
            raise

    def _set(self, option, data, size):
        lib.check(_C.lcap_changelog_setopt(self._live(), option, data, size), self._context)

    def _set_number(self, option, number):
        data = ctypes.c_uint64(number)
        self._set(option, ctypes.cast(ctypes.byref(data), ctypes.c_void_p), 8)

    def _live(self):
        if not self._context:
            raise ValueError(f"{self.mdt}: this changelog is closed")
        return self._context

    def recv(self) -> Optional[Record]:
        """Waits for the next record. None at the end."""
        context, pointer = self._live(), ctypes.c_void_p()
        if self._auto_ack and self._last is not None:
            self.ack(self._last)
        while True:
            rc = _C.lcap_changelog_recv(context, ctypes.byref(pointer))
            # Python has run the signal's handler by now; if that raised nothing, we go on.
            if rc != -errno.EINTR:
                break
        if self._on_gap is not None:
            self._tell_gap()
        if rc == 1:
            return None
        lib.check(rc, context)
        try:
            address = pointer.value
            head = ctypes.string_at(address, HEAD_BYTES)
            extra = lambda at: int.from_bytes(ctypes.string_at(address + at, 8), _ORDER)
            record = unpack(self.mdt, ctypes.string_at(address, packed_size(head, extra)))
        finally:
            _C.lcap_changelog_free(context, ctypes.byref(pointer))
        self._last = record.index
        return record

    def _tell_gap(self):
        stats = lib.CStats()
        if _C.lcap_changelog_stats(self._context, ctypes.byref(stats)) == 1:
            self._on_gap(Gap(self.mdt, stats.gap_first, stats.gap_last))

    def ack(self, upto: Union[Record, int, None] = None) -> None:
        """Done with every record that was received up to this one (an index, a record, or, without,
        the last one). Cheap: lcapd is told after a second, after many records, or by `close`."""
        index = upto.index if isinstance(upto, Record) else self._last if upto is None else upto
        if index is None:
            return
        if index < 1:
            raise ValueError("an index to acknowledge is 1 or more")
        lib.check(_C.lcap_changelog_clear(self._live(), self.mdt.encode(), b"", index), self._context)

    @property
    def stats(self) -> Stats:
        """What was seen so far."""
        stats = lib.CStats()
        lib.check(_C.lcap_changelog_stats(self._live(), ctypes.byref(stats)), self._context)
        return Stats(*(getattr(stats, name) for name in Stats._fields))

    def fileno(self) -> int:
        """For select and poll: readable when `recv` would not wait."""
        return lib.check(_C.lcap_changelog_get_fd(self._live()), self._context)

    def pending(self) -> bool:
        """Whether a record (or the end, or an error) is here already."""
        return lib.check(_C.lcap_changelog_in_buf(self._live()), self._context) > 0

    def close(self) -> None:
        """Tells lcapd what was acknowledged, and ends."""
        context, self._context = self._context, ctypes.c_void_p()
        if context:
            _C.lcap_changelog_fini(context)

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        record = self.recv()
        if record is None:
            raise StopIteration
        return record

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        # The body of the loop that ended by itself was the last record's.
        if kind is None and self._auto_ack and self._context:
            self.ack()
        self.close()

    def __del__(self):
        if getattr(self, "_context", None):
            self.close()


class Changelogs:
    """The records of several MDTs, as one iterator: in order for each, not among them.

    Takes the names of the MDTs, or None for all that lcapd serves, and what `Changelog` takes.
    """

    def __init__(self, mdts: Optional[Sequence[str]] = None, **options):
        self.logs = {}
        self._ready: collections.deque = collections.deque()
        self._poll = select.poll()
        self._by_fd = {}
        try:
            for mdt in served_mdts() if mdts is None else mdts:
                log = self.logs[mdt] = Changelog(mdt, **options)
                self._by_fd[log.fileno()] = log
                self._poll.register(log.fileno(), select.POLLIN)
        except BaseException:
            self.close()
            raise

    def recv(self) -> Optional[Record]:
        """Waits for the next record of any MDT. None when all have come to their end."""
        while True:
            while self._ready:
                log = self._ready[0]
                if not log.pending():
                    self._ready.popleft()
                    continue
                # Each in turn, so that a busy MDT does not keep the others waiting.
                self._ready.rotate(-1)
                record = log.recv()
                if record is not None:
                    return record
                self._end(log)
            if not self._by_fd:
                return None
            self._ready.extend(self._by_fd[fd] for fd, _ in self._poll.poll())

    def _end(self, log):
        self._ready.remove(log)
        fd = log.fileno()
        self._poll.unregister(fd)
        del self._by_fd[fd]

    def ack(self, record: Optional[Record] = None) -> None:
        """Done with the records of its MDT up to this one; without one, with all received."""
        if record is not None:
            self.logs[record.mdt].ack(record)
        else:
            for log in self.logs.values():
                log.ack()

    def close(self) -> None:
        for log in self.logs.values():
            log.close()
        self._by_fd.clear()

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        record = self.recv()
        if record is None:
            raise StopIteration
        return record

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for log in self.logs.values():
            log.__exit__(*exception)
        self._by_fd.clear()


def served_mdts() -> List[str]:
    """Names of the MDTs that lcapd serves. Asks `lcap`, which must be in PATH (or LCAP_COMMAND)."""
    command = [os.environ.get("LCAP_COMMAND", "lcap"), "status", "--json"]
    try:
        output = subprocess.run(command, check=True, capture_output=True).stdout
    except FileNotFoundError:
        raise lib.Error(errno.ENOENT, f"no {command[0]} in PATH to ask; name the MDTs") from None
    except subprocess.CalledProcessError as error:
        text = error.stderr.decode(errors="replace").strip()
        raise lib.Error(errno.ETIMEDOUT, text) from None
    return [mdt["name"] for mdt in json.loads(output)["mdts"]]


_ORDER = "little" if ctypes.c_uint16.from_buffer_copy(b"\1\0").value == 1 else "big"
