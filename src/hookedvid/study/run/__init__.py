"""Running a study: in one process, on a cluster, or only estimated."""

# pyright: standard
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"tasks": ["run"]})
