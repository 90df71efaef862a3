#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""Writes every record, as a line of JSON, to a file. Register the reader first:

    lcap reader register changelog audit
    audit.py --reader audit /var/log/lustre-audit.jsonl [MDT ...]

A record is acknowledged when it is on disk; what was written but not acknowledged when this dies is
written again, with the same index.
"""

import argparse
import json
import os

import lcap

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--reader", default="audit")
parser.add_argument("--stream")
parser.add_argument("--once", action="store_true", help="stop at the present end")
parser.add_argument("file")
parser.add_argument("mdt", nargs="*", help="all, unless told")
args = parser.parse_args()

SYNC_EVERY = 1000  # records; and whenever nothing waits


def warn(gap):
    json.dump({"mdt": gap.mdt, "lost_from": gap.first, "lost_to": gap.last}, out)
    out.write("\n")


with open(args.file, "a", encoding="ascii") as out:
    logs = lcap.Changelogs(
        args.mdt or None, reader=args.reader, stream=args.stream, follow=not args.once, on_gap=warn
    )
    with logs:
        unsynced = 0
        for record in logs:
            json.dump(record.as_dict(), out)
            out.write("\n")
            unsynced += 1
            if unsynced >= SYNC_EVERY or not logs.logs[record.mdt].pending():
                out.flush()
                os.fsync(out.fileno())
                logs.ack()
                unsynced = 0
        out.flush()
        os.fsync(out.fileno())
        logs.ack()
