"""The short causal convolution: documents, bias, sizes; against torch's grouped convolution."""

import pytest
import torch
from oracles import BATCH, D_MODEL, SEQ, make_reading, randomise

import archlab
from archlab.blocks.cache import Cache
from archlab.blocks.causal_conv import CausalConv

EXACT = dict(rtol=1e-10, atol=1e-10)  # float64, sums in another order


@pytest.mark.parametrize(("size", "bias"), [(1, True), (5, True), (3, False)])
def test_it_is_torchs_grouped_convolution(size, bias):
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64, requires_grad=True)
    conv, seq = randomise(CausalConv(D_MODEL, size, bias)).double(), x.shape[1]
    theirs = torch.nn.Conv1d(D_MODEL, D_MODEL, size, groups=D_MODEL, padding=size - 1, bias=bias).double()
    theirs.load_state_dict(conv.state_dict())  # the same names and shapes
    out, expected = conv(x, make_reading("none", "causal", seq)), theirs(x.mT)[..., :seq].mT
    torch.testing.assert_close(out, expected, **EXACT)
    along = torch.randn_like(out)
    of_ours, of_theirs = (
        torch.autograd.grad(y, [x, *m.parameters()], along) for y, m in ((out, conv), (expected, theirs))
    )
    torch.testing.assert_close(of_ours, of_theirs, **EXACT)


@torch.no_grad()
def test_it_sees_no_other_document_and_decodes_within_the_last():
    """Each document gives what it gives alone, whole and with a cache; a document shorter than the convolution too."""
    words = ("size=nano", "mixer.conv=4", "mask=document", "mask.reset_positions=true", "pos=fire", "documents=true")
    decoder = randomise(archlab.build(*words)).double().eval()
    tokens, starts = torch.randint(61, (1, 13)), torch.tensor([[0] * 5 + [5] * 2 + [7] * 6])
    whole, cache = decoder(tokens, document_starts=starts), Cache()
    alone = [decoder(tokens[:, a:b]) for a, b in ((0, 5), (5, 7), (7, 13))]  # where nothing is said of documents
    torch.testing.assert_close(whole, torch.cat(alone, dim=1), **EXACT)
    pieces = [decoder(tokens[:, :8], document_starts=starts[:, :8], cache=cache)]
    pieces += [decoder(tokens[:, i : i + 1], cache=cache) for i in range(8, 13)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **EXACT)
