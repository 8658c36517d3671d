"""verify: every option of conf keeps its contract, and every planted bug is told by the promise it breaks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cover import COVER
from hydra.utils import get_class
from oracles import BLOCKS, composed, every_option

from archlab.cli import main as cli
from archlab.config.compose import compose
from archlab.contract import decoder, kinds
from archlab.contract import verify as verifying
from archlab.contract.finding import findings
from archlab.contract.subject import SEQ, SMALL, Subject
from archlab.contract.verify import verify

ROOT = Path(__file__).parents[2]

BUGS = '''
import torch
from torch import Tensor, nn
from archlab.blocks.attention import MultiHead
from archlab.blocks.contracts import FeedForward, Head, Mask, Norm, Position, Residual


class Gain(Norm):
    """Divides by the root mean square, and multiplies by a gain."""
    def __init__(self, d_model: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))
    def forward(self, x):
        return self.gain * (x.float() * (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()).type_as(x)

class OverSequence(Gain):
    """Averages over the sequence and does not say so."""
    def forward(self, x):
        return self.gain * x / (x.square().mean((1, 2), keepdim=True) + 1e-6).sqrt()

class OverBatch(Gain):
    def forward(self, x):
        return self.gain * x / (x.square().mean((0, 2), keepdim=True) + 1e-6).sqrt()

class SaysSequence(Gain):
    reduces = ("seq",)

class Fixed(Gain):
    """Of one width only."""
    def __init__(self, d_model: int):
        super().__init__(48)

class InHalf(Gain):
    def forward(self, x):
        return self.gain * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

class Widens(Gain):
    def forward(self, x):
        return super().forward(x).float()

class Unused(Gain):
    def __init__(self, d_model: int):
        super().__init__(d_model)
        self.extra = nn.Parameter(torch.ones(d_model))

class Counts(Gain):
    """Computes something else each time."""
    def __init__(self, d_model: int):
        super().__init__(d_model)
        self.calls = 0
    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + self.calls / 100)

class Peeks(Gain):
    """Asks for a value, which neither the meta device nor a graph has."""
    def forward(self, x):
        return super().forward(x) if x.abs().max().item() > 0 else x

class Fails(Gain):
    def forward(self, x):
        raise RuntimeError("no such luck")

class Shared(FeedForward):
    table = nn.Linear(48, 88, bias=False)
    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.up_proj, self.down_proj = Shared.table, nn.Linear(d_ff, d_model, bias=False)
    def forward(self, x):
        return self.down_proj(self.up_proj(x).relu())

class Plain(FeedForward):
    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(d_model, d_ff, bias=False), nn.Linear(d_ff, d_model, bias=False)
    def forward(self, x):
        return self.down_proj(self.up_proj(x).tanh())

class SaysGated(Plain):
    gated = True

class Mixes(Plain):
    """Adds what the position before came to."""
    def forward(self, x):
        y = super().forward(x)
        return y + torch.cat((y[:, :1] * 0, y[:, :-1]), dim=1)

class ByLength(Plain):
    def forward(self, x):
        return super().forward(x) * x.shape[1]

class Crowd(Plain):
    """Takes the batch's mean away."""
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean(0, keepdim=True)

class Within(Plain):
    """Computes by a function that was made with its weights."""
    def __init__(self, d_model: int, d_ff: int):
        super().__init__(d_model, d_ff)
        self.compute = lambda x: self.down_proj(self.up_proj(x).tanh())
    def forward(self, x):
        return self.compute(x)

class Noisy(Plain):
    """Draws, in evaluation too."""
    def forward(self, x):
        return super().forward(x) + torch.rand_like(x)

class Chaotic(Plain):
    """Turns rounding into something else altogether."""
    def forward(self, x):
        return super().forward((1000 * x).sin())

class Backwards(Residual):
    def __init__(self, norm, n_layers: int):
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(2))
    def forward(self, x, branches):
        for norm, branch in zip(self.norms, reversed(branches)):
            x = x + branch(norm(x))
        return x

class Unnormed(Residual):
    needs_final_norm = False
    def __init__(self, norm, n_layers: int):
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(2))
    def forward(self, x, branches):
        for norm, branch in zip(self.norms, branches):
            x = x + branch(norm(x))
        return x

class ByIndex(Position):
    """Turns by what place a token has in this call, not by its position."""
    def __init__(self, d_model: int, n_heads: int, head_dim: int):
        super().__init__()
    def embed(self, x, positions):
        return x + torch.arange(x.shape[1], dtype=x.dtype, device=x.device).view(1, -1, 1) / 10

class Silent(Position):
    """Has a bias and does not say so."""
    def __init__(self, d_model: int, n_heads: int, head_dim: int):
        super().__init__()
    def bias(self, query, key):
        return -(query - key).abs().float().unsqueeze(1) / 10

class Table(Position):
    """Ends, and does not say where."""
    def __init__(self, d_model: int, n_heads: int, head_dim: int):
        super().__init__()
        self.table = nn.Embedding(50, d_model)
    def embed(self, x, positions):
        return x + self.table(positions)

class HalfBias(Position):
    biases_scores = True
    def __init__(self, d_model: int, n_heads: int, head_dim: int):
        super().__init__()
    def bias(self, query, key):
        return (-(query - key).abs().half() / 10).unsqueeze(1)

class Ahead(Mask):
    """One too far."""
    def __init__(self):
        super().__init__()
    def can_attend(self, query, key, prefix_len):
        return key <= query + 1
    def may_score(self, seq_len, prefix_len):
        return torch.ones(len(prefix_len), seq_len, dtype=torch.bool)

class Blind(Mask):
    def can_attend(self, query, key, prefix_len):
        return (key < query) | (query == 0) & (key == 0)

class SaysCausal(Mask):
    causal = True
    def can_attend(self, query, key, prefix_len):
        return (key <= query) & (query - key < 3)

class SecretPrefix(Mask):
    """Reads a prefix and does not say so."""
    def can_attend(self, query, key, prefix_len):
        return (key <= query) | (key < prefix_len)

class ShortReach(Mask):
    def can_attend(self, query, key, prefix_len):
        return key <= query
    def reach(self, queries, seq_len):
        return slice(max(0, queries.start - 5), queries.stop)

class Floats(Head):
    """Logits in float32 whatever it is given."""
    def __init__(self, d_model: int, vocab_size: int, norm):
        super().__init__(d_model, vocab_size, bias=False)
    def forward(self, x):
        return nn.functional.linear(x, self.weight).float()

class Looks(Head):
    """Adds the logits of the last position."""
    def __init__(self, d_model: int, vocab_size: int, norm):
        super().__init__(d_model, vocab_size, bias=False)
    def forward(self, x):
        y = nn.functional.linear(x, self.weight)
        return y + y[:, -1:]
'''

PLANTED = [
    ("norm", "OverSequence", "No leak from the future", "The prediction at position 0 depends on the token at position 1"),
    ("norm", "OverBatch", "Sequences apart", "depends on the others beside it in the batch"),
    ("norm", "SaysSequence", "No leak from the future", "SaysSequence says, by its `reduces`, that it sees the future, and no prediction"),
    ("norm", "InHalf", "Statistics in float32", "take the statistics of x.float()"),
    ("norm", "Widens", "Statistics in float32", "A float16 input comes out in torch.float32"),
    ("norm", "Unused", "Gradients", "no gradient reaches layers.0.residual.norms.0.extra"),
    ("norm", "Counts", "Saved and loaded", "the same decoder, asked twice, computes something else"),
    ("norm", "Peeks", "Shapes without memory", "It raised"),
    ("norm", "Fails", "Shape and dtype", "It raised RuntimeError: no such luck"),
    ("ffn", "Within", "Copied", "A copy of it computes with weights of the original"),
    ("ffn", "Shared", "No shared parameters", "layers.0.ffn.up_proj.weight and layers.1.ffn.up_proj.weight are one and the same"),
    ("ffn", "SaysGated", "`gated`", "`gated` is True and it has 2 times d_model x d_ff weights"),
    ("ffn", "Mixes", "Each position alone", "What it makes of position 2 depends on positions [1, 2]"),
    ("ffn", "ByLength", "Beginnings alike", "The first 3 of 7 tokens are predicted otherwise where there are no more"),
    ("ffn", "Mixes", "Decoding equals forward", "the logits at position 3 are"),
    ("residual", "Backwards", "Both branches, the mixer first", "The branches were called as ffn, mixer"),
    ("residual", "Unnormed", "`needs_final_norm`", "nothing norms it before the head"),
    ("pos", "ByIndex", "Decoding equals forward", "the logits at position 3 are"),
    ("pos", "ByIndex", "Left padding", "With padding on its left a sequence is predicted otherwise"),
    ("pos", "Silent", "Bias in float32, and declared", "`biases_scores` is False and its bias is not 0"),
    ("pos", "Table", "Any position, or a limit", "It raised IndexError"),
    ("mask", "Ahead", "No leak from the future", "The prediction at position 0 depends on the token at position 1"),
    ("mask", "Ahead", "`causal`, `bidirectional`, `uses_prefix`", "Query 0 attends to key 1, which comes after it, without a prefix"),
    ("ffn", "Crowd", "Each position alone", "What it makes of one sequence depends on the others beside it"),
    ("mask", "Blind", "Every token attends to itself", "Some token may not attend to itself"),
    ("mask", "SaysCausal", "`causal`, `bidirectional`, `uses_prefix`", "`causal` is True, and can_attend says False"),
    ("mask", "ShortReach", "`reach`", "leaves out key 0, which query 8 may attend to"),
    ("norm", "Fixed", "Shape of any width", "It raised RuntimeError"),
    ("ffn", "Noisy", "Recomputed activations", "which runs each layer twice, the gradients are others"),
    ("ffn", "Noisy", "Saved and loaded", "a twin with its state dict computes something else"),
    ("ffn", "Chaotic", "Mixed precision", "Under bfloat16 autocast logits are"),
    ("pos", "HalfBias", "Bias in float32, and declared", "Its bias is in torch.float16"),
    ("mask", "SecretPrefix", "`causal`, `bidirectional`, `uses_prefix`", "`uses_prefix` is False, and can_attend says True"),
    ("head", "Floats", "Shape and dtype", "in float32; they should be"),
    ("head", "Looks", "Each position alone", "The logits of a position depend on other positions"),
    ("head", "Looks", "No leak from the future", "The prediction at position 0 depends on the token at position 1"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Blocks of a user's own, each with a bug, and their names."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "planted_bugs.py").write_text(BUGS)
    for group, name in {(group, name) for group, name, *_ in PLANTED} | {("norm", "Gain"), ("ffn", "Plain")}:
        (folder / "conf" / group).mkdir(parents=True, exist_ok=True)
        (folder / "conf" / group / f"{name}.yaml").write_text(f"_target_: planted_bugs.{name}\n_partial_: true\n")
    sys.path.insert(0, str(folder))
    yield folder / "conf"
    sys.path.remove(str(folder))


TWO_LAYERS = ("size.n_layers=2",)
"""Half as many as the verb takes: one of each kind where layers differ by turns."""

SMALLER = tuple(word for word in SMALL if not word.startswith("size.n_layers")) + TWO_LAYERS


def broken(found):
    return [finding for finding in found if finding.verdict == "broken"]


@pytest.fixture
def without_compiling(monkeypatch):
    monkeypatch.setattr(verifying, "CHECKS", WITHOUT_COMPILING)


WITHOUT_COMPILING = tuple(check for check in decoder.CHECKS if check is not decoder.compiled)


def first_of_each_class():
    """Options of one class with another activation, or with fields that another has too, are slow: tests/blocks holds each of them to the same promises."""
    same = {("ffn", name) for name in ("gelu_tanh", "relu", "relu2", "silu")}  # Plain, as gelu
    same |= {("ffn", name) for name in ("bilinear", "geglu", "geglu_tanh", "glu", "reglu")}  # Gated, as swiglu
    same |= {("norm", "sequence"), ("mixer", "mqa")}  # as instance and gqa
    return [pytest.param(*one, marks=[pytest.mark.slow] * (one in same)) for one in every_option(*BLOCKS)]


@pytest.mark.parametrize(("group", "name"), first_of_each_class())
def test_every_option_keeps_the_promises_of_its_kind(group, name):
    subject = Subject(compose(*SMALLER, f"{group}={name}"))
    with torch.random.fork_rng(devices=[]):
        assert broken(findings(kinds.OF_KIND[group], subject)) == []


@pytest.mark.parametrize("words", COVER, ids=" ".join)
def test_a_decoder_of_every_option_keeps_the_promises_of_decoders(words):
    with torch.random.fork_rng(devices=[]):
        assert broken(findings(WITHOUT_COMPILING, Subject(compose(*SMALLER, *words)))) == []


@pytest.mark.slow  # the same promises, of an option among the default blocks: the two tests above and tests/blocks hold them
@pytest.mark.parametrize(("group", "name"), every_option(*BLOCKS))
def test_every_option_keeps_every_promise(group, name, without_compiling):
    assert broken(verify(compose(*SMALLER, f"{group}={name}"), [group])) == []


@pytest.fixture
def nothing_but_the_promise(monkeypatch, promise):
    """Nothing else is looked at: what a bug does to other promises is nobody's question here."""

    def among(checks):
        return tuple(check for check in checks if (check.__doc__ or "").strip().rstrip(".") == promise)

    monkeypatch.setattr(verifying, "CHECKS", among(decoder.CHECKS))
    monkeypatch.setattr(verifying, "OF_KIND", {group: among(checks) for group, checks in kinds.OF_KIND.items()})


def in_a_process(*words, folder):
    """The verb in a process of its own: the types that tests check at every call are not for torch.compile to follow."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "archlab", "verify", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), every_option(*BLOCKS))
def test_every_option_compiles_as_one_graph(group, name, tmp_path):
    told = in_a_process(f"{group}={name}", folder=tmp_path)
    assert told.returncode == 0 and "torch.compile takes the whole decoder as one graph" in told.stdout, told


@pytest.mark.slow
def test_every_promise_is_kept_where_layers_are_looped_and_skipped(tmp_path):
    told = in_a_process("mixer=mha", "loop.times=2", "loop.layers=1:3", "skips=unet", folder=tmp_path)
    assert told.returncode == 0 and "0 are broken" in told.stdout, told
    assert "torch.compile takes the whole decoder as one graph" in told.stdout, told


@pytest.mark.parametrize(("group", "name", "promise", "told"), PLANTED, ids=lambda value: str(value)[:24])
def test_a_planted_bug_is_told_by_the_promise_it_breaks(group, name, promise, told, folder, nothing_but_the_promise):
    subject = Subject(composed(*SMALLER)).with_block(group, get_class(f"planted_bugs.{name}"))
    (finding,) = (finding for finding in verify(subject.cfg, [group]) if finding.promise == promise)
    assert finding.verdict == "broken" and told in finding.sentence


@pytest.mark.parametrize("option", ["norm=Gain", "ffn=Plain"])
def test_a_block_of_ones_own_without_a_bug_keeps_every_promise(option, folder, without_compiling):
    group = option.partition("=")[0]
    assert broken(verify(compose(*SMALLER, option, config_dir=str(folder)), [group])) == []


def test_a_block_without_options_is_said_to_have_none():
    found = verify(composed(*SMALLER, "mask=full"), ["mask"])
    assert next(one.sentence for one in found if one.promise == "Every option counts") == "It has no options."


def test_verifying_leaves_the_generator_alone(without_compiling):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert list(verify(composed(*SMALLER, "norm=layer"), ["norm"]))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["norm=Gain"], 0, "norm=Gain: 16 promises hold, 0 are broken."),
        (["norm=OverSequence", "mask=prefix"], 1, "are broken."),
        (["mask=full"], 0, "mask=full: 14 promises hold, 0 are broken."),
        ([], 2, "verify: no block is named; give one of norm, residual"),
        (["size=small"], 2, "verify: no block is named"),
        (
            ["layers[::2].mask=window"],
            2,
            "layers[::2].mask=window: is a rule for some layers, and verify checks a block in all of them; write mask=...",
        ),
        (["norm"], 2, "norm: verify takes overrides, name=value"),
        (["norm=rmz"], 2, "norm=rmz: no such option; did you mean rms?"),
        (["preset=gpt2"], 2, "preset=gpt2: verify checks blocks in a small model"),
        (["norm=rms", "-m"], 2, "--multirun: verify takes no such flag; it takes --config-dir"),
    ],
)
def test_the_verb(words, status, told, folder, capsys, monkeypatch, without_compiling):
    monkeypatch.setenv("COLUMNS", "120")
    left = 0
    try:
        cli.main(["verify", *words, "--config-dir", str(folder)])
    except SystemExit as leaving:
        left = leaving.code
    out, err = capsys.readouterr()
    assert left == status and told in (out if status < 2 else err)
    assert status < 2 or err.count("\n") == 1


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_leak_of_the_very_next_token_is_found_and_named(ahead):
    embeddings = torch.randn(2, SEQ, 5, requires_grad=True)
    everywhere = torch.ones(2, SEQ, dtype=torch.bool)
    assert decoder.first_leak(embeddings.cumsum(dim=1), embeddings, everywhere) is None
    leaking = embeddings + torch.cat((embeddings[:, ahead:], torch.zeros(2, ahead, 5)), dim=1)
    assert decoder.first_leak(leaking, embeddings, everywhere) == (0, ahead)
    unscored = everywhere.clone()
    unscored[:, :2] = False
    assert decoder.first_leak(leaking, embeddings, unscored) == (2, 2 + ahead)
