"""The errors for sources that cannot be read, by a fault of their own or of the machine: that one may pass."""

import errno

from hookedvid.errors import DecodingError, VideoError

# Of a path that names nothing, as one does that is too long, has a NUL or is no text of the file system's (ValueError).
NO_NAME = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def refusal(source: object, fault: str, todo: str) -> VideoError:
    """The error for a source that cannot be sampled exactly: what was found, and what to do."""
    return VideoError(f"cannot sample frames of {source}: {fault}; {todo}")


def unreadable(source: object, e: OSError | ValueError) -> VideoError:
    """The error for a source that was not read: DecodingError by a fault of the machine, else there is no such file."""
    if isinstance(e, ValueError) or e.errno in NO_NAME:
        return refusal(source, "there is no such file", "check the path")
    fault = f"it cannot be read ({e.strerror or e})"
    return DecodingError(str(refusal(source, fault, "mend that, and run it again")), "machine")


def changed(source: object) -> DecodingError:
    """The error for a source whose bytes are not those that the study was planned on."""
    fault = "its bytes are not those that were hashed when the study was planned, or changed while they were read"
    return DecodingError(str(refusal(source, fault, "run it again when nothing writes to it")), "changed")
