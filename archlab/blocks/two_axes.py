"""The two positions of a token in GLM: where it stands in the text, and where in what is being filled in."""

import torch
from jaxtyping import Int
from torch import Tensor


def two_axes(
    index: Int[Tensor, "#batch seq"], prefix_len: Int[Tensor, " #batch"], anchor: str
) -> Int[Tensor, "#batch 2 seq"]:
    """The first position is 0, 1, .. in the prefix and constant after it; the second is 0 in the prefix, then 1, 2, ..

    The constant is the place that is being filled in: the prefix's last token (`anchor="last"`, where ChatGLM-6B has
    its [gMASK]) or the one after it (`anchor="next"`). Source: arXiv:2103.10360, sec. 2.3; ChatGLM-6B's published code.
    """
    begin = prefix_len.view(-1, 1)
    place = (begin - 1).clamp(min=0) if anchor == "last" else begin
    return torch.stack((torch.minimum(index, place), (index - begin + 1).clamp(min=0)), dim=1)
