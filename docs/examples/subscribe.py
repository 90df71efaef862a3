#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-3.0-or-later
"""Follows one MDT: subscribe.py tcp://localhost:8189 changelog lustre-MDT0000

Prints index, type and name of every record, each once. docs/protocol.md explains the steps. Whatever
goes wrong, the answer is a new session after what we have: `low`, and what came early, `had`.
"""
import json, struct, sys, time, zmq

endpoint, stream, mdt = sys.argv[1:]
control, live = zmq.Context.instance().socket(zmq.DEALER), zmq.Context.instance().socket(zmq.SUB)
control.connect(endpoint)
topic, hello = f"{stream}\0{mdt}\0".encode(), f"\0hello\0{stream}\0{mdt}\0{time.time_ns()}".encode()
low, had, publish, n_asked = 0, set(), None, 0

def ask(op, **fields):
    global n_asked
    n_asked += 1
    control.send_json({"v": 1, "id": n_asked, "op": op, **fields})
    while control.poll(5000):  # what belongs to an older session is passed over
        if len(frames := control.recv_multipart()) == 1 and (reply := json.loads(frames[0])).get("id") == n_asked:
            return reply
    return {"ok": False, "error": f"no answer from {endpoint}"}

def take(topic, header, body):
    """Prints the new records of a message; returns its sequence."""
    global low, had
    kind, sequence, upto, at = header[5], *struct.unpack_from("<QQ", header, 16), 0
    while kind == 1 and at < len(body):
        name_len, flags, rec_type, index = struct.unpack_from("<HHIQ", body, at)
        size = 64 + (flags & 0x2000 and 32) + (flags & 0x4000 and 32)  # rename, jobid
        if flags & 0x8000:  # and more: uid and gid, NID, open mode, xattr
            extra = struct.unpack_from("<Q", body, at + size)[0]
            size += 8 + (extra & 1 and 16) + (extra & 2 and 24) + (extra & 4 and 4) + (extra & 8 and 256)
        name = body[at + size:at + size + name_len].split(b"\0")[0]  # a rename's old name is after the NUL
        if index > low and index not in had:
            had.add(index)
            print(index, rec_type, name, flush=True)
        at += size + name_len
    low = max(low, upto)
    had = {index for index in had if index > low}
    return sequence

while True:
    start = ask("start", stream=stream, mdt=mdt, follow=True, **{"from": low and low + 1})
    if not start["ok"]:
        print(start["error"], file=sys.stderr)
        time.sleep(1)
        continue
    session, beat = start["session"], start["heartbeat_ms"] / 1000
    if publish != start["publish"]:  # now it is known: subscribe, wait until that holds, and start again
        publish = start["publish"]
        live.connect(publish)
        live.subscribe(topic)
        live.subscribe(hello)
        while live.recv_multipart()[0] != hello:
            pass
        continue
    received, sequence, behind, beat_at = 0, None, False, time.monotonic() + beat
    while sequence is None:  # the past comes over the control connection; live messages wait in their socket
        control.send_json({"v": 1, "op": "fetch", "session": session, "upto": received + 64})
        frames = control.recv_multipart() if control.poll(5000 * beat) else [b'{"event": "lost"}']
        if len(frames) == 3 and take(*frames) == received + 1:
            received += 1
        elif len(frames) == 1 and (event := json.loads(frames[0])).get("event") == "live":
            sequence, low = event["sequence"], max(low, event["low"])
        else:
            break
    while sequence is not None:
        if live.poll(max(0, 1000 * (beat_at - time.monotonic()))):
            frames = live.recv_multipart()
            number = struct.unpack_from("<Q", frames[1], 16)[0]
            if frames[0] == hello or number > sequence + 1:
                break  # connected anew, or messages were lost
            sequence = take(*frames) if number > sequence else sequence
        if time.monotonic() >= beat_at:
            reply, beat_at = ask("heartbeat", session=session), time.monotonic() + beat
            if not reply["ok"] or (behind and reply["sequence"] > sequence):
                break
            behind = reply["sequence"] > sequence
            low = low if behind else max(low, reply["low"])
