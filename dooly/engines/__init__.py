"""Engine adapters: what Dooly asks of a serving engine, and the settings that it passes on. Loads an engine only when asked."""

from dooly.engines._config import ModelSource, ServingConfig, find_model, listed_models

__all__ = ["ModelSource", "ServingConfig", "find_model", "listed_models"]
