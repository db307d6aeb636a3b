"""A study's results as text, figures and pages.

Floor 7.
"""
