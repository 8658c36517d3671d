"""A model drawn as it is built: `svg(decoder)`, and `side_by_side` of two.

Norms, sums and gates are observed in a run of the model (`trace`), not looked up by name, so a block of the user's own
is drawn as it is. The picture itself is made in `archlab.diagram.drawing`, which does not import torch.
"""

from archlab.diagram import drawing
from archlab.diagram.parts import sketch
from archlab.model.decoder import Decoder

__all__ = ["side_by_side", "sketch", "svg"]


def svg(decoder: Decoder, title: str = "") -> str:
    """The block diagram of a decoder, on any device, as the text of an SVG file.

    Raises UserError where a block cannot be run on the meta device.
    """
    return drawing.svg(sketch(decoder, title))


def side_by_side(left: Decoder, right: Decoder, titles: tuple[str, str]) -> str:
    """Two decoders in one SVG."""
    return drawing.side_by_side(sketch(left, titles[0]), sketch(right, titles[1]))
