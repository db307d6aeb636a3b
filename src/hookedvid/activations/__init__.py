"""Activations over a dataset, kept in a folder, and what is made of them: probes, directions, features.

Floor 7.
"""
