"""chopjax: chop layers out of pretrained decoders and heal what is left, in JAX."""

__version__ = "0.1.0"
