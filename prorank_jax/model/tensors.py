"""One table from Hugging Face's tensor names to parameter paths, and the layout of each tensor on either side.

A Hugging Face linear layer stores [out, in] for each layer of the decoder; ours stores [layers, in, out] with heads as
axes of their own. So a kernel is transposed and reshaped, layers are stacked, and nothing else is changed: what
was imported comes out again bit for bit.
"""

from typing import Any, NamedTuple

import numpy as np

from prorank_jax.model.decoder import DecoderConfig, Params

EMBEDDING = "model.embed_tokens.weight"
UNEMBEDDING = "lm_head.weight"
CLASSIFIER = "score.weight"


class Entry(NamedTuple):
    """One parameter, and the tensors it is made of.

    Attributes:
      path: its path in the tree of parameters.
      name: the tensors' name; `{}` stands for the layer where there is one tensor for each.
      theirs: the shape of each tensor.
      ours: the shape of the parameter, less the axis of the layers.
      kernel: whether a tensor is the transpose of ours.
    """

    path: tuple[str, ...]
    name: str
    theirs: tuple[int, ...]
    ours: tuple[int, ...]
    kernel: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the parameter's first axis counts the layers."""
        return "{}" in self.name

    def names(self, layers: int) -> list[str]:
        """The tensors of all layers, in order."""
        return [self.name.format(layer) for layer in range(layers)] if self.stacked else [self.name]

    def shape(self, layers: int) -> tuple[int, ...]:
        """The parameter's shape."""
        return (layers, *self.ours) if self.stacked else self.ours

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor as its part of the parameter (a view)."""
        return (tensor.T if self.kernel else tensor).reshape(self.ours)

    def to_theirs(self, part: np.ndarray) -> np.ndarray:
        """A part of the parameter as a tensor."""
        matrix = part.reshape(self.theirs[::-1] if self.kernel else self.theirs)
        return np.ascontiguousarray(matrix.T if self.kernel else matrix)


def tensor_table(c: DecoderConfig) -> list[Entry]:
    """Every tensor of a checkpoint of this shape, each once."""
    N, K, H, D, F = c.heads, c.kv_heads, c.head_size, c.width, c.mlp_width
    table = [Entry(("embedding",), EMBEDDING, (c.vocabulary, D), (c.vocabulary, D))]
    if not c.tied:
        table.append(Entry(("unembedding",), UNEMBEDDING, (c.vocabulary, D), (c.vocabulary, D)))

    layer = "model.layers.{}."
    norms = {"attention_norm": ("input_layernorm", D), "mlp_norm": ("post_attention_layernorm", D)}
    if c.post_norms:
        norms |= {
            "attention_post_norm": ("post_attention_layernorm", D),
            "mlp_norm": ("pre_feedforward_layernorm", D),
            "mlp_post_norm": ("post_feedforward_layernorm", D),
        }
    if c.qk_norm:
        norms |= {"attention.query_norm": ("self_attn.q_norm", H), "attention.key_norm": ("self_attn.k_norm", H)}
    for ours, (theirs, size) in norms.items():
        path = ("layers", *ours.split("."), "scale")
        table.append(Entry(path, f"{layer}{theirs}.weight", (size,), (size,)))
    table.append(Entry(("final_norm", "scale"), "model.norm.weight", (D,), (D,)))

    for ours, theirs, into, out in (
        ("attention.query", "self_attn.q_proj", (D,), (N, H)),
        ("attention.key", "self_attn.k_proj", (D,), (K, H)),
        ("attention.value", "self_attn.v_proj", (D,), (K, H)),
        ("attention.output", "self_attn.o_proj", (N, H), (D,)),
        ("mlp.gate", "mlp.gate_proj", (D,), (F,)),
        ("mlp.up", "mlp.up_proj", (D,), (F,)),
        ("mlp.down", "mlp.down_proj", (F,), (D,)),
    ):
        path, rows, columns = ("layers", *ours.split(".")), int(np.prod(out)), int(np.prod(into))
        kernel = Entry((*path, "kernel"), f"{layer}{theirs}.weight", (rows, columns), (*into, *out), kernel=True)
        table.append(kernel)
        if c.qkv_bias and ours in ("attention.query", "attention.key", "attention.value"):
            table.append(Entry((*path, "bias"), f"{layer}{theirs}.bias", (rows,), out))
    return table


def get(tree: Params, path: tuple[str, ...]) -> Any:
    """The leaf at a path."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: Params, path: tuple[str, ...], value: Any) -> None:
    """Sets the leaf at a path."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
