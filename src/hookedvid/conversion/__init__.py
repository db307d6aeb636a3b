"""Rename tables between other people's tensor names and ours, read in both directions.

Floor 1.
"""
