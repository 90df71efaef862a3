#!/usr/bin/env python3
"""Compares lcapd with lustre-hsm-action-stream, by the original's own tools.

    python3 tests/original_tools.py CHECKOUT target/debug/lcapd

CHECKOUT is a clone of lustre-hsm-action-stream; redis-py, PyYAML and redis-server are needed. Its shipper and
lcapd are fed with the same lists, step by step, each with a Redis of its own. Then hsm-action-top, hsm-stream-stats
and hsm-stream-tail look at both. Exit code 0 if they show the same, and the entries are the same but for their times.
"""
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

import redis

PACKAGE = "lustre_hsm_action_stream"
MDTS = ("elm-MDT0000", "elm-MDT0001")
ACTIONS = ("ARCHIVE", "RESTORE", "REMOVE", "CANCEL")
STATUSES = ("WAITING", "STARTED", "FAILED", "CANCELED", "SUCCEED")
DATA = ("", "00", "FF00", "7461673D6D")
PATIENCE = 60


def line(cat, rec, oid, action, status, data):
    fid = f"0x200000402:{oid:#x}:0x0"
    return (
        f"lrh=[type=10680000 len=144 idx={cat}/{rec}] fid=[{fid}] dfid=[{fid}] compound/cookie=0x0/{oid:#x} "
        f"action={action} archive#=1 flags=0x0 extent=0x0-0xffffffffffffffff gid=0x0 datalen=8 "
        f"status={status} data=[{data}]\n"
    )


def steps():
    """The lists of both MDTs, one step after the other: everything new, progress, ends and news, one MDT empty."""
    first = {
        n: line(1, n, n, ACTIONS[n % 4], STATUSES[n % 5], DATA[n % 4]) for n in range(1, 400)
    }
    second = {n: line(517, n, n + 5000, ACTIONS[n % 4], STATUSES[n % 3], "") for n in range(1, 50)}
    yield first, second
    first |= {n: line(1, n, n, ACTIONS[n % 4], "SUCCEED", DATA[n % 4]) for n in range(1, 200)}
    yield first, second
    first = {n: text for n, text in first.items() if n >= 100}
    first |= {n: line(2, n, n, "RESTORE", "WAITING", "") for n in range(600, 700)}
    yield first, second
    yield first, {}


class Side:
    """A Redis, and what the original's tools show of it."""

    def __init__(self, root, name, env):
        self.env = env
        directory = os.path.join(root, name)
        os.mkdir(directory)
        # The original's tools know no sockets; the kernel chooses a port, and redis-server gets it.
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
        self.server = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--save", "", "--dir", directory],
            stdout=subprocess.DEVNULL,
        )
        self.redis = redis.Redis(port=self.port, db=1)
        wait_until(self.answers)
        self.config = os.path.join(directory, "tools.yaml")
        with open(self.config, "w") as file:
            json.dump(self.settings(), file)  # which is YAML, too

    def answers(self):
        try:
            return self.redis.ping()
        except redis.exceptions.ConnectionError:
            return False

    def settings(self):
        return {
            "redis_host": "localhost",
            "redis_port": self.port,
            "redis_db": 1,
            "redis_stream_prefix": "hsm:actions",
        }

    def tool(self, module, *args):
        command = [sys.executable, "-m", f"{PACKAGE}.{module}", *args]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            sys.exit(f"{module}: {done.stderr}")
        return done.stdout

    def entries(self):
        """All entries of both MDTs in their order, without the time of the poll."""
        found = {}
        for mdt in MDTS:
            entries = self.redis.xrange(f"hsm:actions:{mdt}")
            found[mdt] = [json.loads(fields[b"data"]) | {"timestamp": 0} for _, fields in entries]
        return found

    def shown(self):
        """What each tool prints, without times and ids."""
        port = ("--port", str(self.port))
        top = self.tool("viewer", *port, "--run-once")
        top = re.sub(r"^Time:.*$|Last Event: .*", "", top, flags=re.M)
        stats = re.sub(r'("[a-z_]*age_seconds"): \d+', r"\1: 0", self.tool("stats", "-c", self.config))
        look = ("--mountpoint", "/lustre", "--from-beginning", "--run-once", "--show", "PURGED")
        tail = re.sub(r"^\S+ \S+ |\(id: .*\)", "", self.tool("tail", *port, *look), flags=re.M)
        # Purges of one poll have no order in the original.
        return {"top": top, "stats": json.loads(stats), "tail": sorted(tail.splitlines())}


def wait_until(reached):
    deadline = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def main(checkout, lcapd):
    with tempfile.TemporaryDirectory() as root:
        tools = os.path.join(root, "bin")
        os.mkdir(tools)
        with open(os.path.join(tools, "lfs"), "w") as lfs:
            lfs.write('#!/bin/sh\necho "/lustre/$4"\n')
        os.chmod(lfs.name, 0o755)
        path = f"{tools}:{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "PYTHONPATH": os.path.join(checkout, "src")}
        theirs, ours = Side(root, "theirs", env), Side(root, "ours", env)
        processes = [theirs.server, ours.server]
        try:
            return compare(root, theirs, ours, lcapd, processes)
        finally:
            for process in processes:
                process.terminate()
                process.wait()


def compare(root, theirs, ours, lcapd, processes):
    lists = os.path.join(root, "lists")
    for mdt in MDTS:
        os.makedirs(os.path.join(lists, mdt, "hsm"))
        write(lists, mdt, "")
    shipper = os.path.join(root, "shipper.yaml")
    settings = theirs.settings() | {
        "mdt_watch_glob": f"{lists}/*-MDT????/hsm/actions",
        "cache_path": os.path.join(root, "cache.json"),
        "poll_interval": 20,
        "reconcile_interval": 21600,
    }
    with open(shipper, "w") as file:
        json.dump(settings, file)
    config = os.path.join(root, "lcapd.toml")
    with open(config, "w") as file:
        file.write(
            f'[server]\ncontrol = "ipc://{root}/control"\nstate_dir = "{root}/state"\nhsm_audit_interval = "100ms"\n'
        )
        for mdt in MDTS:
            file.write(
                f'[[mdt]]\nname = "{mdt}"\nsource = "hsm-actions:"\nhsm_actions = "{lists}/*/hsm/actions"\n'
            )
        file.write(
            f'[[stream]]\nname = "hsm"\nkind = "hsm"\ndelivery = "broadcast"\npublish = "ipc://{root}/hsm"\n'
            f'[[sink]]\nstream = "hsm"\nredis = "redis://127.0.0.1:{ours.port}/1"\nburst = "0s"\n'
        )
    processes.append(subprocess.Popen([lcapd, "--log=warn", "-c", config]))
    differences = 0
    for number, texts in enumerate(steps(), 1):
        for mdt, text in zip(MDTS, texts):
            write(lists, mdt, "".join(text.values()))
        theirs.tool("shipper", "-c", shipper, "--run-once")
        in_any_order = lambda side: {
            mdt: sorted(json.dumps(entry) for entry in entries) for mdt, entries in side.entries().items()
        }
        want = in_any_order(theirs)
        same = wait_until(lambda: in_any_order(ours) == want)
        print(f"step {number}: {sum(map(len, want.values()))} entries: {'same' if same else 'DIFFERENT'}")
        differences += not same
        shown = ours.shown()
        for tool, text in theirs.shown().items():
            same = shown[tool] == text
            print(f"step {number}: {tool}: {'same' if same else 'DIFFERENT'}")
            differences += not same
    return 1 if differences else 0


def write(lists, mdt, text):
    path = os.path.join(lists, mdt, "hsm", "actions")
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], os.path.abspath(sys.argv[2])))
