"""The families of models: one file states all that is special about one; the registry finds them.

Floor 2.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"registry": ["FAMILIES", "small_config"]})
