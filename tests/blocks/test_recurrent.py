"""Recurrent and convolutional mixers: by chunks as token by token, against loops over tokens and against Hugging Face's classes."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import BATCH, D_MODEL, HEAD_DIM, HEADS, SEQ, build, draw_tokens, gradients, make, make_reading, randomise
from torch import nn
from transformers import Lfm2Config, Mamba2Config, Qwen3NextConfig
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

import archlab
from archlab.base.errors import UserError
from archlab.blocks.activations import Accounting
from archlab.blocks.cache import Cache
from archlab.blocks.recurrent import CHUNK, delta_rule, gated_sum, heads_of, unit
from archlab.blocks.roles import DECAYING
from archlab.blocks.taps import Taps
from archlab.cost.activations import layer_terms
from archlab.cost.measure import forward_flops_per_token
from archlab.model.init import Xavier

EXACT = dict(rtol=1e-9, atol=1e-9)  # float64 throughout, sums in another order
IN_FLOAT32 = 2e-5  # of the norm: Hugging Face computes these in float32, whatever it is given

MIXERS = ("linear", "retnet", "mamba2", "deltanet", "gdn", "shortconv")
each_mixer = pytest.mark.parametrize("name", MIXERS)

KEY_HEADS, KEY_DIM, VALUE_DIM = 3, 5, 4


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def mixer_of(name: str, **options) -> nn.Module:
    given = {"d_model": D_MODEL, "n_heads": HEADS, "head_dim": HEAD_DIM} | options
    given = {"d_model": D_MODEL} | options if name == "shortconv" else given
    return randomise(make("mixer", name)(**given)).double()


# ---------------------------------------------------------------- by chunks and token by token


def by_tokens(q, k, v, beta, log_decay, state):
    """Both recurrences, as they are written; without a beta nothing is taken away."""
    share, out = v.shape[1] // q.shape[1], []
    q, k = (x.repeat_interleave(share, dim=1) for x in (q, k))
    for t in range(v.shape[2]):
        key, value = k[:, :, t, :, None], v[:, :, t, None, :]
        state = log_decay[:, :, t, None, None].exp() * state
        if beta is not None:
            value = beta[:, :, t, None, None] * (value - (key * state).sum(2, keepdim=True))
        state = state + key * value
        out.append((q[:, :, t, :, None] * state).sum(2))
    return torch.stack(out, dim=2), state


def given(seq: int) -> dict[str, torch.Tensor]:
    """Keys of length 1, as the delta rule needs to stay bounded, and decays between 0.05 and 1."""
    return {
        "q": draw(BATCH, KEY_HEADS, seq, KEY_DIM),
        "k": unit(draw(BATCH, KEY_HEADS, seq, KEY_DIM)),
        "v": draw(BATCH, HEADS, seq, VALUE_DIM),
        "beta": torch.rand(BATCH, HEADS, seq, dtype=torch.float64),
        "log_decay": -3 * torch.rand(BATCH, HEADS, seq, dtype=torch.float64),
        "state": draw(BATCH, HEADS, KEY_DIM, VALUE_DIM),
    }


def both(tensors: dict[str, torch.Tensor], rule: bool, chunk: int):
    """Output and state by chunks, and by tokens."""
    by_chunks = delta_rule if rule else gated_sum
    names = ("q", "k", "v", "beta", "log_decay", "state") if rule else ("q", "k", "v", "log_decay", "state")
    ours = by_chunks(*(tensors[name] for name in names), chunk=chunk)
    return ours, by_tokens(**(tensors if rule else tensors | {"beta": None}))


@pytest.mark.parametrize("rule", [False, True], ids=["sum", "delta"])
@pytest.mark.parametrize(("seq", "chunk"), [(1, 4), (3, 4), (8, 4), (11, 4), (CHUNK + 3, CHUNK)])
def test_by_chunks_is_token_by_token(rule, seq, chunk):
    tensors = {name: x.requires_grad_() for name, x in given(seq).items()}
    ours, expected = both(tensors, rule, chunk)
    leaves = [x for name, x in tensors.items() if rule or name != "beta"]
    together = [torch.cat((out.flatten(), end.flatten())) for out, end in (ours, expected)]
    same(*together, leaves, **EXACT)


@pytest.mark.parametrize("rule", [False, True], ids=["sum", "delta"])
def test_decays_of_zero_and_one(rule):
    """exp(-inf) is 0: what came before is gone, the state too; log 1 is 0: all of it is there. Both with finite gradients."""
    tensors = given(11)
    tensors["log_decay"] = torch.zeros_like(tensors["log_decay"])
    tensors["log_decay"][:, ::2, [0, 5, 6]] = -torch.inf
    tensors["log_decay"][1, :, 8] = -800.0  # which underflows
    tensors = {name: x.requires_grad_() for name, x in tensors.items()}
    (ours, end), (expected, expected_end) = both(tensors, rule, 4)
    torch.testing.assert_close(ours, expected, **EXACT)
    torch.testing.assert_close(end, expected_end, **EXACT)
    leaves = [x for name, x in tensors.items() if rule or name != "beta"]
    torch.testing.assert_close(gradients(ours, leaves), gradients(expected, leaves), **EXACT)
    changed = {name: x.detach().clone() for name, x in tensors.items()}
    changed["state"] += 1
    changed["v"][:, :, :5] += 1
    (later, _), _ = both(changed, rule, 4)
    assert torch.equal(later[:, ::2, 5:], ours[:, ::2, 5:]) and not torch.equal(later[0, 1::2, 5:], ours[0, 1::2, 5:])


def test_equal_keys_of_full_strength_keep_the_last_value_alone():
    """The hardest case for solving within a chunk: powers of its matrix are as large as binomials of 63."""
    v, ones = torch.randn(1, 1, CHUNK, 3), torch.ones(1, 1, CHUNK)
    k = unit(torch.ones(1, 1, CHUNK, 2), eps=0.0)
    out, _ = delta_rule(k, k, v, ones, 0 * ones, torch.zeros(1, 1, 2, 3))
    torch.testing.assert_close(out, v, rtol=1e-4, atol=1e-4)  # float32


# ---------------------------------------------------------------- the mixers


def x_of(seq: int = SEQ) -> torch.Tensor:
    return draw(BATCH, seq, D_MODEL).requires_grad_()


def context(seq: int = SEQ, pos="none"):
    return make_reading(pos, "causal", seq)


def same(ours, expected, leaves, **tolerance) -> None:
    torch.testing.assert_close(ours, expected, **tolerance)
    torch.testing.assert_close(gradients(ours, leaves), gradients(expected, leaves), **tolerance)


def close(ours, theirs, leaf) -> None:
    """The same output and the same gradient, as far as float32 goes."""
    for one, other in ((ours, theirs), *[[gradients(out, [leaf])[0] for out in (ours, theirs)]]):
        assert (one - other).norm() < IN_FLOAT32 * other.norm()


def test_linear_attention_is_weights_that_sum_to_one():
    mixer, x = mixer_of("linear", eps=1e-30), x_of()
    q, k, v = (heads_of(proj(x), HEADS) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    scores = (torch.einsum("bhid,bhjd->bhij", F.elu(q) + 1, F.elu(k) + 1)).tril()
    read = (scores / scores.sum(-1, keepdim=True)) @ v
    expected = read.transpose(1, 2).flatten(2) @ mixer.out_proj.weight.T
    same(mixer(x, context()), expected, [x, *mixer.parameters()], **EXACT)


@pytest.mark.parametrize("pos", ["none", "rope"])
def test_retention_is_its_parallel_form_with_complex_rotations(pos):
    """(Q Theta)(K conj Theta)^T * D, torch's GroupNorm over heads, a swish gate."""
    mixer, x = mixer_of("retnet", eps=1e-5), x_of()
    q, k, v = (heads_of(proj(x), HEADS) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    n = torch.arange(SEQ, dtype=torch.float64)
    theta = torch.tensor([10000.0 ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)], dtype=torch.float64)
    turned = torch.polar(torch.ones(SEQ, HEAD_DIM // 2).double(), n[:, None] * theta * (pos == "rope"))
    q, k = (torch.complex(*u.chunk(2, dim=-1)) * turned for u in (q, k))
    gamma = 1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float64))
    decay = (gamma[:, None, None] ** (n[:, None] - n).clamp(min=0)).tril()
    read = ((q @ k.conj().mT).real / math.sqrt(HEAD_DIM) * decay) @ v
    normed = F.group_norm(read.transpose(1, 2).flatten(2).flatten(0, 1), HEADS, eps=1e-5).view(BATCH, SEQ, -1)
    expected = (F.silu(mixer.g_proj(x)) * normed) @ mixer.out_proj.weight.T
    tolerance = EXACT if pos == "none" else dict(rtol=1e-5, atol=1e-5)  # rope's angles are float32
    same(mixer(x, context(pos=pos)), expected, [x, *mixer.parameters()], **tolerance)


def convolved(x, weight):
    """Each channel's last tokens, times the weights, token by token."""
    size = weight.shape[-1]
    padded = F.pad(x, (0, 0, size - 1, 0))
    return sum(weight[:, 0, j] * padded[:, j : j + x.shape[1]] for j in range(size))


@pytest.mark.parametrize("name", ["deltanet", "gdn"])
def test_delta_rules_are_their_equations_token_by_token(name):
    """With two value heads to a key head where there may be."""
    sizes = dict(key_heads=KEY_HEADS, heads=HEADS, key_dim=5, value_dim=8) if name == "gdn" else {}
    mixer, x = mixer_of(name, **sizes), x_of()
    weights = zip((mixer.q_proj, mixer.k_proj, mixer.v_proj), mixer.conv.weight.split([p.out_features for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj)]), strict=True)  # fmt: skip
    q, k, v = (F.silu(convolved(proj(x), weight)) for proj, weight in weights)
    key_heads = sizes.get("key_heads", HEADS)
    q, k, v = heads_of(q, key_heads), heads_of(k, key_heads), heads_of(v, HEADS)
    q, k = (u / (u.square().sum(-1, keepdim=True) + 1e-6).sqrt() for u in (q, k))
    beta = torch.sigmoid(mixer.b_proj(x)).mT
    log_decay = torch.zeros_like(beta)
    if name == "gdn":
        log_decay = (-mixer.A_log.exp() * F.softplus(mixer.a_proj(x) + mixer.dt_bias)).mT
    zero = torch.zeros(BATCH, HEADS, q.shape[-1], v.shape[-1], dtype=torch.float64)
    read, _ = by_tokens(q / math.sqrt(q.shape[-1]), k, v, beta, log_decay, zero)
    eps = {"deltanet": 1e-5, "gdn": 1e-6}[name]
    normed = mixer.norm.gain * read / (read.square().mean(-1, keepdim=True) + eps).sqrt()
    joined = normed.transpose(1, 2).flatten(2) * (F.silu(mixer.g_proj(x)) if name == "gdn" else 1.0)
    same(mixer(x, context()), joined @ mixer.out_proj.weight.T, [x, *mixer.parameters()], **EXACT)


def test_mamba_is_its_recurrence_token_by_token():
    mixer, x = mixer_of("mamba2", expand=1, state_dim=5, n_groups=2, conv_size=3), x_of()
    width = HEADS * HEAD_DIM
    z, u, dt = mixer.in_proj(x).split((width, width + 20, HEADS), dim=-1)
    u = F.silu(convolved(u, mixer.conv.weight) + mixer.conv.bias)
    u, b, c = heads_of(u[..., :width], HEADS), heads_of(u[..., width : width + 10], 2), heads_of(u[..., width + 10 :], 2)  # fmt: skip
    dt = F.softplus(dt + mixer.dt_bias).mT
    zero = torch.zeros(BATCH, HEADS, 5, HEAD_DIM, dtype=torch.float64)
    read, _ = by_tokens(c, b, dt[..., None] * u, None, -mixer.A_log.exp()[:, None] * dt, zero)
    gated = (read + mixer.D[:, None, None] * u).transpose(1, 2).flatten(2) * F.silu(z)
    gated = gated.unflatten(-1, (2, -1))
    normed = mixer.norm.gain * (gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2)
    same(mixer(x, context()), normed @ mixer.out_proj.weight.T, [x, *mixer.parameters()], **EXACT)


# ---------------------------------------------------------------- Hugging Face's classes, weights copied

LONG = CHUNK + 7


@torch.no_grad()
def copied(theirs: nn.Module, pairs: dict[str, torch.Tensor]) -> nn.Module:
    state = theirs.state_dict()
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in pairs.items()}
    theirs.load_state_dict(pairs)
    return theirs.double().eval()


def test_mamba_is_hugging_faces():
    mixer = mixer_of("mamba2", head_dim=8, expand=2, state_dim=6, n_groups=3)
    config = Mamba2Config(
        num_heads=2 * HEADS, head_dim=8, hidden_size=D_MODEL, state_size=6, n_groups=3, conv_kernel=4, num_hidden_layers=1,
        expand=2, layer_norm_epsilon=1e-5, chunk_size=16, use_bias=False, use_conv_bias=True,
    )  # fmt: skip
    ours = mixer.state_dict()
    names = {"conv.weight": "conv1d.weight", "conv.bias": "conv1d.bias", "norm.gain": "norm.weight"}
    theirs = copied(Mamba2Mixer(config, 0), {names.get(name, name): value for name, value in ours.items()})
    x = x_of(LONG)
    close(mixer(x, context(LONG)), theirs(x), x)


@pytest.mark.parametrize("share", [1, 2])
def test_gated_deltanet_is_qwen3_nexts(share):
    """Their projections are interleaved by key head: q, k, and the values, gates, strengths and decays of its heads."""
    heads, key_dim, value_dim = share * KEY_HEADS, 5, 8
    mixer = mixer_of("gdn", key_heads=KEY_HEADS, heads=heads, key_dim=key_dim, value_dim=value_dim)
    config = Qwen3NextConfig(
        hidden_size=D_MODEL, linear_num_value_heads=heads, linear_num_key_heads=KEY_HEADS, linear_key_head_dim=key_dim,
        linear_value_head_dim=value_dim, linear_conv_kernel_dim=4, rms_norm_eps=1e-6, num_hidden_layers=1, hidden_act="silu",
    )  # fmt: skip

    def interleaved(*projections: str) -> torch.Tensor:
        parts = [getattr(mixer, f"{name}_proj").weight.unflatten(0, (KEY_HEADS, -1)) for name in projections]
        return torch.cat(parts, dim=1).flatten(0, 1)

    theirs = copied(
        Qwen3NextGatedDeltaNet(config, 0),
        {
            "in_proj_qkvz.weight": interleaved("q", "k", "v", "g"), "in_proj_ba.weight": interleaved("b", "a"),
            "conv1d.weight": mixer.conv.weight, "norm.weight": mixer.norm.gain, "out_proj.weight": mixer.out_proj.weight,
            "A_log": mixer.A_log, "dt_bias": mixer.dt_bias,
        },
    )  # fmt: skip
    x = x_of(LONG)
    close(mixer(x, context(LONG)), theirs(x), x)


@pytest.mark.parametrize("bias", [False, True])
def test_the_short_convolution_is_lfm2s(bias):
    mixer = mixer_of("shortconv", conv_size=4, bias=bias)
    config = Lfm2Config(hidden_size=D_MODEL, conv_L_cache=4, conv_bias=bias, num_hidden_layers=1, layer_types=["conv"])
    theirs = copied(Lfm2ShortConv(config, 0), dict(mixer.state_dict()))
    for seq in (2, SEQ):  # a length below the convolution's too
        x = x_of(seq)
        same(mixer(x, context(seq)), theirs(x), [x], **EXACT)


# ---------------------------------------------------------------- decoding


@each_mixer
@torch.no_grad()
def test_decoding_across_chunks_is_the_parallel_forward(name):
    """In float64; pieces shorter than the convolution, a chunk and more, single tokens; and nothing leaks back."""
    decoder = build(mixer=name, n_layers=2).eval()
    tokens = draw_tokens(seq=LONG)
    whole, cache, start, pieces = decoder(tokens), Cache(), 0, []
    for size in (2, CHUNK + 1, 1, 1, LONG - CHUNK - 5):
        pieces.append(decoder(tokens[:, start : start + size], cache=cache))
        start += size
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **EXACT)
    tokens[:, CHUNK + 2 :] = (tokens[:, CHUNK + 2 :] + 1) % 61
    torch.testing.assert_close(decoder(tokens)[:, : CHUNK + 2], whole[:, : CHUNK + 2], rtol=0, atol=1e-12)


@each_mixer
def test_states_are_float32_in_a_half_precision_model(name):
    decoder, cache = build(torch.bfloat16, mixer=name, n_layers=1).eval(), Cache()
    decoder(draw_tokens(), cache=cache)
    mixer = decoder.layers[0].mixer
    (state,) = cache.states[mixer.conv if name == "shortconv" else mixer]
    assert state.dtype == (torch.bfloat16 if name == "shortconv" else torch.float32)


# ---------------------------------------------------------------- what they say of themselves


def test_initial_values_are_those_of_the_released_code():
    """Drawn by each weight's name, and none of them decays."""
    for name, low in (("mamba2", 1.0), ("gdn", 0.0)):
        decoder = build(torch.float32, fresh=True, mixer=make("mixer", name), pos="none", n_heads=40, head_dim=2)
        Xavier()(decoder, seed=1)
        mixer = decoder.layers[1].mixer
        rates, steps = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
        assert rates.min() >= low and rates.max() <= 16 + 1e-4 and rates.std() > 3  # 15 / sqrt(12) = 4.3
        assert steps.min() >= 0.001 * (1 - 1e-3) and steps.max() <= 0.1 * (1 + 1e-3)
        assert steps.log().std() > 0.9  # log(100) / sqrt(12) = 1.3
        assert abs(torch.corrcoef(torch.stack((rates, steps.log())))[0, 1]) < 0.5  # 3 standard errors of 40 draws
        assert mixer.conv.weight.abs().max() <= 0.5 and mixer.conv.weight.abs().mean() > 0.2  # 1 / sqrt(4), half of it
        roles = {weight.name: weight.role for weight in mixer.weights()}
        kept = {"A_log", "dt_bias", "conv.weight", "norm.gain"} | ({"D", "conv.bias"} if name == "mamba2" else set())
        assert {one for one, role in roles.items() if role not in DECAYING} == kept
        other = decoder.layers[0].mixer
        assert not torch.equal(other.A_log, mixer.A_log) and not torch.equal(other.conv.weight, mixer.conv.weight)


def test_products_are_counted_and_go_by_length_not_by_its_square():
    sizes = ("size=nano", "size.n_layers=1", "size.vocab_size=2", "mixer=gdn")
    model = archlab.build(*sizes).to("meta")
    at = {seq: forward_flops_per_token(model, seq) for seq in (CHUNK, 2 * CHUNK, 8 * CHUNK)}
    assert at[CHUNK] == at[2 * CHUNK] == at[8 * CHUNK]
    h, d = 4, 16  # size=nano
    rule = 2 * h * (2 * CHUNK * d + CHUNK * d + 3 * d * d) + h * (CHUNK - 1) * 2 * d  # products, then what is solved
    rest = 2 * (64 * (5 * h * d + 2 * h) + 3 * h * d * 4 + 3 * 64 * 176 + 64 * 2)  # projections, convolution, ffn, head
    assert at[CHUNK] == rule + rest


@pytest.mark.parametrize("name", ["mamba2", "gdn"])
def test_what_is_kept_for_the_backward_pass_is_what_autograd_saves(name):
    """On the CPU, at a length that the measurement on the meta device did not use."""
    model = archlab.build("size=nano", "size.n_layers=1", f"mixer={name}")
    seq, mixer = 5 * CHUNK, model.layers[0].mixer
    (measured,) = (term for term in layer_terms(model, 0, Accounting(e=4)) if "as measured" in term.what and "mixer" in term.what)  # fmt: skip
    (reading,) = model.read(draw_tokens(batch=1, seq=seq))
    x = torch.randn(1, seq, 64, requires_grad=True)
    not_counted = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters())}
    saved: dict[int, int] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = mixer(x, reading)
    assert kept.requires_grad and measured.bytes(1, seq) == pytest.approx(sum(saved.values()), rel=1e-6)


@each_mixer
def test_is_drawn_by_its_own_steps(name):
    """Every part of it that has weights is in the drawing, or is spoken of; without a softmax."""
    mixer = build(mixer=name, n_layers=1).layers[0].mixer
    position = make("pos", "rope" if name == "retnet" else "none")(d_model=D_MODEL, n_heads=HEADS, head_dim=HEAD_DIM)
    steps = mixer.steps(position, make("mask", "causal")())
    assert all(number < place + 1 for place, step in enumerate(steps) for number in step.reads)
    shown = " ".join(step.label for step in steps)
    assert all(child in shown for child, part in mixer.named_children() if isinstance(part, nn.Linear))
    assert ("conv" in shown) == hasattr(mixer, "conv") and "softmax" not in shown


def test_states_can_be_looked_at():
    mixer, x = mixer_of("gdn"), x_of()
    taps, cache_of = Taps(mixer.taps), context()
    mixer(x, cache_of.watched_by(taps))
    decays = (-mixer.A_log.exp() * F.softplus(mixer.a_proj(x) + mixer.dt_bias)).exp()
    assert taps.seen["mean_decay"].item() == pytest.approx(decays.mean().item(), rel=1e-9)
    assert taps.seen["state_rms"] > 0


# ---------------------------------------------------------------- positions and masks


def schemes(*words: str) -> list[str]:
    model = archlab.build("size=nano", "size.n_layers=4", *words)
    return [type(model.pairs[pair][0]).__name__ for pair in model.pair_of_layer]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mixer=gdn"], ["NoPosition"] * 4),
        (["mixer=retnet"], ["RoPE"] * 4),
        (["mixer=mamba2", "pos=sinusoidal"], ["SinusoidalPosition"] * 4),
        (["mixer=gdn", "layers[3::4].mixer=mha"], ["NoPosition"] * 3 + ["RoPE"]),
        (["layers[::2].mixer=shortconv"], ["NoPosition", "RoPE"] * 2),
        (["mixer=gdn", "layers[3::4].mixer=mha", "pos=alibi"], ["NoPosition"] * 3 + ["ALiBi"]),
        (["mixer=gdn", "layers[1:3].mixer=mha", "layers[1].pos=alibi"], ["NoPosition", "ALiBi", "RoPE", "NoPosition"]),
        (["mixer=gdn", "layers[3].mixer=mha", "layers[3].pos=rope"], ["NoPosition"] * 3 + ["RoPE"]),
    ],
)
def test_positions_act_where_a_mixer_honours_them(words, expected):
    assert schemes(*words) == expected


NONE_TO_ACT_ON = "pos: RoPE rotates queries and keys, and GatedDeltaNet has none that it could act on; use pos=none"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mixer=gdn", "pos=rope"], NONE_TO_ACT_ON),
        (["mixer=gdn", "pos.base=500"], NONE_TO_ACT_ON),
        (["mixer=gdn", "layers[3].mixer=mha", "layers[0].pos=rope"], NONE_TO_ACT_ON),
        (["mixer=mamba2", "mask=prefix", "prefix=[0.2,0.5]"], "mask: there is no such thing as Mamba2 under a Prefix mask"),
        (["mixer=shortconv", "mask=full"], "mask: there is no such thing as GatedShortConv under a Full mask"),
        (["mixer=gdn", "mixer.key_heads=3", "mixer.heads=4"], "mixer.heads=4: is no multiple of the 3 key heads"),
        (["mixer=mamba2", "mixer.n_groups=3"], "mixer.n_groups=3: does not divide the 8 heads"),
    ],
)  # fmt: skip
def test_one_line_says_what_there_is_no_such_thing_as(words, line):
    with pytest.raises(UserError) as refusal:
        archlab.compose("size=nano", "size.n_layers=4", *words)
    assert line in str(refusal.value) and "\n" not in str(refusal.value)
