"""A step's program, packed and compiled, beside each member alone: what tests/train/test_program.py asks.

Compiled cases are asked by way of tests/compiler_process.py.
"""

import copy
import sys
from pathlib import Path

import torch

import archlab
from archlab.config.compose import in_turn
from archlab.data.batch import Batch
from archlab.train.objective import Program, placed

SMALL = (
    "size.d_model=24", "size.n_layers=1", "size.n_heads=4", "size.head_dim=8", "size.vocab_size=17",
    "train.train_len=9", "allow_leak=true",
)  # fmt: skip
MEMBERS, SEQ = 3, 9
SAME = 1e-9
"""Of what is compared, in float64: the pack adds in another order, through two layers of sums."""

INTERLEAVED = "next pos.layout=interleaved mask=prefix prefix=[0.25,0.75] residual=deep norm=layer mixer=gqa ffn=gelu"
"""A case that holds much of what can fail; RoPE by halves is compiled where training is.

That its forward pass is captured whole, which test_compile.py asks for, takes half the time, and fails for nearly all that fails.
"""

OWN = str(Path(__file__).parents[1] / "experiments" / "own_blocks" / "my")
sys.path.append(str(Path(OWN).parent))


def batch_of(objective: str) -> Batch:
    """Sequences of the kind each objective makes: next tokens after a prefix or in documents, given targets, two positions."""
    draws = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 17, (2, SEQ + 1), generator=draws)
    scored = torch.rand(2, SEQ, generator=draws) < 0.7
    if objective == "next":
        return Batch(tokens, torch.tensor([2, 5]), scored)
    if objective == "documents":
        return Batch(tokens, None, scored, document_starts=torch.tensor([[0] * 2 + [2] * 7, [0] * 5 + [5] * 4]))
    targets = torch.randint(0, 17, (2, SEQ), generator=draws)
    positions = torch.stack((torch.arange(SEQ).clamp(max=4), (torch.arange(SEQ) - 4).clamp(min=0))).expand(2, 2, SEQ)
    return Batch(tokens[:, :-1], torch.tensor([4, 4]), scored, targets, positions if objective == "blank" else None)


def worst_gap(words: list[str], objective: str = "next", backend: str | None = None, packed: bool = True) -> float:
    """The largest gap, of what it is compared with, between members of a pack and each member alone, eager.

    Losses, what layers let be seen, and the gradient of every weight, float64. Without `packed` one member alone
    is compiled instead.
    """
    cfg, members = in_turn(*SMALL, *words, config_dir=OWN), []
    for seed in range(MEMBERS if packed else 1):
        cfg.seed = seed
        members.append(archlab.build(cfg).double())
    inputs = placed(members[0], batch_of(objective))
    alone = [of_member(member, inputs) for member in members]
    together = (
        in_pack(members, inputs, backend) if packed else [of_member(member, inputs, backend) for member in members]
    )
    return max(gap(one[name], other[name]) for one, other in zip(together, alone, strict=True) for name in other)


def of_member(decoder, inputs, backend: str | None = None) -> dict[str, torch.Tensor]:
    decoder.zero_grad()
    program = Program(decoder, decoder.taps)
    parts, taps = (torch.compile(program, backend=backend, fullgraph=True) if backend else program)(*inputs)
    minimised(parts).backward()
    gradients = {name: weight.grad.clone() for name, weight in program.named_parameters()}
    return {"loss": parts.total.detach(), **seen(taps), **gradients}


def in_pack(members, inputs, backend: str | None) -> list[dict[str, torch.Tensor]]:
    base = copy.deepcopy(members[0])  # whose own weights are of no account
    base.for_packs()
    program, programs = Program(base, base.taps), [Program(member) for member in members]
    weights = {
        name: torch.stack([one.get_parameter(name).detach() for one in programs]).requires_grad_()
        for name, _ in program.named_parameters()
    }
    buffers = {name: torch.stack([one.get_buffer(name) for one in programs]) for name, _ in program.named_buffers()}

    def of_one(stacked):
        return torch.func.functional_call(program, stacked, inputs)

    def pack(stacked):
        return torch.vmap(of_one, randomness="different")(stacked)

    parts, taps = (torch.compile(pack, backend=backend, fullgraph=True) if backend else pack)({**weights, **buffers})
    minimised(parts).sum().backward()
    of_all = {"loss": parts.total.detach(), **seen(taps), **{name: weight.grad for name, weight in weights.items()}}
    return [{name: value[i] for name, value in of_all.items()} for i in range(len(members))]


def minimised(parts) -> torch.Tensor:
    return (parts.total + sum(parts.terms.values())) / parts.n_scored + sum(parts.added.values())


def seen(taps) -> dict[str, torch.Tensor]:
    return {f"{depth}/{name}": value for depth, layer in enumerate(taps) for name, value in layer.items()}


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of the larger of the two, or of one where both are as good as nothing."""
    return float((one - other).abs().max() / max(float(other.abs().max()), 1e-6))


def told(backend: str, how: str, *cases: str) -> list[dict[str, object]]:
    """Of each case, an objective and words of the command line, the worst gap as a `pack` or `alone`, or what torch raised."""
    seen: list[dict[str, object]] = []
    for case in cases:
        objective, *words = case.split()
        torch._dynamo.reset()
        try:
            seen.append({"case": case, "gap": worst_gap(words, objective, backend, packed=how == "pack")})
        except Exception as error:
            seen.append({"case": case, "error": " ".join(str(error).split())[:300]})
    return seen
