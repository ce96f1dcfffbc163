"""Run programs, each in a process of its own that has the slow imports behind it.

Started with an interpreter of the examples' environment. Each line of its input names a program, a
directory to run it in and files for what it prints; the answer is the exit code. Importing torch,
its optimizers and scikit-learn costs ten seconds a program: here it is done once, and each program
runs in a fork, as ``__main__``, with every import statement and exit handler of its own.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import sys

SLOW = ("torch._dynamo", "sklearn.datasets", "lightning_fabric", "matplotlib.figure")


def serve():
    """Answer requests; in a fork, return the one to run."""
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return request
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def become(request):
    """Take the place of a process that was started with this program."""
    for number, name, mode in ((0, os.devnull, "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        with open(request.get(name, name), mode) as file:
            os.dup2(file.fileno(), number)
    os.chdir(request["cwd"])
    sys.argv = [request["program"]]
    sys.path[0] = os.path.dirname(request["program"])
    atexit.register(gc.unfreeze)  # what is frozen at the end counts as leaked to some libraries
    runpy.run_path(request["program"], run_name="__main__")


if __name__ == "__main__":
    for module in SLOW:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # or each collection would look through all of it
    found = serve()
    if found is not None:
        become(found)
