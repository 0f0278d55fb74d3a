"""What a recipe of `chopjax run` begins with. Recipes lie with their users: this name stays."""

from chopjax.runs.settings import pipeline_config as default_config

__all__ = ["default_config"]
