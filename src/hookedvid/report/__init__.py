"""A study's results as text, figures and pages."""
