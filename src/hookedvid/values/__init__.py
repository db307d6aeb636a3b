"""Plain data: what a model is, what its input holds, what is done to a run.

Floor 0.
"""
