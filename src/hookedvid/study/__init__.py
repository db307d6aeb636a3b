"""Knockout studies: protocols, scoring and the runs that join them.

Floor 6.
"""
