"""Runs sweeps in forked children of one process that has torch loaded, so that a test can kill twenty of them in half a minute.

Reads one JSON command per line: {"args": [...], "kill_after": seconds or null}; answers {"code": exit code or -9, "seconds": ...}.
"""

import json
import os
import signal
import sys
import time

from bench import sweep
from bench.settings import cli


def main() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            with open(os.devnull, "w") as quiet:
                os.dup2(quiet.fileno(), 1)
                code = 99
                try:
                    code = cli.entry("sweep", "", sweep.run, command["args"])
                finally:
                    os._exit(code)
        deadline = None if command["kill_after"] is None else started + command["kill_after"]
        killed = False
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if deadline is not None and not killed and time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                killed = True
            time.sleep(0.01)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - started}), flush=True)


if __name__ == "__main__":
    main()
