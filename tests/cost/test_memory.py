"""What training takes in memory: the note's figures, and every coefficient against what autograd really keeps.

The layers below are written with torch's own modules on the meta device; what they keep is read off autograd, each
storage once, without parameters and without the norms' statistics (one number a position, which the count leaves out).
Torch's eager dropout keeps its mask in the activations' dtype here, so dropout is a function that keeps it in a byte.
"""

from dataclasses import replace
from functools import cache, partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from oracles import composed, every_pair_once, options
from torch import nn

import archlab
from archlab.base.errors import UserError
from archlab.blocks.activations import Accounting
from archlab.config.assemble import assemble_without_weights
from archlab.config.groups import made, memory_settings
from archlab.cost import bill
from archlab.cost.activations import layer_terms, outer_terms
from archlab.cost.describe import count_parameters, parameters_by_part
from archlab.cost.estimate import activation_bytes, estimate, growth, largest_batch, remedies
from archlab.cost.settings import MemorySettings, bytes_of
from archlab.runs.assembled import settings_of

CHATGLM = (
    "size.d_model=4096", "size.n_layers=28", "size.n_heads=32", "size.d_ff=16384", "size.vocab_size=130528", "ffn=gelu_tanh",
    "ffn.bias=true", "norm=layer", "residual=deep_glm", "embed.tied=true", "embed.norm=true", "mixer.qkv_bias=true",
    "mixer.out_bias=true",
)  # fmt: skip
TEXTBOOK = MemorySettings(dropout=True)


@cache
def on_meta(*overrides):
    return assemble_without_weights(composed(*overrides))


@pytest.fixture(scope="module")
def chatglm():
    return on_meta(*CHATGLM)


# --- what autograd keeps ------------------------------------------------------------------------


class Kept:
    """Bytes of what autograd saves, each storage once, without parameters and statistics."""

    def __init__(self, model: nn.Module):
        self.own = {p.untyped_storage()._cdata for p in model.parameters()}
        self.sizes: dict[int, int] = {}
        self.alive: list[torch.Tensor] = []

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        statistics = tensor.dim() > 2 and tensor.shape[-1] == 1
        if storage._cdata not in self.own and not statistics and tensor.dim() > 1:
            self.alive.append(tensor)
            self.sizes[storage._cdata] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


class OneByteDropout(torch.autograd.Function):
    """x * mask / (1 - p), with the mask kept as Bool."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(torch.empty(x.shape, dtype=torch.bool, device=x.device))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, gradient):
        return torch.empty_like(gradient)


ACTIVATIONS = {
    "gelu": (F.gelu, False), "relu": (F.relu, False), "silu": (F.silu, False), "relu2": (lambda x: F.relu(x).square(), False),
    "swiglu": (F.silu, True), "geglu": (F.gelu, True),
    "geglu_tanh": (partial(F.gelu, approximate="tanh"), True), "reglu": (F.relu, True), "glu": (torch.sigmoid, True), "bilinear": (lambda x: x, True),
}  # fmt: skip


class PlainLayer(nn.Module):
    """A pre-norm layer as a textbook writes it, in half precision."""

    def __init__(
        self, d, heads, kv_heads, d_ff, ffn="gelu", dropout=True, norm=nn.LayerNorm, softcap=None, dtype=torch.float16
    ):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.softcap = heads, kv_heads, d // heads, softcap
        self.function, gated = ACTIVATIONS[ffn]
        self.drop = OneByteDropout.apply if dropout else (lambda x: x)
        with torch.device("meta"):
            kv = kv_heads * self.head_dim
            self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
                nn.Linear(d, d),
                nn.Linear(d, kv),
                nn.Linear(d, kv),
                nn.Linear(d, d),
            )
            self.gate_proj = nn.Linear(d, d_ff) if gated else None
            self.up_proj, self.down_proj = nn.Linear(d, d_ff), nn.Linear(d_ff, d)
            self.norms = nn.ModuleList(norm(d) for _ in range(2))
        self.to(dtype)

    def split(self, x, heads):
        batch, seq, _ = x.shape
        return x.view(batch, seq, heads, self.head_dim).transpose(1, 2)

    def attend(self, x):
        q, k, v = (
            self.split(self.q_proj(x), self.heads),
            self.split(self.k_proj(x), self.kv_heads),
            self.split(self.v_proj(x), self.kv_heads),
        )
        k, v = (
            y.repeat_interleave(self.heads // self.kv_heads, dim=1) if self.heads != self.kv_heads else y
            for y in (k, v)
        )
        scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        read = self.drop(scores.softmax(dim=-1)) @ v
        return self.drop(self.out_proj(read.transpose(1, 2).reshape(x.shape)))

    def feed(self, x):
        hidden = (
            self.function(self.up_proj(x))
            if self.gate_proj is None
            else self.function(self.gate_proj(x)) * self.up_proj(x)
        )
        return self.drop(self.down_proj(hidden))

    def forward(self, x):
        x = x + self.attend(self.norms[0](x))
        return x + self.feed(self.norms[1](x))


def saved_by(layer, batch, seq, d, dtype=torch.float16) -> int:
    x = torch.empty(batch, seq, d, device="meta", dtype=dtype, requires_grad=True)
    with Kept(layer) as kept:
        layer(x)
    return kept.bytes


def counted(decoder, rules, batch, seq) -> float:
    return sum(term.bytes(batch, seq) for term in layer_terms(decoder, 0, rules))


SIZES = [(2, 7, 48, 6, 88), (3, 31, 40, 5, 120), (1, 64, 96, 8, 256)]
"""batch, seq, d_model, heads, d_ff"""


@pytest.mark.parametrize(("batch", "seq", "d", "heads"), [(2, 7, 48, 6), (3, 31, 40, 5), (1, 64, 96, 8)])
def test_a_textbook_layer_keeps_34_and_5(batch, seq, d, heads):
    """s b h (34 + 5 a s / h), by autograd and by our terms, with not a byte between them."""
    expected = seq * batch * (34 * d + 5 * heads * seq)
    assert saved_by(PlainLayer(d, heads, heads, 4 * d), batch, seq, d) == expected
    ours = on_meta(f"size.d_model={d}", f"size.n_heads={heads}", "ffn=gelu", "norm=layer")
    assert counted(ours, Accounting(2, dropout=True), batch, seq) == expected


def test_the_34_is_11_and_19_and_4_and_the_5_is_2_and_1_and_2():
    decoder = on_meta("size.d_model=48", "size.n_heads=6", "ffn=gelu", "norm=layer")
    by_part, pairs = {"attention": 0.0, "ffn": 0.0, "norms": 0.0}, []
    for term in layer_terms(decoder, 0, Accounting(2, dropout=True)):
        by_part[term.what.partition(":")[0]] += term.token / 48
        pairs += [term.pair / 6] if term.pair else []
    assert by_part == {"attention": 11, "ffn": 19, "norms": 4}
    assert sorted(pairs) == [1, 2, 2]


@pytest.mark.parametrize(("ffn", "dropout", "sizes"), every_pair_once(list(product(ACTIVATIONS, (True, False), SIZES))))
def test_every_network_keeps_what_autograd_keeps(ffn, dropout, sizes):
    batch, seq, d, heads, d_ff = sizes
    ours = on_meta(f"size.d_model={d}", f"size.n_heads={heads}", f"size.d_ff={d_ff}", f"ffn={ffn}")
    theirs = PlainLayer(d, heads, heads, d_ff, ffn, dropout)
    assert counted(ours, Accounting(2, dropout=dropout), batch, seq) == saved_by(theirs, batch, seq, d)


@pytest.mark.parametrize(("weights", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_every_attention_keeps_what_autograd_keeps(kv_heads, softcap, weights, dtype):
    attn = ("mixer=gqa", f"size.n_kv_heads={kv_heads}") if kv_heads < 6 else ("mixer=mha",)
    cap = (f"mixer.softcap={softcap}",) if softcap else ()
    ours = on_meta("size.d_model=48", "size.n_heads=6", "size.d_ff=88", "ffn=gelu", *attn, *cap)
    rules = Accounting(MemorySettings(weights=weights).bytes_per_number, dropout=True)
    theirs = PlainLayer(48, 6, kv_heads, 88, softcap=softcap, dtype=dtype)
    assert counted(ours, rules, 2, 7) == saved_by(theirs, 2, 7, 48, dtype)


@pytest.mark.parametrize("kv_heads", [2, 6])
def test_flash_attention_keeps_its_inputs_its_output_and_a_sum_for_each_head(kv_heads):
    """On the CPU, whose fused kernel keeps the same tensors as the GPU's; the kernel may keep the sums as (batch, seq, heads)."""
    batch, seq, heads, head_dim = 3, 9, 6, 8
    q = torch.randn(batch, heads, seq, head_dim, dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(batch, kv_heads, seq, head_dim, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    del out
    decoder = on_meta("size.d_model=48", "size.n_heads=6", "mixer=gqa", f"size.n_kv_heads={kv_heads}")
    terms = {term.what: term.bytes(batch, seq) for term in layer_terms(decoder, 0, Accounting(2, flash=True))}
    ours = sum(
        terms[f"attention: {what}"]
        for what in ("queries, keys, values", "sums of exponentials", "what the heads gather")
    )
    assert ours == sum(sizes.values())


@pytest.mark.parametrize(
    ("residual", "norms", "inputs"),
    [
        ("pre", 2, 2),
        ("post", 2, 2),
        ("deep", 2, 2),
        ("branch_norm", 2, 2),
        ("sandwich", 4, 2),
        ("parallel", 1, 1),
        ("none", 2, 2),
    ],
)
def test_norms_and_branches_are_counted_where_they_stand(residual, norms, inputs):
    d = 48
    decoder = on_meta(f"size.d_model={d}", "size.n_heads=6", f"residual={residual}")
    terms = {term.what: term.token for term in layer_terms(decoder, 0, Accounting(2))}
    assert terms["norms: input"] == norms * 2 * d
    assert terms["attention: input"] + terms.get("ffn: input", 0) == inputs * 2 * d


def test_without_norms_none_are_counted():
    terms = layer_terms(on_meta("norm=none"), 0, Accounting(2))
    assert sum(term.token for term in terms if term.what.startswith("norms")) == 0


def test_what_is_kept_outside_the_layers_is_what_autograd_keeps():
    batch, seq, d, vocab = 3, 11, 48, 61
    decoder = on_meta(
        f"size.d_model={d}",
        "size.n_heads=6",
        f"size.vocab_size={vocab}",
        "norm=layer",
        "embed.norm=true",
        "data=copy",
        "data.symbols=20",
    )
    with torch.device("meta"):
        table, embed_norm, norm, head = (
            nn.Embedding(vocab, d),
            nn.LayerNorm(d),
            nn.LayerNorm(d),
            nn.Linear(d, vocab, bias=False),
        )
    parts = nn.ModuleList((table, embed_norm, norm, head)).half()
    tokens = torch.zeros(batch, seq, dtype=torch.long, device="meta")
    with Kept(parts) as kept:
        logits = head(norm(OneByteDropout.apply(embed_norm(table(tokens)))))
        logits.float().log_softmax(dim=-1)
    kept.sizes.pop(tokens.untyped_storage()._cdata, None)
    terms = list(outer_terms(decoder, Accounting(2, dropout=True)))
    assert sum(term.bytes(batch, seq) for term in terms) == kept.bytes


# --- whole models -------------------------------------------------------------------------------


WHOLE = [
    *([f"residual={name}"] for name in options("residual")),
    *([f"norm={name}", "mask=full", "residual=sandwich"] for name in options("norm") if name != "none"),
    ["norm=none"],
    ["norm=instance", "mask=full", "mixer=gqa", "ffn=gelu"],
    ["residual=hyper", "residual.dynamic=false"],
    ["residual=sub", "mixer=gqa", "ffn=gelu"],
    *([f"ffn={name}", "dropout=0"] for name in options("ffn") if name != "none"),
    *(
        [f"mixer.{option}"]
        for option in (
            "gate=elementwise",
            "conv=4",
            "qk_norm=head",
            "qk_factors=true",
            "clip=1",
            "weighting=scalable_softmax",
            "value_residual=true",
        )
    ),
    ["embed.width=16"],
    ["embed.width=16", "mtp.form=chained", "mtp.tokens=3"],
]


@pytest.mark.parametrize("words", WHOLE, ids=" ".join)
def test_a_whole_model_keeps_what_autograd_keeps(words):
    """Within a tenth: tables that all layers share, and what a scheme makes of its weights alone, are not counted; and the
    several streams that the first layer is given are one in memory, which is a tenth of two layers' residual=hyper."""
    batch, seq = 2, 64
    decoder = archlab.build(composed("size=nano", *words))
    tokens = torch.randint(256, (batch, seq))
    with Kept(decoder) as kept:
        output = decoder.compute(tokens, decoder.read(tokens), ahead=decoder.ahead)
        for logits in (output.logits, *output.further):
            logits.log_softmax(dim=-1)
    kept.sizes.pop(tokens.untyped_storage()._cdata, None)
    settings = MemorySettings(batch=batch, weights="fp32", attention="flash")
    assert sum(activation_bytes(decoder, settings, seq)) == pytest.approx(kept.bytes, rel=0.1)
    assert archlab.memory(composed("size=nano", *words))


WRITTEN_OUT = [
    ("mixer.sinks=true",),
    ("mixer.weighting=sigmoid",),
    ("mixer.forget=true",),
    ("mixer.softcap=30", "size.n_heads=8"),
    ("kernel=dense",),
    ("kernel=dense", "mixer=diff"),
    ("kernel=dense", "mixer=mla"),
]


@pytest.mark.parametrize("words", WRITTEN_OUT, ids=" ".join)
def test_no_fused_kernel_is_counted_where_there_is_none(words):
    """Heads of 8 features are too narrow for the one that soft-caps."""
    decoder, flash = on_meta("size=nano", *words), MemorySettings(attention="flash")
    assert activation_bytes(decoder, flash, 64) == activation_bytes(decoder, MemorySettings(), 64)
    assert growth(decoder, flash, 64)[0] > 2
    assert not any("flash" in way for way in bill.otherwise(decoder, MemorySettings(), 64))


def test_of_layers_with_and_without_sinks_the_latter_are_fused():
    words = ("size=nano", "layers[1::2].mixer.sinks=true")
    unfused, flash = (memory_of_layers(*words, f"memory.attention={how}") for how in ("unfused", "flash"))
    plain, both = (memory_of_layers("size=nano", f"memory.attention={how}") for how in ("unfused", "flash"))
    assert unfused - flash == (plain - both) / 2
    said = archlab.memory(*words, "memory.attention=flash").bill.assumptions
    assert "where no fused kernel computes it, it keeps its weights for every query and key" in " ".join(said)


def memory_of_layers(*words):
    return archlab.memory(*words).to_pandas()["activations of the layers"]


@pytest.mark.parametrize(("words", "wide"), [((), 64), (("residual=hyper",), 4 * 64), (("residual=mhc", "residual.streams=3"), 3 * 64), (("embed.width=16",), 64)])  # fmt: skip
def test_a_layer_that_is_computed_again_keeps_all_that_it_is_given(words, wide):
    settings = MemorySettings(batch=3, weights="fp32", checkpointing="full")
    two, three = (activation_bytes(on_meta("size=nano", f"size.n_layers={n}", *words), settings, 8)[0] for n in (2, 3))
    assert three - two == 3 * 8 * 4 * wide


# --- LoRA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("out_proj", "down_proj"), ("up_proj",)])
@pytest.mark.parametrize("ffn", ["gelu", "relu", "swiglu", "bilinear"])
def test_frozen_matrices_do_not_keep_their_inputs(ffn, targets):
    """Adapters B(A(x)) beside frozen matrices, by autograd; the stream itself has a gradient, as from the second layer on."""
    batch, seq, d, heads, d_ff, rank = 2, 7, 48, 6, 88, 3
    theirs = PlainLayer(d, heads, heads, d_ff, ffn).requires_grad_(False)
    for name in targets:
        setattr(theirs, name, Adapted(getattr(theirs, name), rank))
    with Kept(theirs) as kept:
        theirs(torch.empty(batch, seq, d, device="meta", dtype=torch.float16, requires_grad=True))
    settings = MemorySettings(batch=batch, weights="fp16", dropout=True, lora=rank, lora_targets=targets)
    decoder = on_meta(
        f"size.d_model={d}", f"size.n_heads={heads}", f"size.d_ff={d_ff}", f"ffn={ffn}", "size.n_layers=1"
    )
    assert activation_bytes(decoder, settings, seq)[0] == kept.bytes


class Adapted(nn.Module):
    def __init__(self, frozen: nn.Linear, rank: int):
        super().__init__()
        self.frozen = frozen
        with torch.device("meta"):
            self.a, self.b = (
                nn.Linear(i, o, bias=False).half() for i, o in ((frozen.in_features, rank), (rank, frozen.out_features))
            )

    def forward(self, x):
        return self.frozen(x) + self.b(self.a(x))


def test_lora_of_gpt_j_has_the_published_number_of_parameters():
    """r = 8 on queries and values: 3,670,016, and the optimiser keeps 12 bytes for each of them alone."""
    decoder = on_meta(
        "size.d_model=4096",
        "size.n_layers=28",
        "size.n_heads=16",
        "size.d_ff=16384",
        "size.vocab_size=50400",
        "ffn=gelu",
        "residual=parallel",
    )
    memory = estimate(decoder, MemorySettings(lora=8), 16)
    assert memory.trainable == 3_670_016
    assert (memory.optimizer, memory.gradients) == (12 * 3_670_016, 2 * 3_670_016)
    assert memory.weights == 2 * (count_parameters(decoder) + 3_670_016)


# --- the note -----------------------------------------------------------------------------------


def test_the_notes_six_billion_parameters_take_12_and_12_and_72_and_27_gigabytes(chatglm):
    assert count_parameters(chatglm) == 6_173_286_400
    memory = estimate(chatglm, TEXTBOOK, 2048)
    assert memory.weights == memory.gradients == 2 * 6_173_286_400  # 12.35e9
    assert memory.optimizer == 12 * 6_173_286_400  # 74.08e9
    assert memory.activations == 28 * 2048 * (34 * 4096 + 5 * 32 * 2048) == 26_776_436_736


def test_without_dropout_the_notes_model_keeps_15_gigabytes(chatglm):
    assert estimate(chatglm, MemorySettings(), 2048).activations == 28 * 64 * 2048 * 4096  # 15.03e9


def test_twice_the_length_is_more_than_twice_the_activations_unless_scores_are_not_kept(chatglm):
    assert estimate(chatglm, TEXTBOOK, 4096).activations == 91_133_837_312
    longer, wider = growth(chatglm, TEXTBOOK, 2048)
    assert round(longer, 2) == 3.40 and wider == 2
    for linear in ({"attention": "flash"}, {"checkpointing": "selective"}):
        assert growth(chatglm, replace(TEXTBOOK, **linear), 2048) == (2, 2)


def test_recomputing_keeps_34_or_the_layers_inputs_and_one_layer(chatglm):
    sbh = 2048 * 4096
    assert estimate(chatglm, replace(TEXTBOOK, checkpointing="selective"), 2048).activations == 28 * 34 * sbh
    one_layer = 26_776_436_736 / 28
    assert estimate(chatglm, replace(TEXTBOOK, checkpointing="full"), 2048).activations == 28 * 2 * sbh + one_layer


# --- states -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "weights", "bytes_each"),
    [
        ("adam", "bf16", 16),
        ("adam", "fp32", 16),
        ("momentum", "fp16", 12),
        ("momentum", "fp32", 12),
        ("sgd", "bf16", 8),
        ("sgd", "fp32", 8),
    ],
)
def test_bytes_a_parameter(optimizer, weights, bytes_each):
    """2 + 2 + 4 (copy) + 4 a state in half precision, 4 + 4 + 4 a state in single: the same sum."""
    decoder = on_meta("size=nano")
    memory = estimate(decoder, MemorySettings(optimizer=optimizer, weights=weights), 16)
    assert memory.fixed == bytes_each * count_parameters(decoder)


@pytest.mark.parametrize(
    "words",
    [
        ("optimizer=adamw",),
        ("optimizer=sgd",),
        ("optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false"),
        ("optimizer=muon", "ffn=experts", "pos=learned"),
        ("optimizer=lion",),
        ("optimizer=schedule_free", "schedule=constant"),
    ],
    ids=" ".join,
)
def test_what_a_models_own_optimizer_keeps_is_counted(words):
    """Beside what its library holds of every weight after a step; the number of the step itself is not of any weight."""
    cfg = archlab.compose("size=nano", *words, "memory.weights=fp32")
    if (library := made(cfg, "optimizer").library) is not None:
        pytest.importorskip(library)
    decoder = archlab.build(cfg)
    optimizer = made(cfg, "optimizer")(decoder, settings_of(cfg))
    for weight in decoder.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = {  # by storage: an expert's matrix is a view of the tensor of all
        number.untyped_storage().data_ptr(): number.untyped_storage().nbytes()
        for weight, state in optimizer.state.items()
        for number in state.values()
        if torch.is_tensor(number) and number.numel() == weight.numel() > 1
    }
    assert archlab.memory(cfg).to_pandas()["optimizer states"] == sum(kept.values())


def test_another_optimizer_may_be_asked_about():
    """`memory.optimizer` says what if, whatever the model is trained by; adapters are matrices, of which Muon keeps one."""
    assert memory_settings(archlab.compose("optimizer=muon", "memory.optimizer=sgd")).optimizer == "sgd"
    decoder = on_meta("size=nano")
    for optimizer, numbers in {"muon": 1, "adam": 2}.items():
        memory = estimate(decoder, MemorySettings(optimizer=optimizer, lora=3, weights="fp32"), 16)
        assert memory.optimizer == 4 * numbers * memory.trainable


@pytest.mark.parametrize(("zero", "bytes_each"), [(0, 16), (1, 4 + 12 / 64), (2, 2 + 14 / 64), (3, 16 / 64)])
def test_zero_shares_the_states_of_a_7_5_billion_parameter_model(zero, bytes_each):
    """ZeRO's figure 1 at 64 GPUs: 120, 31.4, 16.6 and 1.9 GB."""
    decoder = on_meta("size=nano")
    memory = estimate(decoder, MemorySettings(zero=zero, gpus=64 if zero else 1), 16)
    each = memory.fixed / count_parameters(decoder)
    assert each == pytest.approx(bytes_each, rel=1e-12)
    published = {0: 120, 1: 31.4, 2: 16.6, 3: 1.9}[zero]
    assert each * 7.5 == pytest.approx(published, abs=0.06)  # as printed, to one place


# --- what fits ----------------------------------------------------------------------------------


def test_the_largest_batch_fits_and_one_more_does_not():
    decoder, settings = on_meta("size=tiny"), MemorySettings(budget="100MB")
    batch = largest_batch(decoder, settings, 128)
    assert batch > 1
    assert (
        estimate(decoder, replace(settings, batch=batch), 128).total
        <= 100e6
        < estimate(decoder, replace(settings, batch=batch + 1), 128).total
    )


def test_where_no_sequence_fits_the_changes_named_are_the_fewest_with_which_one_does(chatglm):
    settings = replace(TEXTBOOK, budget="24GB")
    assert largest_batch(chatglm, settings, 2048) == 0
    found = remedies(chatglm, settings, 2048)
    assert found["memory.checkpointing=full memory.lora=8"] >= 1
    changed = replace(settings, checkpointing="full", lora=8, batch=found["memory.checkpointing=full memory.lora=8"])
    assert (
        estimate(chatglm, changed, 2048).total
        <= 24e9
        < estimate(chatglm, replace(changed, batch=changed.batch + 1), 2048).total
    )
    for alone in ({"checkpointing": "full"}, {"lora": 8}, {"attention": "flash"}, {"zero": 3, "gpus": 8}):
        assert largest_batch(chatglm, replace(settings, **alone), 2048) == 0
    assert bill.answer(chatglm, settings, 2048).startswith(
        "Not even a batch of one sequence of 2048 tokens fits 24GB. What would: "
    )


def test_a_budget_that_nothing_meets_says_so():
    assert "none of the changes known here" in bill.answer(
        on_meta("size=nano"), replace(TEXTBOOK, budget="0.001MB"), 2048
    )


def test_gigabytes_are_decimal_and_gibibytes_binary():
    assert bytes_of("24GB") == 24_000_000_000
    assert bytes_of("1.5 GiB") == 3 * 2**29


# --- refusals -----------------------------------------------------------------------------------

REFUSED = {
    ("memory.gpus=4",): "memory.gpus=4: changes nothing under memory.zero=0, where each holds everything; use memory.zero=1, 2 or 3",
    ("memory.zero=2",): "memory.zero=2: shares states among GPUs, and memory.gpus=1; use more, such as memory.gpus=8",
    ("memory.zero=4",): "memory.zero=4: should be 0, 1, 2 or 3",
    ("memory.lora_targets=[q_proj]",): "memory.lora_targets=['q_proj']: changes nothing without adapters; set memory.lora, such as memory.lora=8",
    ("memory.lora=4", "memory.lora_targets=[w_pack]"): "memory.lora_targets=['w_pack']: w_pack is no matrix of a layer; there are down_proj, "
    "gate_proj, k_proj, out_proj, q_proj, up_proj, v_proj",
    ("memory.lora=129",): "memory.lora=129: a rank above the 128 rows or columns of a matrix; use at most that",
    ("memory.budget=24",): "memory.budget=24: should be a size with its unit, such as 24GB or 16GiB",
    ("memory.budget=0GB",): "memory.budget=0GB: should be a size with its unit, such as 24GB or 16GiB",
    ("memory.attention=flash", "memory.checkpointing=selective"): "memory.checkpointing=selective: recomputes scores and weights, and "
    "memory.attention=flash keeps none; use none, full, or memory.attention=unfused",
    ("pos=learned", "memory.seq_len=513"): "memory.seq_len=513: pos.max_positions=512 is as far as the position table goes; use at most that "
    "many, or a larger table",
    ("mixer.sinks=true", "memory.attention=flash"): "memory.attention=flash: kernel=auto has no fused kernel for what the options of "
    "mixer=mha ask for, such as sinks, sigmoid weights, forget gates, or a softcap in narrow heads, so it would change nothing; leave it out, or use "
    "memory.checkpointing=selective or full",
    ("kernel=dense", "mixer=mla", "memory.attention=flash"): "memory.attention=flash: kernel=dense keeps the weights of every query and key, "
    "so it would change nothing; leave it out, or use memory.checkpointing=selective or full",
    ("memory.optimizer=adma",): "memory.optimizer=adma: should be 'adam', 'momentum', 'sgd' or 'muon'",
}  # fmt: skip


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_a_question_that_makes_no_sense_is_refused(overrides):
    with pytest.raises(UserError) as refusal:
        archlab.compose(*overrides)
    assert str(refusal.value) == REFUSED[overrides]


def test_adapters_may_be_of_the_rank_of_their_smallest_matrix():
    archlab.compose("memory.lora=128")


def test_a_run_makes_no_use_of_memory(capsys):
    from archlab.cli.main import main

    with pytest.raises(SystemExit) as leaving:
        main(["memory.batch=4"])
    assert leaving.value.code == 2
    assert (
        capsys.readouterr().err
        == "archlab: memory.batch=4: run does not use memory; leave it out, or use archlab show\n"
    )


# --- parts and the page -------------------------------------------------------------------------


def test_parameters_by_part_by_hand():
    parts = parameters_by_part(on_meta("size=tiny", "pos=learned", "mixer.qk_norm=head", "embed.norm=true", "ffn=relu"))
    d, layers, d_ff = 128, 4, 512
    assert parts == {
        "embedding": 256 * d, "positions": 512 * d, "mixer": layers * 4 * d * d, "ffn": layers * 2 * d * d_ff,
        "norms": layers * (2 * d + 2 * 32) + 2 * d, "head": 256 * d,
    }  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [("embed.tied=true",), ("residual=sandwich", "norm=batch", "allow_leak=true"), ("residual=parallel", "norm=layer")],
)
def test_the_parts_are_the_whole(overrides):
    decoder = on_meta(*overrides)
    parts = parameters_by_part(decoder)
    assert sum(parts.values()) == count_parameters(decoder)
    assert "other" not in parts and ("head" in parts) == ("embed.tied=true" not in overrides)


def test_show_prints_the_notes_figures_and_what_they_assume(capsys):
    print(archlab.show(*CHATGLM, "memory.seq_len=2048", "memory.dropout=true", "memory.budget=24GB"))
    page = " ".join(capsys.readouterr().out.split())
    for figure in (
        "weights 12.35 GB",
        "gradients 12.35 GB",
        "optimizer states 74.08 GB",
        "activations of the layers 26.78 GB",
        "x3.40",
        "x2.00",
        "123B",
    ):
        assert figure in page
    for assumption in (
        "dropout everywhere",
        "every activation is kept",
        "1 sequence of 2048 tokens",
        "float32 copy of the weights",
    ):
        assert assumption in page
    assert "Not even a batch of one" in page
