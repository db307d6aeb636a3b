"""Figures: each function takes a table, attention or numbers of tokens, and returns a matplotlib Figure.

One style (`style`): widths of a paper's column and page, colours that rise evenly in lightness and are told apart by
colour-blind readers, numbers in black or white by the cell that they stand on.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
