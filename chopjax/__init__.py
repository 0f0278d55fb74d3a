"""chopjax: chop layers out of pretrained decoders and heal what is left, in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chopjax.flax_decoder import Decoder

__version__ = "0.1.0"
__all__ = ["Decoder", "__version__"]


def __getattr__(name: str) -> Any:
    # Read when asked for: half of the verbs start without jax.
    if name == "Decoder":
        from chopjax.flax_decoder import Decoder

        return Decoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
