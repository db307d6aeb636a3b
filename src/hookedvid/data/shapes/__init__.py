"""Made clips of moving shapes, with questions whose answers are known."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"clips": ["held_out", "make_dataset", "stream"]}
)
