"""What a recipe of `chopjax sweep` begins with. Recipes lie with their users: this name stays."""

from chopjax.runs.settings import sweep_config as default_config

__all__ = ["default_config"]
