"""The process that decodes: one request a line in, one answer a line out, frames by way of a file.

Started by `decoders` as a program of its own. It never imports torch, and so takes some 70 MB; what it prints
besides answers goes to its standard error. It ends when its input does, that is, when whoever started it has
ended, in whatever way and whatever is being decoded.
"""

import faulthandler
import json
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av  # noqa: F401  # before the first request, whose time is limited

from hookedvid.errors import DecodingError, HookedVidError, RunError
from hookedvid.video.clip_files import ClipRequest, save_clip
from hookedvid.video.frames import Clip
from hookedvid.video.refusals import refusal

TODO = "re-encode it, or leave it out"
GRACE = 5  # seconds after the limit at which a process ends by itself that is too stuck to see its input end


def main() -> None:
    """Answer until the input ends; the first argument is a folder that is removed then."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines, sys.argv[1]), daemon=True).start()
    answers = os.dup(1)
    os.dup2(2, 1)
    os.write(answers, b"{}\n")  # ready
    while True:
        job = json.loads(lines.get())
        faulthandler.dump_traceback_later(job["seconds"] + GRACE, exit=True)
        places = [Path(place) for place in job["places"]]
        answer = json.dumps(_answer(_request(job["request"]), places)).encode() + b"\n"
        faulthandler.cancel_dump_traceback_later()
        os.write(answers, answer)


def _listen(lines: "queue.SimpleQueue[bytes]", scratch: str) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    shutil.rmtree(scratch, ignore_errors=True)  # nobody else clears it now
    os._exit(0)


def _request(asked: dict[str, Any]) -> ClipRequest:
    bound: Any = asked.pop("bound")
    return ClipRequest(**asked, bound=None if bound is None else tuple(bound))


def _answer(request: ClipRequest, places: Sequence[Path]) -> dict[str, Any]:
    """Seconds of decoding and how many places failed before the frames were written to the next, and why.

    Or the error's class and what it says.
    """
    start = time.perf_counter()
    try:
        clip = request.read()
        seconds = time.perf_counter() - start
        return {"seconds": seconds} | _written(clip, places)
    except DecodingError as e:
        return {"error": "DecodingError", "says": str(e), "fault": e.fault}
    except HookedVidError as e:
        return {"error": type(e).__name__, "says": str(e)}
    except MemoryError:
        return {"error": "MemoryError"}
    except Exception as e:  # whatever went wrong in here has to do with this video and no other
        return {"error": "VideoError", "says": str(refusal(request.source, f"{type(e).__name__}: {e}", TODO))}


def _written(clip: Clip, places: Sequence[Path]) -> dict[str, Any]:
    """Write the frames to the first of these places that takes them. Raises RunError where none does."""
    why = ""
    for failed, path in enumerate(places):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            save_clip(clip, path)
            return {"failed": failed, "why": why}
        except OSError as e:
            why = f"{path.parent}: {e.strerror or e}"
    raise RunError(f"cannot write frames to {why}; make room there, or set another place (TMPDIR)")


if __name__ == "__main__":
    main()
