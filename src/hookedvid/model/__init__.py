"""HookedVideoLLM, and what runs on one of them.

Floor 4.
"""

# pyright: standard
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"hooked_video_llm": ["HookedVideoLLM"]})
