"""prorank_jax: turn a small decoder language model into a document reranker, in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prorank_jax.reranker import Reranker
    from prorank_jax.runtime.compiled import keep_compiled

__version__ = "0.1.0"
__all__ = ["Reranker", "__version__", "keep_compiled"]


def __getattr__(name: str) -> Any:
    # JAX takes more than a second to import, so it is loaded with the first name that needs it.
    if name == "Reranker":
        from prorank_jax.reranker import Reranker

        return Reranker
    if name == "keep_compiled":
        from prorank_jax.runtime.compiled import keep_compiled

        return keep_compiled
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
