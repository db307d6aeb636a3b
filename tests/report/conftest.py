"""Pages are opened in a real browser."""

from browser import browser, tab  # noqa: F401
