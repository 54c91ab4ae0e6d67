"""Every GPU in the house becomes one private LLM endpoint."""

__version__ = "0.1.0"
