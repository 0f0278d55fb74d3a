"""What a recipe of `chopjax run` begins with; recipes lie with their users, so that this name stays."""

from chopjax.runs.settings import pipeline_config as default_config

__all__ = ["default_config"]
