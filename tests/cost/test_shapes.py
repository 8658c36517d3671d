"""Shapes without torch's own rules for them; the oracle is those rules."""

import pytest
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from archlab.config.assemble import assemble_without_weights
from archlab.config.compose import compose
from archlab.cost.measure import costs
from archlab.model.shapes import Shapes


class Both(Shapes):
    """Carries out each operation a second time as torch does on the meta device."""

    def called(self, op, args, kwargs):
        with_meta = {**kwargs, "device": torch.device("meta")} if "device" in kwargs else kwargs
        theirs = None if op._schema.is_mutable else op(*args, **with_meta)
        ours = super().called(op, args, kwargs)
        self.n_ops = getattr(self, "n_ops", 0) + 1
        for one, other in zip(tree_leaves(ours), tree_leaves(theirs), strict=True) if theirs is not None else ():
            if isinstance(one, torch.Tensor):
                assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device), op
                assert one.stride() == other.stride() or 1 in one.shape, op
        return ours


MODELS = (
    (),
    ("norm=layer", "ffn=glm", "dropout=0.1", "head=mlm", "pos=learned", "mask=full"),
    ("ffn=experts", "mixer=mla", "residual=sandwich"),
    ("mixer=deltanet", "pos=none", "norm=l2"),
    ("mixer=retnet", "pos=xpos", "residual=mhc"),
    ("mask=chunked", "mask.chunk=8", "pos=t5", "ffn=xielu"),
    ("pos=fire", "mixer=gqa", "size.n_kv_heads=1", "embed.norm=true", "residual=mix"),
)


@pytest.mark.parametrize("words", MODELS, ids=" ".join)
def test_every_operation_of_a_model_has_the_shape_that_torch_gives_it(words):
    decoder = assemble_without_weights(compose("size=nano", "size.vocab_size=262", *words))
    seq_len = 37
    with torch.device("meta"), Both() as both:
        decoder(torch.zeros(3, seq_len, dtype=torch.long))
    assert both.n_ops > 40
    tokens = torch.zeros(1, seq_len, dtype=torch.long, device="meta")
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        decoder.compute(tokens, [context.as_one_block() for context in decoder.read(tokens)])
    ours = costs(decoder, seq_len, 4)["flops_per_token"] * seq_len
    if "mixer=deltanet" in words:  # it solves triangular systems, of which torch counts nothing
        assert ours > counter.get_total_flops()
    else:
        assert ours == pytest.approx(counter.get_total_flops(), rel=1e-12)
