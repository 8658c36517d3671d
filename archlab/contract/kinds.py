"""What each kind of block must hold by itself, beside what every decoder of it must."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from hydra.utils import instantiate
from torch import Tensor

from archlab.base.configuration import plain_dict
from archlab.blocks.bias import ALiBi
from archlab.blocks.contracts import Mask
from archlab.blocks.mask import Causal, Prefix, Window
from archlab.blocks.norm import RMSNorm
from archlab.blocks.position import NoPosition
from archlab.blocks.rope import RoPE
from archlab.contract.finding import Broken, Check, NotAsked
from archlab.contract.subject import (
    BATCH,
    SEED,
    SEQ,
    Subject,
    documents_of,
    embeddings_of,
    logits_of,
    prefix_of,
    randomise,
)

FAR = 1_000_000
"""A position far beyond any training length."""

LARGE = 300.0
"""Its square does not fit float16, whose largest number is 65504."""


def made(group: str, subject: Subject, **sizes: Any) -> Any:
    """The block as the decoder makes it, with random weights, in float64 and in evaluation."""
    torch.manual_seed(SEED)
    return randomise(instantiate(subject.cfg[group])(**sizes)).double().eval()


def stream(subject: Subject) -> Tensor:
    return torch.randn(BATCH, SEQ, subject.cfg.size.d_model, generator=torch.Generator().manual_seed(SEED)).double()


# ---------------------------------------------------------------- norm


def norm_in_float32(subject: Subject) -> str:
    """Statistics in float32."""
    norm, x = made("norm", subject, d_model=subject.cfg.size.d_model), stream(subject) * LARGE
    expected, half = norm(x), norm.half()(x.half())
    if half.dtype != torch.float16:
        raise Broken(f"A float16 input comes out in {half.dtype}; a norm keeps its input's dtype.")
    if not half.isfinite().all() or (half.double() - expected).norm() > 0.01 * expected.norm():
        raise Broken(f"At inputs around {LARGE:g} in float16, whose squares overflow, it is no longer right: take the statistics of x.float().")  # fmt: skip
    return f"At inputs around {LARGE:g} in float16, whose squares overflow, it is right within 1%."


def norm_alone(subject: Subject) -> str:
    """Shape of any width."""
    for width in (subject.cfg.size.d_model, subject.cfg.size.head_dim):
        x = torch.randn(BATCH, SEQ, width).double()
        if (out := made("norm", subject, d_model=width)(x)).shape != x.shape:
            raise Broken(f"{tuple(x.shape)} comes out as {tuple(out.shape)}.")
    return "What comes out is shaped as what went in, at the width of the stream and of a head."


# ---------------------------------------------------------------- ffn


def each_position_alone(subject: Subject) -> str:
    """Each position alone."""
    size = subject.cfg.size
    ffn, x = made("ffn", subject, d_model=size.d_model, d_ff=size.d_ff), stream(subject).requires_grad_()
    if not ffn.acts:
        return not_there(ffn(x))
    (gradient,) = torch.autograd.grad(ffn(x)[0, 2].square().sum(), x)
    touched = gradient.any(dim=-1).nonzero().tolist()
    if any(sequence for sequence, _ in touched):
        raise Broken("What it makes of one sequence depends on the others beside it in the batch.")
    if touched != [[0, 2]]:
        raise Broken(
            f"What it makes of position 2 depends on positions {sorted({position for _, position in touched})}."
        )
    return "What it makes of a position depends on that position alone."


def not_there(out: Tensor) -> str:
    if out.any():
        raise Broken("`acts` is False, so that no layer calls it, and something comes out of it.")
    return "`acts` is False, so that no layer calls it, and 0 comes out of it."


def gate_declared(subject: Subject) -> str:
    """`gated`."""
    size = subject.cfg.size
    ffn = made("ffn", subject, d_model=size.d_model, d_ff=size.d_ff)
    matrices = sum(weight.shape.numel() for weight in ffn.parameters() if weight.dim() > 1) / (size.d_model * size.d_ff)
    if round(matrices, 6) not in (2, 3):
        raise NotAsked(
            f"It has {matrices:.3g} times d_model x d_ff weights, neither a plain network's 2 nor a gated one's 3."
        )
    if ffn.gated != (matrices > 2.5):
        raise Broken(f"`gated` is {ffn.gated} and it has {matrices:.3g} times d_model x d_ff weights: a plain network has 2, a gated one 3, and size.d_ff=matched goes by `gated`.")  # fmt: skip
    return f"`gated` is {ffn.gated}, as its {matrices:.3g} matrices of d_model x d_ff say."


# ---------------------------------------------------------------- residual


def scheme(subject: Subject, norm: Any = None, **branches: int) -> Any:
    size = subject.cfg.size
    takes = inspect.signature(instantiate(subject.cfg.residual).func).parameters
    width = {"d_model": size.d_model} if "d_model" in takes else {}
    norm = norm or partial(RMSNorm, d_model=size.d_model)
    return made("residual", subject, norm=norm, n_layers=size.n_layers, **width, **branches)


def both_branches(subject: Subject) -> str:
    """Both branches, the mixer first."""
    called: list[str] = []

    def branch(name: str, x: Tensor) -> Tensor:
        called.append(name)
        return x.tanh()

    residual = scheme(subject)
    both = (partial(branch, "mixer"), partial(branch, "ffn"))
    residual(residual.enter(stream(subject)), both)
    if called != ["mixer", "ffn"]:
        raise Broken(
            f"The branches were called as {', '.join(called) or 'none'}; the mixer comes first, then ffn, each once."
        )
    if "branches" not in inspect.signature(instantiate(subject.cfg.residual).func).parameters:
        return "Each branch is asked once, the mixer first."
    called.clear()
    alone = scheme(subject, branches=1)
    alone(alone.enter(stream(subject)), both[:1])
    if called != ["mixer"]:
        raise Broken(f"With branches=1 the mixer is called {len(called)} times, and not once.")
    return "Each branch is asked once, the mixer first, and so is the mixer alone."


def stream_left(subject: Subject) -> str:
    """`needs_final_norm`."""
    residual, x = scheme(subject), stream(subject)
    if residual.needs_final_norm:
        return "`needs_final_norm` is True, so the decoder norms what leaves the last layer."
    branches = torch.tanh, torch.sin
    small, large = (
        residual.leave(residual(residual.enter(x * scale), branches)).square().mean().sqrt() for scale in (1.0, 1000.0)
    )
    if large > 10 * small:
        raise Broken(
            "`needs_final_norm` is False, and a larger stream leaves a layer larger: nothing norms it before the head."
        )
    return "`needs_final_norm` is False, and the stream leaves a layer as large whatever it was before."


# ---------------------------------------------------------------- pos


def positions_for(position: Any, numbers: Any) -> Tensor:
    numbers = torch.tensor([*numbers])[None]
    return numbers if position.axes == 1 else numbers.repeat(1, position.axes, 1)


def position_of(subject: Subject) -> Any:
    size = subject.cfg.size
    return made("pos", subject, d_model=size.d_model, n_heads=size.n_heads, head_dim=size.head_dim)


def any_position(subject: Subject) -> str:
    """Any position, or a limit."""
    position, size = position_of(subject), subject.cfg.size
    last = FAR if position.limit is None else position.limit - 1
    there, start = positions_for(position, [last]), positions_for(position, [0])
    heads = torch.randn(1, size.n_heads, 1, size.head_dim).double()
    made_there = {
        "embedding": position.embed(torch.randn(1, 1, size.d_model).double(), there),
        "rotated query": position.rotate_queries(heads, position.rotation(there)),
        "rotated key": position.rotate_keys(heads, position.rotation(there)),
        "bias": position.bias(there[..., None], start[..., None, :]),
    }
    for what, value in made_there.items():
        if not value.isfinite().all():
            raise Broken(
                f"At position {last} the {what} is not finite; a scheme that is a table declares its length by `limit`."
            )
    return f"It is finite at position {last}, {'its last' if position.limit else 'and names no limit'}."


def bias_declared(subject: Subject) -> str:
    """Bias in float32, and declared."""
    position = position_of(subject).float()  # what it computes with float32 weights
    positions = positions_for(position, range(SEQ))
    bias = position.bias(positions[..., None], positions[..., None, :])
    if bias.dtype != torch.float32:
        raise Broken(f"Its bias is in {bias.dtype}; scores and what is added to them are float32.")
    if position.biases_scores != bool(bias.any()):
        raise Broken(f"`biases_scores` is {position.biases_scores} and its bias is {'not 0' if bias.any() else '0'}; kernels go by `biases_scores`.")  # fmt: skip
    return f"`biases_scores` is {position.biases_scores}, as its bias says."


# ---------------------------------------------------------------- mask


def attended(mask: Any, seq_len: int, prefix_len: int) -> Tensor:
    index = torch.arange(seq_len)
    attendable = mask.can_attend(index.view(1, -1, 1), index.view(1, 1, -1), torch.tensor([[[prefix_len]]]))
    return attendable.expand(1, seq_len, seq_len)[0]


def masks_of(subject: Subject) -> list[Any]:
    """The mask of each kind of layer."""
    return list(dict.fromkeys(mask for _, mask in subject.decoder().pairs))


def attends_to_itself(subject: Subject) -> str:
    """Every token attends to itself."""
    for mask in masks_of(subject):
        for prefix_len in (0, 3):
            if not attended(mask, SEQ, prefix_len).diagonal().all():
                raise Broken("Some token may not attend to itself; a softmax over no keys is not a number.")
    return "Every token attends to itself, so no softmax is over no keys."


def mask_declared(subject: Subject) -> str:
    """`causal`, `bidirectional`, `uses_prefix`."""
    for mask in masks_of(subject):
        without, within = attended(mask, SEQ, 0), attended(mask, SEQ, 3)
        if not mask.bidirectional and (ahead := without.triu(1)).any():
            query, key = ahead.nonzero()[0].tolist()
            raise Broken(
                f"Query {query} attends to key {key}, which comes after it, without a prefix: only a mask that is `bidirectional`,"
                " where every position attends to every position, may do so."
            )
        seen = {
            "causal": torch.equal(without, torch.ones(SEQ, SEQ).tril().bool()) and torch.equal(without, within),
            "bidirectional": bool(without.all()),
            "uses_prefix": not torch.equal(without, within),
        }
        for flag, value in seen.items():
            # A window as wide as the sequence is causal here and does not say so, which costs time and no number.
            if getattr(mask, flag) != value and not (flag == "causal" and value):
                raise Broken(
                    f"`{flag}` is {getattr(mask, flag)}, and can_attend says {value}; kernels and data go by it."
                )
    return "`causal`, `bidirectional` and `uses_prefix` are what can_attend does."


def reach_declared(subject: Subject) -> str:
    """`reach`."""
    seq_len = 40
    for mask in masks_of(subject):
        for prefix_len in (0, 30):
            for start in range(0, seq_len, 8):
                rows, reach = slice(start, start + 8), mask.reach(slice(start, start + 8), seq_len)
                outside = attended(mask, seq_len, prefix_len)[rows].clone()
                outside[:, reach] = False
                if outside.any():
                    query, key = outside.nonzero()[0].tolist()
                    raise Broken(f"`reach` of queries {start} to {start + 7} leaves out key {key}, which query {start + query} may attend to.")  # fmt: skip
    return "`reach` leaves out no key that its queries may attend to."


def documents_apart(subject: Subject) -> str:
    """Documents apart."""
    decoder = subject.decoder()
    starts = documents_of(decoder, subject.tokens)
    if starts is None or not all(mask.uses_documents for _, mask in decoder.pairs):
        raise NotAsked("No mask keeps the documents of a sequence apart.")
    with embeddings_of(decoder) as kept:
        logits = logits_of(decoder, subject.tokens)
    for position in range(SEQ):
        (gradient,) = torch.autograd.grad(logits[:, position].square().sum(), kept[0], retain_graph=True)
        seen = gradient.abs().amax(dim=(0, 2)).nonzero().flatten()
        others = seen[starts[0, seen] != starts[0, position]]
        if len(others):
            raise Broken(f"What is predicted at position {position} depends on position {int(others[0])}, which is another document's.")  # fmt: skip
    return "What is predicted in one document depends on no other of its sequence: such gradients are exactly 0."


# ---------------------------------------------------------------- mixer, head


def kv_heads_divide(subject: Subject) -> str:
    """Key-value heads."""
    block, n_heads = instantiate(subject.cfg.mixer).func, subject.cfg.size.n_heads
    asked = block.default_kv_heads(n_heads)
    if n_heads % asked or not block.admits(n_heads, asked):
        raise Broken(
            f"By default it takes {asked} key-value heads for {n_heads}: not a divisor, or one it does not admit."
        )
    return f"For {n_heads} heads it takes {asked} key-value heads, a divisor it admits."


def weights_declared(group: str) -> Check:
    """A check that every weight is declared, and that all output goes through those with `writes_to_stream`."""

    def check(subject: Subject) -> str:
        """Weights that say what they are for."""
        decoder = subject.decoder()
        block = getattr(decoder.layers[0], group)
        declared = list(block.weights())
        if len({id(weight.tensor) for weight in declared}) != len(list(block.parameters())):
            raise Broken("`weights()` leaves out a parameter of its own, or names one that is not.")
        back = [weight for weight in declared if weight.writes_to_stream]
        if declared and not back:
            raise Broken(
                f"No weight says that it writes to the residual stream: name the last matrix in `to_stream`, which is"
                f" {block.to_stream}; initialisation goes by it."
            )
        with torch.no_grad():
            for weight in back:
                weight.tensor.zero_()
        x = stream(subject)
        out = block(x, decoder.read(subject.tokens)[0]) if group == "mixer" else block(x)
        if declared and (out - out[:1, :1]).abs().max() > 0:
            raise Broken(f"Without {', '.join(weight.name for weight in back)}, which it says it writes by, something of its input still comes out.")  # fmt: skip
        return f"{len(declared)} weights, each with its role; what goes back to the stream goes through {', '.join(weight.name for weight in back) or 'none'}."

    return check


def what_it_honours_acts(subject: Subject) -> str:
    """What it honours acts."""
    honours = instantiate(subject.cfg.mixer).func.honours
    pairs: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        "rotation": ("pos", {"kind": RoPE}, {"kind": NoPosition}),
        "bias": ("pos", {"kind": ALiBi}, {"kind": NoPosition}),
        "mask": ("mask", {"kind": Window, "window": 3}, {"kind": Causal}),
    }
    for what, (group, acting, idle) in pairs.items():
        with_and_without = [subject.with_block(group, **one) for one in (acting, idle)]
        if what in honours and torch.equal(*(logits_of(s.decoder(), s.tokens) for s in with_and_without)):
            raise Broken(
                f"It says it honours {what}, and {acting['kind'].__name__} gives the same logits to the last digit as"
                f" {idle['kind'].__name__}: use what the context has, or leave it out of `honours`."
            )
    return f"It honours {', '.join(sorted(honours)) or 'nothing of positions and masks'}, and each acts; what it does not honour is refused."


def logits_alone(subject: Subject) -> str:
    """Each position alone."""
    size = subject.cfg.size
    head = made(
        "head", subject, d_model=size.d_model, vocab_size=size.vocab_size, norm=partial(RMSNorm, d_model=size.d_model)
    )
    if tuple(head.weight.shape) != (size.vocab_size, size.d_model):
        raise Broken(f"Its table, `weight`, is {tuple(head.weight.shape)}; to be tied it should be (vocab, d_model).")
    x = stream(subject).requires_grad_()
    (gradient,) = torch.autograd.grad(head(x)[0, 2].square().sum(), x)
    if gradient.any(dim=-1).nonzero().tolist() != [[0, 2]]:
        raise Broken("The logits of a position depend on other positions.")
    return "The logits of a position depend on that position alone, and the table can be tied to the embedding's."


def every_option_counts(group: str, *masks: type[Mask]) -> Check:
    """A check that no option of the block is without effect, under the first of these masks that its mixer admits."""

    def check(subject: Subject) -> str:
        """Every option counts."""
        options = {name: value for name, value in plain_dict(subject.cfg[group]).items() if not name.startswith("_")}
        if not options:
            return "It has no options."
        hints = get_type_hints(instantiate(subject.cfg[group]).func.__init__)
        subject, before = first_that_computes([*(subject.with_block("mask", kind) for kind in masks), subject])
        tried = []
        for option, value in options.items():
            others = list(other_values(value, hints.get(option)))
            idle: bool | None = None  # until a value was taken; the first that changes something decides
            for other in others:
                taken = changes_nothing(subject.with_option(group, option, other), before)
                idle = idle if taken is None else taken
                if idle is False:
                    break
            tried += [option] * (idle is not None)
            if idle:
                raise Broken(
                    f"{group}.{option}={value}: set to {' or '.join(map(str, others))} it changes no weight, no logit, in training or"
                    " evaluation, and no loss: an option without effect is no option."
                )
        return f"Each of {', '.join(tried)} changes something." if tried else "None of its options takes another value."

    return check


def other_values(value: Any, hint: Any) -> Iterator[Any]:
    """Values an option might have instead."""
    literals = [word for part in (hint, *get_args(hint)) if get_origin(part) is Literal for word in get_args(part)]
    if isinstance(value, bool):
        yield not value
    elif literals:
        yield from (word for word in literals if word != value)
    elif value is None:
        yield from (2, 0.7)
    elif isinstance(value, int):
        yield from (2 * value + 1, value + 1)
    elif isinstance(value, float):
        yield from (0.5 * value + 0.25, 100 * value + 1)


LONG = 6
"""Times a sequence of subject.tokens: longer than a table of T5's that knows 16 distances one by one."""


def first_that_computes(subjects: Sequence[Subject]) -> tuple[Subject, list[Any]]:
    """The first of these whose decoder is not refused, and what it comes to; the last one raises what it raises."""
    for subject in subjects[:-1]:
        try:
            return subject, list(traces_of(subject))
        except Exception:  # a mask that its mixer does not admit
            continue
    return subjects[-1], list(traces_of(subjects[-1]))


def changes_nothing(subject: Subject, before: Sequence[Any]) -> bool | None:
    """Whether all that a decoder with this option comes to is as before, as far as need be looked; None where it is refused or cannot be."""
    try:
        return all(map(same, traces_of(subject), before))
    except Exception:  # a value that was only tried may be out of any range
        return None


@torch.no_grad()
def traces_of(subject: Subject) -> Iterator[Any]:
    """The names and shapes of all weights, what matrices start larger by and gains and scalars start at, the logits in training and in evaluation, and what training leaves behind.

    Evaluated is also a long sequence, for what acts from a distance. What costs least comes first, with how many more
    things of its kind there are.
    """
    begun, decoder = subject.begun_and_random()
    yield [(name, tuple(weight.shape)) for name, weight in decoder.named_parameters()]
    yield [(layer.residual.branch_gain, layer.residual.output_gain) for layer in decoder.layers]
    yield len(begun)
    yield from begun
    yield logits_of(decoder, subject.tokens)
    yield logits_of(decoder, subject.tokens.repeat(1, LONG))
    torch.manual_seed(SEED)
    starts = documents_of(decoder, subject.tokens)
    contexts = decoder.read(subject.tokens, prefix_of(decoder), document_starts=starts)
    trained = decoder.train().compute(subject.tokens, contexts)
    decoder.after_step(trained.counts)
    left = [trained.logits, *trained.losses.values(), *decoder.buffers()]
    yield len(left)
    yield from left


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


OF_KIND: Mapping[str, tuple[Check, ...]] = {
    "norm": (norm_alone, norm_in_float32, every_option_counts("norm")),
    "residual": (both_branches, stream_left, every_option_counts("residual")),
    "ffn": (each_position_alone, weights_declared("ffn"), gate_declared, every_option_counts("ffn")),
    "pos": (
        any_position,
        bias_declared,
        every_option_counts("pos", Prefix),
    ),  # some say where what follows a prefix stands
    "mask": (attends_to_itself, mask_declared, reach_declared, documents_apart, every_option_counts("mask")),
    "mixer": (kv_heads_divide, weights_declared("mixer"), what_it_honours_acts, every_option_counts("mixer")),
    "head": (logits_alone, every_option_counts("head")),
}
