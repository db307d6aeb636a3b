"""The families of models: their sizes, prompts and published checkpoints.

Floor 1.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"sizes": ["FAMILIES", "small_config"]})
