"""A decoding process that hangs, grows, crashes or is killed over videos that are named so.

Run as `hookedvid.video.worker` is; `fault-…` of a file's name says what happens. The files are sound.
"""

import os
import signal
import time
from pathlib import Path

from hookedvid.video import worker
from hookedvid.video.clip_files import ClipRequest
from hookedvid.video.frames import Clip


def grow() -> None:
    held = []
    while True:
        held.append(b"grown" * (8 << 20))
        time.sleep(0.01)  # so that a late look from outside finds hundreds of megabytes, not all there are


def die(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def fault(request: ClipRequest) -> None:
    path = Path(request.source)
    name = path.name.split("-")[0]
    if name == "hang":
        time.sleep(3600)
    elif name == "grow":
        grow()
    elif name == "crash":
        die(signal.SIGSEGV)
    elif name == "abort":
        os.write(2, b"free(): invalid pointer\n")
        os.abort()
    elif name == "killed":
        die(signal.SIGKILL)
    elif name == "fell":
        os.kill(os.getppid(), signal.SIGKILL)  # whoever holds the model
        time.sleep(60)
    elif name == "bug":
        raise IndexError("list index out of range")
    elif name == "once" and not (spared := path.with_suffix(".spared")).exists():
        spared.touch()
        die(signal.SIGKILL)


def read(request: ClipRequest, sound=ClipRequest.read) -> Clip:
    fault(request)
    return sound(request)


if __name__ == "__main__":
    ClipRequest.read = read
    worker.main()
