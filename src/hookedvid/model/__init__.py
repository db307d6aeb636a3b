"""HookedVideoLLM, and what runs on one of them."""
