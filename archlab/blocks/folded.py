"""torch's fused attention for several models at once: under `torch.vmap` the stacked models become sequences, or heads, side by side.

torch 2.13 has no vmap rule for `scaled_dot_product_attention`, forward or backward. The operator that is defined here
has one, and is otherwise torch's own. What it computes under vmap is one ordinary call, so its gradient is torch's too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Queries = Float[Tensor, "*models batch heads query head_dim"]
Keys = Float[Tensor, "*models batch kv_heads key head_dim"]
Added = Float[Tensor, "*models #batch #heads query key"]

LIBRARY = torch.library.Library("archlab", "FRAGMENT")
LIBRARY.define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor? attn_mask, float dropout_p, bool is_causal, bool enable_gqa) -> Tensor"
)


def attend(
    q: Queries,
    k: Keys,
    v: Keys,
    attn_mask: Added | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Queries:
    """`F.scaled_dot_product_attention`, also under `torch.vmap`."""
    attended: Tensor = torch.ops.archlab.attend(q, k, v, attn_mask, dropout_p, is_causal, enable_gqa)
    return attended


def of_one(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool, enable_gqa: bool) -> Tensor:  # fmt: skip
    """What the operator computes outside of vmap."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, enable_gqa=enable_gqa)


def of_several(
    info: Any,
    in_dims: tuple[int | None, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    enable_gqa: bool,
) -> tuple[Tensor, int]:
    """The rule for vmap, as `torch.library.register_vmap` has it: the models' own axis joins the batch.

    Where each model has one table for all its sequences, as learned biases are, it joins the heads instead: a batch would
    need a copy of the table for each sequence. There keys have as many heads as queries.
    """
    q, k, v = (first(x, dim, info.batch_size) for x, dim in zip((q, k, v), in_dims, strict=False))
    n_models, batch, n_heads = q.shape[:3]
    of_all_models = attn_mask is None or in_dims[3] is None
    table = attn_mask if attn_mask is None or in_dims[3] is None else attn_mask.movedim(in_dims[3], 0)
    if table is not None and not of_all_models and table.shape[1] == 1 and batch > 1:
        q, k, v = (x.transpose(0, 1).flatten(1, 2) for x in (q, k, v))
        table = table.squeeze(1).expand(-1, n_heads, -1, -1).flatten(0, 1)[None]
        gathered = F.scaled_dot_product_attention(q, k, v, table, dropout_p, is_causal, enable_gqa=enable_gqa)
        return gathered.unflatten(1, (n_models, n_heads)), 1
    if table is not None and not of_all_models:
        table = table.expand(-1, batch, -1, -1, -1).flatten(0, 1)
    elif table is not None and table.shape[0] > 1:
        table = table.expand(n_models, *table.shape).flatten(0, 1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    gathered = F.scaled_dot_product_attention(q, k, v, table, dropout_p, is_causal, enable_gqa=enable_gqa)
    return gathered.unflatten(0, (n_models, batch)), 0


def first(x: Tensor, dim: int | None, n_models: int) -> Tensor:
    """With the models' axis in front; what all models share is repeated without a copy."""
    return x.expand(n_models, *x.shape) if dim is None else x.movedim(dim, 0)


LIBRARY.impl("attend", of_one, "CompositeImplicitAutograd")
torch.library.register_vmap("archlab::attend", of_several, lib=LIBRARY)
