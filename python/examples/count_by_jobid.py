#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""Counts changes by jobid and type, of what the MDTs have now. Needs no reader and keeps nothing.

    count_by_jobid.py [--top 20] [--filter 'type in (CREAT, UNLNK)'] [MDT ...]
"""

import argparse
import collections

import lcap

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--top", type=int, default=20)
parser.add_argument("--filter")
parser.add_argument("--stream")
parser.add_argument("mdt", nargs="*", help="all, unless told")
args = parser.parse_args()

total = collections.Counter()
by_type = collections.defaultdict(collections.Counter)
with lcap.Changelogs(args.mdt or None, stream=args.stream, filter=args.filter) as records:
    for record in records:
        job = record.jobid or "-"
        total[job] += 1
        by_type[job][record.type_name] += 1

for job, n in total.most_common(args.top):
    types = ", ".join(f"{name} {count}" for name, count in by_type[job].most_common(4))
    print(f"{n:>10}  {ascii(job)[1:-1]:<32} {types}")
