#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""Tells of every HSM action that fails: hsm_alert.py tcp://localhost:8189 hsm lustre-MDT0000 [READER]

Looks once a second for what came; `low` is where it is. docs/protocol.md explains the steps and the bytes. With a
registered reader it goes on where it was when it starts again.
"""
import json, struct, sys, time, zmq

endpoint, stream, mdt, *reader = sys.argv[1:]
socket = zmq.Context.instance().socket(zmq.DEALER)
socket.connect(endpoint)
ACTIONS, low, n = {20: "ARCHIVE", 21: "RESTORE", 22: "REMOVE", 23: "CANCEL"}, 0, 0

while True:
    socket.send_json({"v": 1, "id": (n := n + 1), "op": "start", "stream": stream, "mdt": mdt, "from": low and low + 1}
                     | ({"reader": reader[0]} if reader else {}))
    session, upto, done = None, 64, False
    while not done and socket.poll(5000):
        frames = socket.recv_multipart()
        if len(frames) == 3:  # topic, header, events
            sequence, seen = struct.unpack_from("<QQ", frames[1], 16)
            body, at = frames[2], 0
            while at < len(body):
                size, _, _, index = struct.unpack_from("<HHIQ", body, at)
                seq, oid, ver = struct.unpack_from("<QII", body, at + 32)
                kind, _, action, status, before = struct.unpack_from("<5B", body, at + 66)
                if kind != 3 and status == 3 and before != 3:  # not the purge that comes later
                    print(f"{mdt} {ACTIONS.get(action)} of [{seq:#x}:{oid:#x}:{ver:#x}] in archive "
                          f"{struct.unpack_from('<I', body, at + 136)[0]} FAILED (cookie "
                          f"{struct.unpack_from('<Q', body, at + 80)[0]:#x})", flush=True)
                at += 64 + size
            low, upto = max(low, seen), sequence + 64
            socket.send_json({"v": 1, "op": "fetch", "session": session, "upto": upto})
        elif (message := json.loads(frames[0])).get("session") and message.get("ok"):
            session = message["session"]
            socket.send_json({"v": 1, "op": "fetch", "session": session, "upto": upto})
        else:
            done = message.get("event") in ("end", "lost") or not message.get("ok")
            low = max(low, message.get("low", 0))
    if reader and session:
        socket.send_json({"v": 1, "op": "ack", "session": session, "ranges": [[1, low]]})
    socket.send_json({"v": 1, "op": "fini", "session": session})
    time.sleep(1)
