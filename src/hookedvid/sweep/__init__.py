"""Many runs on one video, each part of their work done once.

Floor 5.
"""

# pyright: standard
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"run": ["sweep"], "session": ["Session"]})
