"""Questions on videos: the item format and the datasets that yield it.

Floor 3.
"""
