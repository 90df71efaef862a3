# SPDX-License-Identifier: LGPL-3.0-or-later
"""Against a running lcapd: LCAP_REC_URI, LCAP_COMMAND and LCAP_CLIENT_LIBRARY say where all is.

lustre-MDT0000 has the capture odd-mdt0 (106 records), lustre-MDT0001 odd-mdt1 (14); the stream is a
broadcast one. tests/e2e/python_package.rs sets that up.
"""

import errno
import json
import os
import subprocess
import sys
import unittest

import lcap

MDT0, MDT1 = "lustre-MDT0000", "lustre-MDT0001"
LCAP = os.environ["LCAP_COMMAND"]


def register(reader):
    command = [LCAP, "reader", "register", "changelog", reader, "--from", "oldest"]
    subprocess.run(command, check=True)


def setUpModule():
    # Keeps every record, so that what other readers acknowledge is not cleared.
    register("py-keep")


def printed(mdt, *options):
    """What the tool prints of an MDT."""
    command = [LCAP, "changelog", "--json", *options, mdt]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    return [json.loads(line) for line in output.splitlines()]


class Reading(unittest.TestCase):
    def test_every_record_is_what_the_tool_prints(self):
        for mdt, n in ((MDT0, 106), (MDT1, 14)):
            with lcap.Changelog(mdt) as log:
                records = list(log)
            self.assertEqual(len(records), n)
            self.assertEqual([record.as_dict() for record in records], printed(mdt))
            self.assertEqual(records[0].time.tzinfo.utcoffset(None).total_seconds(), 0)

    def test_names_are_bytes_and_come_back_from_text(self):
        with lcap.Changelog(MDT0) as log:
            names = {record.name for record in log}
        odd = [name for name in names if not is_utf8(name)]
        self.assertTrue(odd, "the capture has such names")
        for name in names:
            self.assertEqual(lcap.text(name).encode("utf-8", "surrogateescape"), name)

    def test_renames_have_both_ends(self):
        with lcap.Changelog(MDT0, filter="type = RENME") as log:
            renames = list(log)
        self.assertTrue(renames)
        for record in renames:
            self.assertIs(record.type, lcap.RecordType.RENME)
            self.assertTrue(record.source and record.source_parent and record.source_name)

    def test_all_mdts_are_one_iterator(self):
        self.assertEqual(lcap.served_mdts(), [MDT0, MDT1])
        with lcap.Changelogs() as logs:
            records = list(logs)
        for mdt, n in ((MDT0, 106), (MDT1, 14)):
            indexes = [record.index for record in records if record.mdt == mdt]
            self.assertEqual((len(indexes), indexes), (n, sorted(indexes)))

    def test_a_descriptor_and_figures(self):
        with lcap.Changelog(MDT1) as log:
            self.assertGreaterEqual(log.fileno(), 0)
            records = list(log)
            self.assertTrue(log.pending(), "the end is there")
            self.assertEqual(log.stats.records, len(records))
            self.assertEqual(log.stats.last_index, records[-1].index)

    def test_what_cannot_be_is_told(self):
        with self.assertRaises(lcap.Error) as caught:
            lcap.Changelog("lustre-MDT0009")
        self.assertEqual(caught.exception.errno, errno.ENOENT)
        self.assertIn("MDT0009", str(caught.exception))
        with lcap.Changelog(MDT0, reader="nobody") as log:
            with self.assertRaises(lcap.Error) as caught:
                log.recv()
        self.assertIn("nobody", str(caught.exception))
        with lcap.Changelog(MDT0, filter="type is odd") as log:
            with self.assertRaises(lcap.Error) as caught:
                log.recv()
        self.assertEqual(caught.exception.errno, errno.EINVAL)
        log.close()
        with self.assertRaises(ValueError):
            log.recv()


class Acknowledging(unittest.TestCase):
    def indexes(self, reader, **options):
        with lcap.Changelog(MDT0, reader=reader, **options) as log:
            return [record.index for record in log]

    def test_what_was_acknowledged_does_not_come_again(self):
        register("py-ack")
        every = self.indexes("py-ack")
        self.assertEqual(len(every), 106)
        self.assertEqual(self.indexes("py-ack"), every, "reading acknowledges nothing")
        with lcap.Changelog(MDT0, reader="py-ack") as log:
            for record in log:
                if record.index == every[59]:
                    log.ack(record)
        self.assertEqual(self.indexes("py-ack"), every[60:])
        with lcap.Changelogs([MDT0], reader="py-ack") as logs:
            for record in logs:
                logs.ack(record)
        self.assertEqual(self.indexes("py-ack"), [])

    def test_auto_ack_counts_a_record_when_its_turn_is_over(self):
        register("py-auto")
        every = self.indexes("py-auto")
        with self.assertRaises(ZeroDivisionError):
            with lcap.Changelog(MDT0, reader="py-auto", auto_ack=True) as log:
                for n, _ in enumerate(log):
                    if n == 10:
                        1 / 0
        self.assertEqual(self.indexes("py-auto"), every[10:], "the one that failed comes again")
        self.assertEqual(self.indexes("py-auto", auto_ack=True), every[10:])
        self.assertEqual(self.indexes("py-auto"), [])

    def test_a_program_that_is_killed_loses_nothing(self):
        register("py-killed")
        every = self.indexes("py-killed")
        script = (
            "import lcap, os, signal, sys\n"
            "log = lcap.Changelog(sys.argv[1], reader='py-killed', ack_interval=0.001)\n"
            "for n, record in enumerate(log):\n"
            "    if n == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
            "    print(record.index, flush=True)\n"
            "    log.ack(record)\n"
        )
        done = []
        for stop_after in (1, 30, 40):
            run = subprocess.run(
                [sys.executable, "-c", script, MDT0, str(stop_after)], capture_output=True
            )
            self.assertEqual(run.returncode, -9, run.stderr)
            done += [int(line) for line in run.stdout.split()]
        done += self.indexes("py-killed")
        self.assertEqual(sorted(set(done)), every)


def is_utf8(name):
    try:
        name.decode()
        return True
    except UnicodeDecodeError:
        return False


class HsmEvents(unittest.TestCase):
    def test_a_packed_event_is_unpacked(self):
        import struct

        table = struct.pack(
            "=HBBBBBBIIQQQQQQQIIIIHHI", 96, 2, 1, 20, 3, 2, 2, 5, 6, 77, 0, 0, 0, 2**64 - 1, 0,
            9 << 30, 4, 3, 0, 0, 3, 5, 0,
        )
        body = table + b"abc" + b"line\0"
        head = struct.pack(
            "=HHIQQQQIIQII", len(body), 0x1000, 0x6C630001, 12, 11, 100 << 30 | 5, 0x200000401, 7,
            0, 0x200000401, 8, 0,
        )
        event = lcap.unpack(MDT0, head + body)
        self.assertIsInstance(event, lcap.HsmEvent)
        self.assertEqual(
            (event.kind, event.action, event.status, event.last_status),
            (
                lcap.HsmKind.UPDATE, lcap.HsmAction.ARCHIVE, lcap.HsmStatus.FAILED,
                lcap.HsmStatus.STARTED,
            ),
        )
        self.assertEqual((event.cookie, event.archive_id, event.is_snapshot), (77, 4, True))
        self.assertEqual((event.request_data, event.line), (b"abc", b"line\0"))
        self.assertEqual(str(event.fid), "[0x200000401:0x7:0x0]")
        self.assertEqual(str(event.data_fid), "[0x200000401:0x8:0x0]")
        self.assertEqual(event.as_dict()["status"], "FAILED")


if __name__ == "__main__":
    unittest.main()
