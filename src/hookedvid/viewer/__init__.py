"""One question as a page: frames, where attention looks, what a cut costs, what a lens reads.

Floor 7.
"""
