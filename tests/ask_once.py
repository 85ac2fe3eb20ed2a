"""Starts a command that serves a page, asks the page once, and ends the command as Ctrl-C does.

python -m tests.ask_once dearli serve output/mine
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request


def main(command: list[str]) -> int:
    """The exit status of the command."""
    # a shell starts what it runs in the background with Ctrl-C ignored, which the command would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="")
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)
            if address:
                with urllib.request.urlopen(address[0], timeout=60) as answer:
                    print(answer.status, len(answer.read()), "bytes")
                process.send_signal(signal.SIGINT)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
