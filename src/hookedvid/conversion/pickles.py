"""What is said of weights that come as pickles, which are never loaded."""

import shlex
from collections.abc import Sequence
from pathlib import Path

TO_SAFETENSORS = (
    "import sys, torch; from pathlib import Path; from safetensors.torch import save_file; "
    "[save_file({k: v.clone().contiguous() for k, v in "  # clones, for tied tensors share their memory
    "torch.load(p, map_location='cpu', weights_only=True).items()}, "
    "Path(p).with_suffix('.safetensors'), metadata={'format': 'pt'}) for p in sys.argv[1:]]"
)


def pickle_message(where: str | Path, names: Sequence[str]) -> str:
    """That a folder's pickles are never loaded; on a line of its own, the command that makes safetensors of them."""
    files = " ".join(shlex.quote((Path(where) / n).as_posix()) for n in names)
    shown = ", ".join(names[:4]) + (f", … ({len(names)} files)" if len(names) > 4 else "")
    return (
        f"{shown} in {where}: pickles are never loaded, for reading one can run code that it holds. "
        f'Make safetensors of them, then name that folder:\npython -c "{TO_SAFETENSORS}" {files}'
    )
