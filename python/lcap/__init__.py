# SPDX-License-Identifier: LGPL-3.0-or-later
"""Lustre changelog records and HSM events from lcapd.

    import lcap

    with lcap.Changelog("lustre-MDT0000", reader="audit", follow=True) as log:
        for record in log:
            print(record.index, record.type_name, record.fid, lcap.text(record.name))
            log.ack(record)
"""

from ._library import Error
from .changelog import Changelog, Changelogs, Gap, Stats, served_mdts
from .record import (
    Fid, HsmAction, HsmEvent, HsmKind, HsmRecordEvent, HsmStatus, Record, RecordType, text, unpack,
)

__version__ = "0.1.0"

__all__ = [
    "Changelog", "Changelogs", "Error", "Fid", "Gap", "HsmAction", "HsmEvent", "HsmKind",
    "HsmRecordEvent", "HsmStatus", "Record", "RecordType", "Stats", "served_mdts", "text", "unpack",
]
