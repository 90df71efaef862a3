# SPDX-License-Identifier: LGPL-3.0-or-later
"""Changelog records and HSM events, out of their packed bytes."""

import base64
import datetime
import enum
import ipaddress
import struct
from typing import NamedTuple, Optional

HEAD_BYTES = 64
_HEAD = struct.Struct("=HHIQQQ")
_FID = struct.Struct("=QII")

_RENAME, _JOBID, _EXTRA = 0x2000, 0x4000, 0x8000
_UIDGID, _NID, _OPEN, _XATTR, _NID_BE = 0x1, 0x2, 0x4, 0x8, 0x10
_EXTRA_SIZES = ((_UIDGID, 16), (_NID, 24), (_OPEN, 4), (_XATTR, 256))

HSM_EVENT_TYPE = 0x6C630001


class RecordType(enum.IntEnum):
    """What happened; the names are Lustre's."""

    MARK = 0
    CREAT = 1
    MKDIR = 2
    HLINK = 3
    SLINK = 4
    MKNOD = 5
    UNLNK = 6
    RMDIR = 7
    RENME = 8
    RNMTO = 9
    OPEN = 10
    CLOSE = 11
    LYOUT = 12
    TRUNC = 13
    SATTR = 14
    XATTR = 15
    HSM = 16
    MTIME = 17
    CTIME = 18
    ATIME = 19
    MIGRT = 20
    FLRW = 21
    RESYNC = 22
    GXATR = 23
    NOPEN = 24


class HsmRecordEvent(enum.IntEnum):
    """What an HSM record of a changelog reports. Not the numbers of actions."""

    ARCHIVE = 0
    RESTORE = 1
    CANCEL = 2
    RELEASE = 3
    REMOVE = 4
    STATE = 5


class HsmKind(enum.IntEnum):
    """What happened to an HSM action."""

    NEW = 1
    UPDATE = 2
    PURGED = 3


class HsmAction(enum.IntEnum):
    """What is asked for."""

    UNKNOWN = 0
    NOOP = 10
    ARCHIVE = 20
    RESTORE = 21
    REMOVE = 22
    CANCEL = 23


class HsmStatus(enum.IntEnum):
    """How far an action is."""

    UNKNOWN = 0
    WAITING = 1
    STARTED = 2
    FAILED = 3
    CANCELED = 4
    SUCCEED = 5


class Fid(NamedTuple):
    """Names a file, whatever its path. Its text is what `lfs fid2path` takes."""

    seq: int
    oid: int
    ver: int

    def __str__(self):
        # C's %#llx, which Lustre prints with, leaves zero alone.
        seq = f"{self.seq:#x}" if self.seq else "0"
        return f"[{seq}:{self.oid:#x}:{self.ver:#x}]"

    def __bool__(self):
        return self.seq != 0 or self.oid != 0


def _known(kind, number):
    """The member of an enumeration, or the number if this version does not know it."""
    try:
        return kind(number)
    except ValueError:
        return number


def _until_nul(data):
    return data.split(b"\0", 1)[0]


def packed_size(head, extra_flags):
    """Bytes of a record with that head; `extra_flags` are called for the flags, if it has any."""
    namelen, flags = struct.unpack_from("=HH", head)
    size = HEAD_BYTES
    if flags & _RENAME:
        size += 32
    if flags & _JOBID:
        size += 32
    if flags & _EXTRA:
        extra = extra_flags(size)
        size += 8 + sum(n for flag, n in _EXTRA_SIZES if extra & flag)
    return size + namelen


class Record:
    """One record. Names are bytes, since file systems do not care what they mean; `text` makes
    them printable."""

    __slots__ = (
        "mdt", "data", "index", "type", "flags", "time_ns", "_rename", "_jobid", "_extra",
        "_extra_flags", "_name",
    )

    def __init__(self, mdt: str, data: bytes):
        namelen, flags, number, index, _, time = _HEAD.unpack_from(data)
        #: Name of the MDT.
        self.mdt = mdt
        #: The packed record, exactly as the MDT wrote it.
        self.data = data
        #: Its number on the MDT, growing, with gaps.
        self.index = index
        #: A `RecordType`, or a number that this version does not know.
        self.type = _known(RecordType, number)
        self.flags = flags
        #: Nanoseconds since 1970.
        self.time_ns = (time >> 30) * 1_000_000_000 + (time & 0x3FFFFFFF)
        at = HEAD_BYTES
        self._rename = at if flags & _RENAME else None
        at += 32 if flags & _RENAME else 0
        self._jobid = at if flags & _JOBID else None
        at += 32 if flags & _JOBID else 0
        self._extra, self._extra_flags = {}, 0
        if flags & _EXTRA:
            (self._extra_flags,) = struct.unpack_from("=Q", data, at)
            at += 8
            for flag, size in _EXTRA_SIZES:
                if self._extra_flags & flag:
                    self._extra[flag] = at
                    at += size
        self._name = data[at : at + namelen]

    @property
    def type_name(self) -> str:
        """`CREAT`, `UNLNK`, …"""
        return self.type.name if isinstance(self.type, RecordType) else str(self.type)

    @property
    def time(self) -> datetime.datetime:
        """When, in UTC; microseconds, `time_ns` has all."""
        utc = datetime.datetime.fromtimestamp(self.time_ns // 1_000_000_000, datetime.timezone.utc)
        return utc.replace(microsecond=self.time_ns % 1_000_000_000 // 1000)

    @property
    def fid(self) -> Fid:
        """The object; of a rename, what was overwritten."""
        return Fid(*_FID.unpack_from(self.data, 32))

    @property
    def parent(self) -> Fid:
        """Its directory."""
        return Fid(*_FID.unpack_from(self.data, 48))

    @property
    def name(self) -> bytes:
        """The name; of a rename, the new one."""
        return _until_nul(self._name)

    @property
    def source_name(self) -> Optional[bytes]:
        """Of a rename: the old name."""
        if self._rename is None:
            return None
        return self._name.split(b"\0", 1)[1] if b"\0" in self._name else b""

    @property
    def source(self) -> Optional[Fid]:
        """Of a rename: what was moved."""
        return None if self._rename is None else Fid(*_FID.unpack_from(self.data, self._rename))

    @property
    def source_parent(self) -> Optional[Fid]:
        """Of a rename: the directory that it left."""
        at = self._rename
        return None if at is None else Fid(*_FID.unpack_from(self.data, at + 16))

    @property
    def jobid(self) -> Optional[str]:
        """The scheduler's tag, if the file system writes it."""
        at = self._jobid
        return None if at is None else text(_until_nul(self.data[at : at + 32]))

    def _number(self, flag, form, offset=0):
        at = self._extra.get(flag)
        return None if at is None else struct.unpack_from(form, self.data, at + offset)[0]

    @property
    def uid(self) -> Optional[int]:
        return self._number(_UIDGID, "=Q")

    @property
    def gid(self) -> Optional[int]:
        return self._number(_UIDGID, "=Q", 8)

    @property
    def open_flags(self) -> Optional[int]:
        """How a file was opened: 1 to read, 2 to write, 4 to execute, …"""
        return self._number(_OPEN, "=I")

    @property
    def xattr(self) -> Optional[bytes]:
        """Name of the extended attribute."""
        at = self._extra.get(_XATTR)
        return None if at is None else _until_nul(self.data[at : at + 256])

    @property
    def nid(self) -> Optional[str]:
        """The client's address, e.g. `10.1.2.3@tcp`; in hexadecimal if it is of a rare kind."""
        at = self._extra.get(_NID)
        if at is None:
            return None
        return _nid(self.data[at : at + 24], bool(self._extra_flags & _NID_BE))

    @property
    def is_last_unlink(self) -> bool:
        """Of an unlink or rmdir: that was the last name, the file is gone."""
        return self.type in (RecordType.UNLNK, RecordType.RMDIR) and bool(self.flags & 1)

    @property
    def hsm_event(self):
        """Of an HSM record: what was done."""
        if self.type != RecordType.HSM:
            return None
        return _known(HsmRecordEvent, self.flags >> 7 & 7)

    @property
    def hsm_error(self) -> Optional[int]:
        """Of an HSM record: an error number, 0 for success."""
        return self.flags & 0x7F if self.type == RecordType.HSM else None

    def as_dict(self) -> dict:
        """For `json.dumps`: what `lcap changelog --json` prints (docs/protocol.md)."""
        values = {
            "mdt": self.mdt, "index": self.index, "type": self.type_name,
            "flags": self.flags & 0xFFF, "time": _rfc3339(self.time_ns), "tfid": str(self.fid),
            "pfid": str(self.parent), **_json_text("name", self.name),
        }
        if self.source:
            values.update(sfid=str(self.source), spfid=str(self.source_parent))
            values.update(_json_text("sname", self.source_name))
        if self.jobid:
            values.update(_json_text("jobid", self.jobid.encode("utf-8", "surrogateescape")))
        for key in ("uid", "gid", "nid", "open_flags"):
            value = getattr(self, key)
            if value is not None:
                values[key] = value
        if self.xattr is not None:
            values.update(_json_text("xattr", self.xattr))
        return values

    def __repr__(self):
        return f"<{self.mdt} {self.index} {self.type_name} {self.fid} {self.name!r}>"


class HsmEvent(Record):
    """What changed in the list of HSM actions of an MDT."""

    __slots__ = ("kind", "action", "status", "last_status", "archive_id", "cookie", "_fixed")
    _TABLE = struct.Struct("=HBBBBBBIIQQQQQQQIIIIHH")

    def __init__(self, mdt: str, data: bytes):
        super().__init__(mdt, data)
        self._fixed = self._TABLE.unpack_from(self._name)
        (_, kind, _, action, status, last, *_) = self._fixed
        #: An `HsmKind`.
        self.kind = _known(HsmKind, kind)
        #: An `HsmAction`.
        self.action = _known(HsmAction, action)
        #: An `HsmStatus`; of a purge, the last one that was seen.
        self.status = _known(HsmStatus, status)
        self.last_status = _known(HsmStatus, last)
        #: Number of the request.
        self.cookie = self._fixed[9]
        #: Which archive; 0 is any.
        self.archive_id = self._fixed[16]

    @property
    def type_name(self) -> str:
        return "HSM_EVENT"

    @property
    def data_fid(self) -> Fid:
        """What holds the data: another object while a restore runs."""
        return super().parent

    @property
    def is_snapshot(self) -> bool:
        """It tells the present state, not a change."""
        return bool(self._fixed[6] & 2)

    @property
    def name(self) -> bytes:
        """Events have none."""
        return b""

    @property
    def request_data(self) -> bytes:
        """The request's data, as far as the MDT shows it."""
        start = self._fixed[0]
        return self._name[start : start + self._fixed[20]]

    @property
    def line(self) -> bytes:
        """The line that the MDT printed for the action."""
        start = self._fixed[0] + self._fixed[20]
        return self._name[start : start + self._fixed[21]]

    def as_dict(self) -> dict:
        """For `json.dumps`."""
        return {
            "mdt": self.mdt, "index": self.index, "time": _rfc3339(self.time_ns),
            "event": _word(self.kind), "action": _word(self.action), "status": _word(self.status),
            "last_status": _word(self.last_status), "fid": str(self.fid),
            "dfid": str(self.data_fid), "archive_id": self.archive_id, "cookie": self.cookie,
        }

    def __repr__(self):
        return f"<{self.mdt} {self.index} {_word(self.kind)} {_word(self.action)} {self.fid}>"


def unpack(mdt: str, data: bytes) -> Record:
    """The record or event that packed bytes are."""
    (number,) = struct.unpack_from("=I", data, 4)
    return HsmEvent(mdt, data) if number == HSM_EVENT_TYPE else Record(mdt, data)


def text(name: bytes) -> str:
    """A name as text. What is not UTF-8 becomes lone surrogates, so that `os.fsencode` finds the
    very bytes again; printing such text needs `errors="backslashreplace"` or `ascii()`."""
    return name.decode("utf-8", "surrogateescape")


def _word(value) -> str:
    return getattr(value, "name", str(value))


def _rfc3339(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    utc = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def _json_text(key: str, data: bytes) -> dict:
    """Bytes that are not UTF-8 stand beside what can be shown of them."""
    try:
        return {key: data.decode()}
    except UnicodeDecodeError:
        shown = data.decode(errors="replace")
        return {key: shown, key + "_b64": base64.b64encode(data).decode()}


_DRIVERS = {
    2: "tcp", 5: "o2ib", 9: "lo", 13: "gni", 14: "gip", 15: "ptlf", 16: "kfi", 18: "efa",
    19: "bxi3f",
}
_WITH_IP = ("tcp", "o2ib", "gip", "efa")


def _nid(data: bytes, big: bool) -> str:
    """As `lfs` prints it."""
    if big:
        more, driver, network = struct.unpack_from(">BBH", data)
        address = data[4 : 8 + more] if more <= 12 else b""
    else:
        (small,) = struct.unpack_from("=Q", data)
        more, address = 0, struct.pack(">I", small & 0xFFFFFFFF)
        network, driver = small >> 32 & 0xFFFF, small >> 48 & 0xFF
        if small == 0xFFFFFFFFFFFFFFFF:
            driver = 0xFF
    if driver == 0xFF:
        return "<?>"
    name = _DRIVERS.get(driver)
    if name is None:
        words = ":".join(f"{int.from_bytes(address[at:at+4], 'big'):x}" for at in range(0, len(address), 4))
        return f"{words}@<{driver}:{network}>"
    if name not in _WITH_IP:
        where = str(int.from_bytes(address[:4], "big"))
    elif len(address) == 16:
        where = str(ipaddress.IPv6Address(address))
    else:
        where = ".".join(str(byte) for byte in address[:4])
    return f"{where}@{name}{network or ''}"
