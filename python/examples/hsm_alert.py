#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""Runs a command for each HSM action that failed, with a sentence as its last argument:

    lcap reader register hsm alert
    hsm_alert.py --reader alert -- logger -p daemon.err -t lustre-hsm

Works on a stream of HSM events (kind = "hsm") and on one of changelog records, whose HSM records tell
of failures, too. An event is acknowledged after the command has succeeded.
"""

import argparse
import os
import subprocess

import lcap

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--reader", default="alert")
parser.add_argument("--stream", default="hsm")
parser.add_argument("--once", action="store_true", help="stop at the present end")
parser.add_argument("command", nargs="+")
args = parser.parse_args()


def failure(record):
    """What is wrong, or None."""
    if isinstance(record, lcap.HsmEvent):
        if record.status == lcap.HsmStatus.FAILED and record.kind != lcap.HsmKind.PURGED:
            action = getattr(record.action, "name", record.action)
            return f"{record.mdt}: {action} of {record.fid} in archive {record.archive_id} failed"
    elif record.hsm_error:
        event = getattr(record.hsm_event, "name", record.hsm_event)
        return f"{record.mdt}: {event} of {record.fid} failed: {os.strerror(record.hsm_error)}"
    return None


with lcap.Changelogs(
    reader=args.reader, stream=args.stream, follow=not args.once, auto_ack=True
) as records:
    for record in records:
        sentence = failure(record)
        if sentence:
            subprocess.run([*args.command, sentence], check=True)
