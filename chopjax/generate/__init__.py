"""Text from a model, alone or with a draft beside it."""
