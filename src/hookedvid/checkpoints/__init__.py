"""From a name to weights: found, fetched, converted, loaded, checked.

Floor 3.
"""
