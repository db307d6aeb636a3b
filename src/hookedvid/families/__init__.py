"""The families of models: their sizes, prompts and published checkpoints."""
