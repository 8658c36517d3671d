"""What every decoder must hold, whatever block was put into it."""

from collections import Counter
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from archlab.base.errors import UserError
from archlab.blocks.cache import Cache
from archlab.blocks.contracts import Norm
from archlab.config.assemble import assemble_without_weights, build
from archlab.contract.finding import Broken, NotAsked
from archlab.contract.subject import (
    BATCH,
    PREFIX,
    SECOND,
    SEQ,
    Subject,
    documents_of,
    embeddings_of,
    logits_of,
    prefix_of,
)
from archlab.model.decoder import Decoder, check_decodable

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
SAME = 1e-9
"""Of the largest logit: sums in another order, in float64."""

AUTOCAST = 0.1
"""Of the logits' length: what bfloat16's eight bits keep through four layers."""


@torch.no_grad()
def shapes(subject: Subject) -> str:
    """Shape and dtype."""
    wanted = (BATCH, SEQ, subject.cfg.size.vocab_size)
    for dtype in DTYPES:
        logits = logits_of(subject.decoder(dtype), subject.tokens)
        if tuple(logits.shape) != wanted or logits.dtype != dtype:
            raise Broken(f"Logits of a decoder in {name(dtype)} are {tuple(logits.shape)} in {name(logits.dtype)}; they should be {wanted} in {name(dtype)}.")  # fmt: skip
        if not logits.isfinite().all():
            raise Broken(f"In {name(dtype)} some logits are not finite.")
    return f"Tokens ({BATCH}, {SEQ}) become finite logits {wanted} in {', '.join(map(name, DTYPES))}, each in its own."


@torch.no_grad()
def autocast(subject: Subject) -> str:
    """Mixed precision."""
    decoder = build(subject.cfg).eval()  # initial weights, since it is them that keep a signal's size in every scheme
    expected = logits_of(decoder, subject.tokens)
    with torch.autocast("cpu", torch.bfloat16):
        error = float((logits_of(decoder, subject.tokens).float() - expected).norm() / expected.norm())
    if not error < AUTOCAST:
        raise Broken(f"Under bfloat16 autocast logits are {error:.0%} away from float32; up to {AUTOCAST:.0%} is rounding. Take statistics and exponentials in float32.")  # fmt: skip
    return f"Under bfloat16 autocast logits stay within {error:.1%} of float32."


def without_memory(subject: Subject) -> str:
    """Shapes without memory."""
    decoder = assemble_without_weights(subject.cfg).eval()
    with torch.device("meta"):
        logits = logits_of(decoder, subject.tokens.to("meta"))
    return f"It runs on the meta device, so costs can be counted without memory: {tuple(logits.shape)}."


def future(subject: Subject) -> str:
    """No leak from the future."""
    decoder = subject.decoder().train()  # a norm may average over the batch in training alone
    with embeddings_of(decoder) as kept:
        logits = logits_of(decoder, subject.tokens)
    scored = decoder.mask.may_score(SEQ, torch.full((BATCH,), prefix_of(decoder) or 0))
    declared = [type(norm).__name__ for norm in decoder.modules() if isinstance(norm, Norm) and norm.sees_future]
    seen = first_leak(logits, kept[0], scored)
    if seen and not declared:
        raise Broken(f"The prediction at position {seen[0]} depends on the token at position {seen[1]}, which it is to predict or comes later; the loss would be too low.")  # fmt: skip
    if declared and not seen:
        raise Broken(f"{declared[0]} says, by its `reduces`, that it sees the future, and no prediction depends on a later token; set `reduces` to what it averages over.")  # fmt: skip
    if seen:
        return f"The prediction at position {seen[0]} depends on position {seen[1]}, and {declared[0]} says so by its `reduces`: causal models refuse it unless allow_leak=true."
    if not scored[:, :-1].any() and all(mask.bidirectional for _, mask in decoder.pairs):
        return "Every position attends to every position, so of a sequence's next tokens only the last is scored: none attends to it."
    return "No prediction that is scored depends on a later token: such gradients are exactly 0."


def first_leak(logits: Tensor, embeddings: Tensor, scored: Tensor) -> tuple[int, int] | None:
    for position in range(SEQ - 1):
        chosen = logits[scored[:, position], position]
        if chosen.numel():
            (gradient,) = torch.autograd.grad(chosen.square().sum(), embeddings, retain_graph=True)
            later = gradient[:, position + 1 :].abs().amax(dim=(0, 2)).nonzero()
            if len(later):
                return position, position + 1 + int(later[0])
    return None


def strangers(subject: Subject) -> str:
    """Sequences apart."""
    decoder = subject.decoder().train()
    with embeddings_of(decoder) as kept:
        logits = logits_of(decoder, subject.tokens)
    (gradient,) = torch.autograd.grad(logits[0].square().sum(), kept[0])
    declared = any("batch" in norm.reduces for norm in decoder.modules() if isinstance(norm, Norm))
    touched = bool(gradient[1:].any())
    if touched and not declared:
        raise Broken("What is predicted in one sequence depends on the others beside it in the batch.")
    if declared and not touched:
        raise Broken(
            'A norm says, by its `reduces`, that it averages over "batch", and no sequence depends on another.'
        )
    return (
        "Sequences side by side touch each other, and the norm says so."
        if touched
        else "Sequences side by side do not touch each other."
    )


def gradients(subject: Subject) -> str:
    """Gradients."""
    decoder = subject.decoder()
    F.cross_entropy(logits_of(decoder, subject.tokens).flatten(0, 1), subject.tokens.flip(1).flatten()).backward()
    weights = dict(decoder.named_parameters())
    for problem, names in {
        "no gradient reaches": [n for n, w in weights.items() if w.grad is None or not w.grad.any()],
        "a gradient is not finite at": [
            n for n, w in weights.items() if w.grad is not None and not w.grad.isfinite().all()
        ],
    }.items():
        if names:
            raise Broken(f"From the loss {problem} {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}.")
    return f"A finite gradient that is not 0 reaches all {len(weights)} parameters."


def apart(subject: Subject) -> str:
    """No shared parameters."""
    decoder = subject.decoder()
    owners: dict[int, list[str]] = {}
    for depth, layer in enumerate(decoder.layers):
        for path, weight in layer.named_parameters(remove_duplicate=False):
            owners.setdefault(weight.data_ptr(), []).append(f"layers.{depth}.{path}")
    if shared := next((names for names in owners.values() if len(names) > 1), None):
        raise Broken(f"{shared[0]} and {shared[1]} are one and the same; make a new one for each.")
    counted = Counter(id(module) for layer in decoder.layers for module in layer.modules())
    if any(n > 1 for n in counted.values()):
        raise Broken("Two layers hold the same module; make a new one for each.")
    return "No layer shares a parameter or a module with another."


def state(subject: Subject) -> str:
    """Saved and loaded."""
    decoder, twin = subject.decoder(), subject.decoder()
    for weight_name, weight in build(subject.cfg).named_parameters():
        if weight.untyped_storage().nbytes() != weight.numel() * weight.element_size():
            raise Broken(f"{weight_name} is a part of a larger tensor, so it cannot be saved by itself: make it a tensor of its own, by .clone().")  # fmt: skip
    with torch.no_grad():
        for weight in twin.parameters():
            weight.mul_(2)
    twin.load_state_dict(decoder.state_dict())
    expected = logits_of(decoder, subject.tokens)
    for again, reason in ((twin, "a twin with its state dict"), (decoder, "the same decoder, asked twice,")):
        if not torch.equal(logits_of(again, subject.tokens), expected):
            raise Broken(f"In evaluation {reason} computes something else: what it computes depends on more than its options and its state dict.")  # fmt: skip
    return "What it computes in evaluation depends on its options and its state dict, and on nothing else."


@torch.no_grad()
def copied(subject: Subject) -> str:
    """Copied."""
    decoder = subject.decoder()
    expected, copy = logits_of(decoder, subject.tokens), deepcopy(decoder)
    for tensor in (*decoder.parameters(), *decoder.buffers()):
        tensor.fill_(-1)
    if not torch.equal(logits_of(copy, subject.tokens), expected):
        raise Broken("A copy of it computes with weights of the original, so runs in a pack would never train their own: have forward read them from self, not from a function that was made with them.")  # fmt: skip
    return "A copy, such as runs in a pack are made of, computes with its own weights."


def recomputed(subject: Subject) -> str:
    """Recomputed activations."""
    decoder = subject.decoder()

    def kept() -> list[Tensor]:
        decoder.zero_grad()
        logits_of(decoder, subject.tokens).square().sum().backward()
        return [weight.grad.clone() for weight in decoder.parameters() if weight.grad is not None]

    before = kept()
    decoder.recompute_activations()
    if not all(torch.equal(one, other) for one, other in zip(before, kept(), strict=True)):
        raise Broken("With train.checkpoint=true, which runs each layer twice, the gradients are others.")
    return "Running each layer again in the backward pass (train.checkpoint=true) changes no gradient."


@torch.no_grad()
def decoding(subject: Subject) -> str:
    """Decoding equals forward."""
    decoder = decodable(subject)
    expected, cache = logits_of(decoder, subject.tokens), Cache()
    # What follows cached tokens goes on with their last document, so its start is among the first.
    begin = PREFIX if documents_of(decoder, subject.tokens) is None else 2 * SECOND + 1
    first = subject.tokens[:, :begin]
    pieces = [decoder(first, prefix_of(decoder), cache=cache, document_starts=documents_of(decoder, first))]
    pieces += [decoder(subject.tokens[:, i : i + 1], cache=cache) for i in range(begin, SEQ)]
    for position, error in enumerate(relative(torch.cat(pieces, dim=1), expected)):
        if not error < SAME:
            raise Broken(f"Token by token from a cache, the logits at position {position} are {error:.1e} (relative) away from those of the whole sequence at once.")  # fmt: skip
    return "Token by token from a cache it predicts what it predicts of the whole sequence at once."


@torch.no_grad()
def beginnings(subject: Subject) -> str:
    """Beginnings alike."""
    decoder, begin = subject.decoder(), SEQ // 2
    if not decoder.begins_alike:
        raise NotAsked("A block says that what it computes depends on later tokens, or on how many there are.")
    expected, first = logits_of(decoder, subject.tokens)[:, :begin], subject.tokens[:, :begin]
    error = float(relative(logits_of(decoder, first), expected).max())
    if not error < SAME:
        raise Broken(f"The first {begin} of {SEQ} tokens are predicted otherwise where there are no more: logits are {error:.1e} (relative) away. A block whose output depends on the length says so by `uses_length`.")  # fmt: skip
    return "What a sequence begins with is predicted as it is where the sequence ends there."


@torch.no_grad()
def padded(subject: Subject) -> str:
    """Left padding."""
    decoder, pad = decodable(subject), 2
    longer = torch.cat((subject.tokens.flip(1)[:, :pad], subject.tokens), dim=1)
    starts = documents_of(decoder, subject.tokens)
    starts = None if starts is None else F.pad(starts, (pad, 0))
    padding = torch.full((BATCH,), pad)
    together = decoder(longer, prefix_of(decoder), padding=padding, document_starts=starts)[:, pad:]
    error = float(relative(together, logits_of(decoder, subject.tokens)).max())
    if not error < SAME:
        raise Broken(
            f"With padding on its left a sequence is predicted otherwise: logits are {error:.1e} (relative) away."
        )
    return "A sequence with padding on its left is predicted as if it stood alone."


def decodable(subject: Subject) -> Decoder:
    decoder = subject.decoder()
    try:
        check_decodable(decoder)
    except UserError as reason:
        why = str(reason).partition(": ")[2]
        raise NotAsked(f"{why[0].upper()}{why[1:]}.") from None
    return decoder


def relative(ours: Tensor, expected: Tensor) -> Tensor:
    """By position."""
    return (ours - expected).abs().amax(dim=(0, 2)) / expected.abs().max()


@torch.no_grad()
def compiled(subject: Subject) -> str:
    """Compiles."""
    decoder = subject.decoder(torch.float32)
    torch._dynamo.reset()
    try:
        # aot_eager captures and traces as every backend does, and needs no C++ compiler on the user's machine.
        program = torch.compile(decoder, backend="aot_eager", fullgraph=True)
        starts = documents_of(decoder, subject.tokens)
        logits = program(subject.tokens, prefix_of(decoder), document_starts=starts)
    except Exception as error:
        why = " ".join(str(error).split())
        raise Broken(f"torch.compile cannot take it as one graph: {why[:200]}") from None
    finally:
        torch._dynamo.reset()
    expected = logits_of(decoder, subject.tokens)
    away = float((logits - expected).abs().max() / expected.abs().max())
    if not away < 1e-4:  # float32 through four layers
        raise Broken(f"Compiled, its logits are {away:.1e} (relative) away.")
    return "torch.compile takes the whole decoder as one graph, and it computes the same."


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


CHECKS = (
    shapes,
    autocast,
    without_memory,
    future,
    strangers,
    gradients,
    apart,
    state,
    copied,
    decoding,
    beginnings,
    padded,
    recomputed,
    compiled,
)
