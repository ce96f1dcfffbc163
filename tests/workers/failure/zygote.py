"""Starts programs at once: it has imported what they need, and each program is a fork of it.

A program runs at the top level of ``__main__``, in the main thread, in a session of its own, and
ends as any interpreter ends. An ended program stays a zombie until ``reap`` asks for it.
"""

import gc
import json
import os
import socket
import sys
from importlib import import_module

import headrace  # noqa: F401 - and with it torch and NumPy


def next_program(end: socket.socket) -> str:
    """Serve requests; return in the fork that is to run a program."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(end, 1 << 17, 4)
        if not data:
            sys.exit()
        request = json.loads(data)
        if "reap" in request:
            status = os.waitpid(request["reap"], 0)[1]
            end.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if pid == 0:
            end.close()
            os.setsid()
            for place, descriptor in enumerate(descriptors):
                os.dup2(descriptor, place)
                os.close(descriptor)
            return str(request["run"])
        for descriptor in descriptors:
            os.close(descriptor)
        end.send(json.dumps(pid).encode())


if __name__ == "__main__":
    for name in sys.argv[2:]:
        import_module(name)
    # What all of them have is nobody's garbage: looking through it again costs each program a
    # second at its end.
    gc.collect()
    gc.freeze()
    exec(compile(next_program(socket.socket(fileno=int(sys.argv[1]))), "program.py", "exec"))
