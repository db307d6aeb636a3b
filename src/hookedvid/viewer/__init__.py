"""One question as a page: frames, where attention looks, what a cut costs, what a lens reads.

Floor 7.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"view": ["View", "view"]})
