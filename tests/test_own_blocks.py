"""Three blocks of shapes that are nobody's here, in a folder of the user's own: numbers, and every verb.

The blocks are those of experiments/own_blocks, each one class and one yaml: a mixer without scores, a network with a
router and a loss of its own, a residual scheme of two streams.
"""

import importlib
import json
import math
import signal
import sys
from pathlib import Path

import killed
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from oracles import BATCH, D_FF, D_MODEL, HEAD_DIM, HEADS, SEQ, draw_tokens, gradients, make_reading, randomise

import archlab
from archlab.base.errors import UserError
from archlab.blocks.activations import Accounting
from archlab.blocks.cache import Cache
from archlab.blocks.mask import Prefix
from archlab.blocks.roles import Role
from archlab.blocks.taps import Taps
from archlab.cli import main as cli
from archlab.contract import decoder
from archlab.contract import verify as verifying
from archlab.contract.kinds import every_option_counts
from archlab.contract.subject import SMALL, Subject
from archlab.contract.verify import verify
from archlab.cost.activations import layer_terms
from archlab.cost.measure import decode_state, forward_flops_per_token
from archlab.runs import lab
from archlab.train import observers
from archlab.train.optimizer import AdamW
from archlab.train.settings import TrainSettings

OWN = Path(__file__).parents[1] / "experiments" / "own_blocks"
EXACT = dict(rtol=1e-9, atol=1e-9)  # float64 throughout
NANO = (
    "size=nano",
    "size.d_model=36",
    "size.n_heads=3",
    "train.train_len=22",
    "train.batch_size=3",
    "train.steps=6",
    "eval.tokens=88",
    "eval.lengths=[1,2]",
)
BLOCKS = {"mixer": ("mixer=my_linear", "pos=none"), "ffn": ("ffn=two_experts",), "residual": ("residual=two_streams",)}
each_block = pytest.mark.parametrize("words", BLOCKS.values(), ids=BLOCKS)


@pytest.fixture(autouse=True)
def where_the_blocks_are(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(OWN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")


def block(module: str, name: str, **sizes):
    return randomise(getattr(importlib.import_module(module), name)(**sizes)).double()


def build(*words: str, **changes):
    return randomise(archlab.build(*SMALL, *words, config_dir=str(OWN / "my"))).double()


# ---------------------------------------------------------------- numbers


def test_linear_attention_is_its_formula_position_by_position():
    mixer = block("linear_attention", "LinearAttention", d_model=D_MODEL, n_heads=HEADS, head_dim=HEAD_DIM)
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64, requires_grad=True)
    phi = lambda u: torch.where(u > 0, u + 1, u.exp())  # noqa: E731
    read = torch.zeros(BATCH, SEQ, HEADS * HEAD_DIM, dtype=torch.float64)
    for b in range(BATCH):
        for h in range(HEADS):
            of_head = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
            q, k, v = (x[b] @ proj.weight[of_head].T for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
            for i in range(SEQ):
                weights = torch.stack([phi(q[i]) @ phi(k[j]) for j in range(i + 1)])
                read[b, i, of_head] = (weights[:, None] * v[: i + 1]).sum(0) / (weights.sum() + 1e-6)
    out, expected = mixer(x, make_reading("none", "causal", SEQ)), read @ mixer.out_proj.weight.T
    torch.testing.assert_close(out, expected, **EXACT)
    leaves = [x, *mixer.parameters()]
    torch.testing.assert_close(gradients(out, leaves), gradients(expected, leaves), **EXACT)


def test_its_state_is_as_large_however_long_the_sequence_is():
    model, tokens = build("mixer=my_linear", "pos=none").eval(), draw_tokens(seq=SEQ)
    cache = Cache()
    sizes = []
    for position in range(SEQ):
        model(tokens[:, position : position + 1], cache=cache)
        sizes.append(sum(kept.numel() for state in cache.states.values() for kept in state))
    assert sizes == [4 * BATCH * HEADS * HEAD_DIM * (HEAD_DIM + 1)] * SEQ  # four layers
    with torch.device("meta"):
        state = decode_state(
            archlab.build(*SMALL, "mixer=my_linear", "pos=none", config_dir=str(OWN / "my")).to("meta")
        )
    assert (state.per_token, state.fixed) == (0, 4 * HEADS * HEAD_DIM * (HEAD_DIM + 1))


def test_layers_with_and_without_scores_take_turns_and_decode_together():
    model = build("mixer=my_linear", "pos=none", "layers[1::2].mixer=mha", "layers[1::2].pos=rope").eval()
    tokens, cache = draw_tokens(seq=SEQ), Cache()
    pieces = [model(tokens[:, i : i + 1], cache=cache) for i in range(SEQ)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), **EXACT)
    output = model.compute(tokens, model.read(tokens), model.taps)
    assert [sorted(seen) for seen in output.taps] == [
        ["activation_rms"],
        ["activation_rms", "attention_entropy", "max_score"],
    ] * 2
    state = decode_state(model.to("meta"))
    assert (state.per_token, state.fixed) == (2 * 2 * HEADS * HEAD_DIM, 2 * HEADS * HEAD_DIM * (HEAD_DIM + 1))


def test_two_experts_are_their_formula_token_by_token():
    ffn = block("two_experts", "TwoExperts", d_model=D_MODEL, d_ff=D_FF, balance=0.3)
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64, requires_grad=True)
    expected, first, means = torch.zeros_like(x), 0, torch.zeros(2)
    for b in range(BATCH):
        for i in range(SEQ):
            p = (ffn.router.weight @ x[b, i]).float().softmax(0)
            picked = int(p.argmax())
            first, means = first + (picked == 0), means + p
            expected[b, i] = p[picked].double() * (ffn.down[picked] @ (ffn.up[picked] @ x[b, i]).clamp(min=0))
    taps = Taps(ffn.taps)
    out = ffn(x, taps)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)  # the router's softmax is float32
    n = BATCH * SEQ
    balance = 0.3 * 2 * (first / n * means[0] / n + (1 - first / n) * means[1] / n)
    assert taps.losses["balance"].item() == pytest.approx(balance.item(), rel=1e-5)
    assert taps.seen["share_of_first"].item() == pytest.approx(first / n, rel=1e-6)


def test_the_routers_loss_is_the_sum_over_the_layers_and_is_trained_on():
    model, tokens = build("ffn=two_experts"), draw_tokens(seq=SEQ)
    output = model.compute(tokens, model.read(tokens), model.taps)
    alone = []
    for layer in model.layers:
        layer.ffn.register_forward_hook(lambda module, given, out: alone.append(given[0].detach()))
    model(tokens)
    by_hand = 0.0
    for layer, x in zip(model.layers, list(alone), strict=True):
        taps = Taps()
        layer.ffn(x, taps)
        by_hand += taps.losses["balance"].item()
    assert output.losses["balance"].item() == pytest.approx(by_hand, rel=1e-6)
    (gradient,) = torch.autograd.grad(output.losses["balance"], model.layers[0].ffn.router.weight)
    assert gradient.any()


def test_two_streams_are_their_formula():
    scheme = block("two_streams", "TwoStreams", norm=lambda: torch.nn.Identity(), n_layers=3)
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)
    streams = [x, x]
    branches = (torch.tanh, torch.sin)
    for i, branch in enumerate(branches):
        added = branch(scheme.read[i, 0] * streams[0] + scheme.read[i, 1] * streams[1])
        kept = [sum(scheme.keep[i, t, s] * streams[s] for s in range(2)) for t in range(2)]
        streams = [kept[t] + scheme.write[i, t] * added for t in range(2)]
    ours = scheme.leave(scheme(scheme.enter(x), branches))
    torch.testing.assert_close(ours, streams[0] + streams[1], **EXACT)


def test_streams_start_as_they_were_made_and_do_not_decay():
    model = archlab.build(*NANO, "residual=two_streams", config_dir=str(OWN / "my"))
    scheme = model.layers[0].residual
    assert torch.equal(scheme.keep, torch.eye(2).repeat(2, 1, 1)) and torch.equal(scheme.write, torch.ones(2, 2))
    roles = {weight.name: weight.role for weight in model.weights() if ".residual." in weight.name}
    assert {role for name, role in roles.items() if "norms" not in name} == {Role.SCALAR}
    settings = TrainSettings(**OmegaConf.to_container(archlab.compose().train) | {"weight_decay": 0.3})
    decaying = {
        id(weight)
        for group in AdamW()(model, settings).param_groups
        if group["weight_decay"]
        for weight in group["params"]
    }
    assert id(scheme.keep) not in decaying and id(model.layers[0].mixer.q_proj.weight) in decaying


def test_roles_are_what_the_blocks_say():
    ffn = block("two_experts", "TwoExperts", d_model=D_MODEL, d_ff=D_FF)
    seen = {
        weight.name: (weight.role, weight.writes_to_stream, weight.fan_in, weight.fan_out) for weight in ffn.weights()
    }
    assert seen == {
        "router.weight": (Role.ROUTER, False, D_MODEL, 2),
        "up": (Role.EXPERT, False, D_MODEL, D_FF),
        "down": (Role.EXPERT, True, D_FF, D_MODEL),
    }


def test_experts_start_as_wide_as_a_matrix_of_their_own_would():
    model = archlab.build(
        "size.d_model=96",
        "size.d_ff=200",
        "size.n_layers=1",
        "size.n_heads=3",
        "ffn=two_experts",
        config_dir=str(OWN / "my"),
    )
    for weight in (model.layers[0].ffn.up, model.layers[0].ffn.down):
        # a standard error of the spread of n draws is sigma / sqrt(2 n); five of them
        assert weight.std().item() == pytest.approx((2 / 296) ** 0.5, rel=5 / (2 * weight.numel()) ** 0.5)


# ---------------------------------------------------------------- costs


ONE_LAYER = (*(word for word in SMALL if not word.startswith("size.n_layers")), "size.n_layers=1")


def test_flops_are_those_of_the_products_that_are_made():
    words = ("mixer=my_linear", "pos=none", "ffn=two_experts")
    model = archlab.build(*ONE_LAYER, f"size.d_ff={D_FF}", *words, config_dir=str(OWN / "my")).to("meta")
    seq, width = 31, HEADS * HEAD_DIM
    products = 4 * D_MODEL * width + 2 * D_MODEL + 2 * 2 * D_MODEL * D_FF + D_MODEL * 61  # the last is the head's
    sums = HEADS * (seq * HEAD_DIM + seq * (HEAD_DIM + 1) + 2 * HEAD_DIM * (HEAD_DIM + 1))
    assert forward_flops_per_token(model, seq) == 2 * (products + sums)


@pytest.mark.parametrize(("part", "words"), [("mixer", BLOCKS["mixer"]), ("ffn", BLOCKS["ffn"])])
def test_what_is_kept_for_the_backward_pass_is_what_autograd_saves(part, words):
    """On the CPU, at a length that the measurement on the meta device did not use."""
    model = archlab.build(*ONE_LAYER, *words, config_dir=str(OWN / "my"))
    seq, layer = 40, model.layers[0]
    (measured,) = (
        term
        for term in layer_terms(model, 0, Accounting(e=4))
        if term.what == f"{part}: what autograd keeps, as measured"
    )
    (context,) = model.read(draw_tokens(batch=1, seq=seq))
    x = torch.randn(1, seq, D_MODEL, requires_grad=True)
    not_counted = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters())}
    saved: dict[int, int] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = layer.mixer(x, context) if part == "mixer" else layer.ffn(x)
    assert kept.requires_grad and measured.bytes(1, seq) == pytest.approx(sum(saved.values()), rel=1e-6)


# ---------------------------------------------------------------- every verb


def run(*arguments: str) -> int:
    try:
        cli.main([*arguments, "--config-dir", str(OWN / "my")])
    except SystemExit as leaving:
        return leaving.code
    return 0


@pytest.fixture
def without_compiling(monkeypatch):
    monkeypatch.setattr(verifying, "CHECKS", tuple(check for check in decoder.CHECKS if check is not decoder.compiled))


@each_block
def test_keeps_every_promise(words, without_compiling):
    small = (*(word for word in SMALL if not word.startswith("size.n_layers")), "size.n_layers=2")
    cfg = archlab.compose(*small, *words, config_dir=str(OWN / "my"))
    found = list(verify(cfg, [words[0].partition("=")[0]]))
    assert [finding for finding in found if finding.verdict == "broken"] == [] and len(found) > 10


@each_block
def test_show_draw_diff_and_preflight(words, capsys):
    assert run("show", *NANO, *words) == 0
    shown = capsys.readouterr().out
    assert "memory to train" in shown and "Token budget" in shown
    assert ("recurrent state" in shown) == ("mixer=my_linear" in words)
    assert run("draw", *NANO, *words, "output=mine.svg") == 0
    drawing = Path("mine.svg").read_text()
    assert ("softmax" in drawing) == (words[0] != "mixer=my_linear")
    assert run("diff", " ".join(NANO), " ".join((*NANO, *words))) == 0
    assert words[0].partition("=")[2] in capsys.readouterr().out
    assert run("preflight", *NANO, *words, "preflight.steps=1", "preflight.depths=null") == 0
    assert "At initialisation" in capsys.readouterr().out


def trained(folder: Path, *words: str) -> Path:
    """The directory of the one run there."""
    assert run(*NANO, *words, "seed=3", f"output={folder}", "device=cpu", "plots=false") == 0
    (summary,) = folder.glob("2*/summary.json")
    return summary.parent


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run with the default blocks."""
    return trained(tmp_path_factory.mktemp("plain"))


@each_block
def test_run_generate_and_compare(words, plain, tmp_path, capsys):
    mine = trained(tmp_path / "runs", *words)
    out = capsys.readouterr().out
    summary = json.loads((mine / "summary.json").read_text())
    assert math.isfinite(summary["val_loss"]) and summary["status"] == "completed"
    group, _, option = words[0].partition("=")
    assert summary["choices"][group] == option
    layers = [
        record["layers"]
        for record in map(json.loads, (mine / "metrics.jsonl").read_text().splitlines())
        if "layers" in record
    ]
    assert ("max_score" in layers[0][0]) == (words[0] != "mixer=my_linear")
    assert ("share_of_first" in layers[0][0]) == (words[0] == "ffn=two_experts")
    assert ("none: no mixer here has a softmax" in out) == (words[0] == "mixer=my_linear")
    assert run("generate", str(mine), "prompt=In the beginning", "max_new_tokens=3") == 0
    assert run("compare", str(mine), str(plain)) == 0
    assert words[0].partition("=")[2] in capsys.readouterr().out


# ---------------------------------------------------------------- what there is no such thing as


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mixer=my_linear", "pos=rope"], "pos: RoPE rotates queries and keys, and LinearAttention has none that it could act on; use pos=none, a scheme that adds to the embeddings such as pos=sinusoidal, or another mixer"),
        (["mixer=my_linear", "pos=alibi"], "pos: ALiBi adds to scores, and LinearAttention has none that it could act on; use pos=none, a scheme that adds to the embeddings such as pos=sinusoidal, or another mixer"),
        (["mixer=my_linear", "pos=none", "mask=window"], "mask: there is no such thing as LinearAttention under a Window mask: it is causal by nature and has no scores to mask; use mask=causal, or another mixer"),
        (["mixer=my_linear", "pos=none", "mask=prefix"], "mask: there is no such thing as LinearAttention under a Prefix mask: it is causal by nature and has no scores to mask; use mask=causal, or another mixer"),
        (["mixer=my_linear", "pos=none", "size.n_kv_heads=1"], "size.n_kv_heads=1: mixer=my_linear with size.n_heads=6 has 6 of them; leave it null, or use mixer=gqa with a divisor of size.n_heads"),
        (["mixer=my_linear", "pos=none", "kernel=dense"], "kernel=dense: is how softmax attention is computed, and mixer=my_linear has none, so it would change nothing; leave it out"),
        (["ffn=two_experts", "residual=sub"], "ffn: SubNorm norms what each branch projects back to the stream, and TwoExperts takes no inner_norm; use another residual scheme, or give its constructor one"),
        (["residual=two_streams", "layers[1].residual=pre"], "layers: residual schemes of 2 and 1 streams follow each other, and a stream cannot change its width between two layers; use schemes of as many streams in all of them"),
    ],
)  # fmt: skip
def test_one_line_says_what_there_is_no_such_thing_as(words, line):
    with pytest.raises(UserError) as refusal:
        archlab.compose(*SMALL, *words, config_dir=str(OWN / "my"))
    assert str(refusal.value) == line


def test_blocks_of_ones_own_in_some_layers():
    model = build("mixer=my_linear", "pos=none", "layers[::3].mixer=mqa", "layers[1].ffn=two_experts")
    assert [type(layer.mixer).__name__ for layer in model.layers] == [
        "MultiQuery",
        "LinearAttention",
        "LinearAttention",
        "MultiQuery",
    ]
    assert F.softmax(model(draw_tokens(seq=SEQ)), dim=-1).isfinite().all() and sys.path


# What a residual scheme or a mixer has is weights, as what is resumed in tests/runs; a router has a loss of its own.
@pytest.mark.parametrize(
    "words", [BLOCKS["ffn"], *(pytest.param(BLOCKS[group], marks=pytest.mark.slow) for group in ("mixer", "residual"))]
)
def test_a_run_that_was_killed_is_resumed_as_if_it_never_was(words, tmp_path, monkeypatch):
    own = OWN / "my"

    def begin(folder: Path) -> None:
        asked = [*killed.WORDS, *words, f"output={folder}"]
        lab.run(archlab.compose(*asked, config_dir=str(own)), asked, plots=False)

    begin(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(observers.Checkpoints, "due", killed.at_call(13, observers.Checkpoints.due))
        assert killed.in_a_child(lambda: begin(tmp_path / "cut")) == -signal.SIGKILL
    cut = killed.the_run(tmp_path / "cut")
    with pytest.raises(UserError, match="if it is your own, give the folder by --config-dir"):
        lab.resume(cut, plots=False)
    lab.resume(cut, plots=False, own=own)
    assert killed.all_of(cut) == killed.all_of(killed.the_run(tmp_path / "whole"))


def test_positions_are_verified_under_a_mixer_that_admits_no_prefix():
    cfg = archlab.compose(*SMALL, "pos=sinusoidal", "mixer=my_linear", config_dir=str(OWN / "my"))
    assert every_option_counts("pos", Prefix)(Subject(cfg)) == "Each of base changes something."


def test_how_scores_are_kept_is_no_question_where_there_are_none():
    cfg = ("size=nano", "mixer=my_linear", "pos=none")
    for word in ("memory.attention=flash", "memory.checkpointing=selective"):
        with pytest.raises(UserError, match=f"{word}: mixer=my_linear keeps nothing for each query and key"):
            archlab.compose(*cfg, word, config_dir=str(OWN / "my"))
    bill = str(archlab.memory(*cfg, config_dir=str(OWN / "my")))
    assert "attention" not in bill and "checkpointing=full" in bill
