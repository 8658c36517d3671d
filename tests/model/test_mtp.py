"""Several tokens predicted at each position: both forms as their papers write them, what counts, and what of it costs."""

import json
import math

import pytest
import torch
from oracles import randomise
from training import CPU, Counting, settings

import archlab
from archlab import hub
from archlab.base.errors import UserError
from archlab.config.assemble import assemble_without_weights
from archlab.config.compose import compose, in_turn
from archlab.cost.describe import count_mtp_parameters, count_own_parameters, parameters_by_part
from archlab.cost.estimate import activation_bytes
from archlab.cost.measure import forward_flops_per_token
from archlab.cost.settings import MemorySettings
from archlab.data.batch import Batch
from archlab.diagram.drawing import svg
from archlab.diagram.parts import sketch
from archlab.diagram.saved import read_sketch
from archlab.model.generate import generate
from archlab.runs.lab import check_further_tokens
from archlab.train.objective import Program, placed, targets_ahead, terms_of, token_losses
from archlab.train.options import LossOptions
from archlab.train.state import TrainState
from archlab.train.step import make_step

EXACT = dict(rtol=1e-9, atol=1e-11)  # float64, sums in another order
IN_FLOAT32 = dict(rtol=2e-5, atol=2e-6, check_dtype=False)  # losses are taken of logits in float32
SIZES = ("size.d_model=24", "size.n_layers=3", "size.n_heads=4", "size.vocab_size=31", "size.d_ff=40")
SEQ = 9
FORMS = ("independent", "chained")
PLAIN = LossOptions()


def built(*words):
    return randomise(archlab.build(*SIZES, *words)).double()


def some_batch(prefix=None, starts=None, scored=None) -> Batch:
    tokens = torch.randint(31, (2, SEQ + 1), generator=torch.Generator().manual_seed(5))
    counts = torch.ones(2, SEQ, dtype=torch.bool) if scored is None else scored
    return Batch(tokens, prefix, counts, document_starts=starts)


def parts_of(decoder, batch, options=PLAIN):
    return Program(decoder, terms=terms_of(options))(*placed(decoder, batch))[0]


def minimised(parts):
    """What `archlab.train.step.backward` calls backward on, of one piece."""
    return (parts.total + sum(parts.terms.values())) / parts.n_scored + sum(parts.added.values())


def through(decoder, layers, x, tokens):
    """A stream through layers under a context of these tokens' length."""
    context = decoder.read(tokens)[0]
    for layer in layers:
        x = layer(x, context)
    return x


def embedded(decoder, tokens):
    return decoder.embedding.weight[tokens] * decoder.embed_scale


def nats(decoder, stream, tokens, by):
    """The losses of the tokens `by` further on than the next, position by position, of a normed stream."""
    logs = (stream @ decoder.head.weight.T).log_softmax(-1)
    at = range(tokens.shape[1] - 1 - by)
    return torch.stack([-logs[row, i, tokens[row, i + by + 1]] for row in range(len(tokens)) for i in at])


def independent_by_the_paper(decoder, tokens, weight=1.0):
    """L = - sum over positions of sum over i of log p(x[t + i] | z[t]), with z the trunk's: arXiv:2404.19737, eq. 2."""
    inputs = tokens[:, :-1]
    z = through(decoder, decoder.layers[:-1], embedded(decoder, inputs), inputs)
    heads = [decoder.layers[-1], *decoder.mtp.layers]
    return [
        (weight if by else 1.0)
        * nats(decoder, decoder.final_norm(through(decoder, [head], z, inputs)), tokens, by).sum()
        for by, head in enumerate(heads)
    ]


def chained_by_the_paper(decoder, tokens, weight=0.3):
    """Each module on the first T - k positions alone: arXiv:2412.19437, sec. 2.2."""
    inputs, mtp = tokens[:, :-1], decoder.mtp
    h = through(decoder, decoder.layers, embedded(decoder, inputs), inputs)
    losses = [nats(decoder, decoder.final_norm(h), tokens, 0).sum()]
    depth = len(mtp.layers)
    for k in range(1, depth + 1):
        left = SEQ - k
        of_h, of_token = (
            mtp.stream_norms[k - 1](h[:, :left]),
            mtp.embedding_norms[k - 1](embedded(decoder, inputs[:, k:])),
        )
        joined = torch.einsum("oi,bsi->bso", mtp.projections[k - 1].weight, torch.cat((of_h, of_token), -1))
        h = through(decoder, [mtp.layers[k - 1]], joined, inputs[:, :left])
        losses.append(weight / depth * nats(decoder, mtp.final_norms[k - 1](h), tokens, k).sum())
    return losses


BY_THE_PAPER = {"independent": independent_by_the_paper, "chained": chained_by_the_paper}


@pytest.mark.parametrize("tokens", [2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients_are_the_papers(form, tokens):
    decoder, batch = built(f"mtp.form={form}", f"mtp.tokens={tokens}"), some_batch()
    expected = BY_THE_PAPER[form](decoder, batch.tokens)
    parts = parts_of(decoder, batch)
    assert list(parts.terms) == [f"mtp_loss_{by}" for by in range(2, tokens + 1)]
    torch.testing.assert_close([parts.total, *parts.terms.values()], expected, **IN_FLOAT32)
    weights = list(decoder.parameters())
    ours = torch.autograd.grad(minimised(parts), weights)
    theirs = torch.autograd.grad(sum(expected) / (2 * SEQ), weights)
    torch.testing.assert_close(ours, theirs, **IN_FLOAT32)
    assert all(gradient.abs().max() > 0 for gradient in ours)


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_multiplies_the_further_losses_alone(form):
    decoder, batch = built(f"mtp.form={form}", "mtp.tokens=3", "mtp.weight=0.07"), some_batch()
    expected = BY_THE_PAPER[form](decoder, batch.tokens, weight=0.07)
    parts = parts_of(decoder, batch)
    torch.testing.assert_close([parts.total, *parts.terms.values()], expected, **IN_FLOAT32)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("skips=unet",),
        ("loop.times=2",),
        ("layers[2].mask=window", "layers[2].mask.window=2"),
        ("mixer=diff",),
        ("mixer=diff", "loop.times=2", "loop.layers=0:2"),
        ("residual=scaled",),
        ("residual=hyper",),
    ],
    ids=" ".join,
)
def test_a_head_with_the_last_layers_weights_predicts_as_it_does(words):
    """It is given what the last layer is, skips included, under that one's mask, and goes by that one's number."""
    decoder, batch = built("mtp.form=independent", *words), some_batch()
    decoder.mtp.layers[0].load_state_dict(decoder.layers[-1].state_dict())
    inputs = placed(decoder, batch)
    output = decoder.compute(inputs.tokens, decoder.read(inputs.tokens), ahead=decoder.ahead)
    torch.testing.assert_close(output.further[0], output.logits, rtol=0, atol=0)


def test_a_module_is_given_the_tokens_embedding_before_positions_and_norms():
    decoder, batch = (
        built("mtp.form=chained", "mtp.tokens=3", "pos=learned", "embed.norm=true", "embed.scale=3"),
        some_batch(),
    )
    given = []
    for norm in decoder.mtp.embedding_norms:
        norm.register_forward_pre_hook(lambda norm, of_tokens: given.append(*of_tokens))
    parts_of(decoder, batch)
    assert len(given) == 2
    for by, embeddings in enumerate(given, start=1):
        later = 3 * decoder.embedding.weight[batch.tokens[:, by:SEQ]]
        torch.testing.assert_close(embeddings[:, : SEQ - by], later, **EXACT)


@pytest.mark.parametrize("residual", ["pre", "post"])
def test_a_modules_stream_is_normed_where_the_models_own_is(residual):
    """Under a post-norm scheme a layer leaves a normed stream, which has no further norm."""
    decoder, batch, left = built("mtp.form=chained", f"residual={residual}"), some_batch(), []
    decoder.mtp.layers[0].register_forward_hook(lambda layer, given, x: left.append(x))
    output = decoder.compute(batch.inputs, decoder.read(batch.inputs), ahead=decoder.ahead)
    (x,) = left
    if residual == "pre":
        x = decoder.mtp.final_norms[0].gain * x / (x.square().mean(-1, keepdim=True) + decoder.final_norm.eps).sqrt()
    torch.testing.assert_close(output.further[0], x @ decoder.head.weight.T, **EXACT)


@pytest.mark.parametrize("form", FORMS)
def test_the_next_tokens_model_is_the_same_without(form):
    """Its weights start the same, its logits, losses and continuations are the same, and no head is run for them."""
    alone, with_heads = (archlab.build(*SIZES, *words) for words in ((), (f"mtp.form={form}",)))
    state = with_heads.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in alone.state_dict().items())
    assert {name.partition(".")[0] for name in state.keys() - alone.state_dict().keys()} == {"mtp"}
    batch = some_batch()
    with torch.no_grad():
        for weight in with_heads.mtp.parameters():
            weight.fill_(math.nan)
        assert torch.equal(token_losses(with_heads, batch).nats, token_losses(alone, batch).nats)
        both = [generate(decoder.eval(), batch.inputs[:1, :4], max_new_tokens=5) for decoder in (alone, with_heads)]
    assert torch.equal(*both)


@pytest.mark.parametrize("residual", ["post", "hyper", "sandwich", "parallel"])
@pytest.mark.parametrize("form", FORMS)
def test_heads_under_other_residual_schemes_learn(form, residual):
    decoder, batch = built(f"mtp.form={form}", "mtp.tokens=3", f"residual={residual}"), some_batch()
    minimised(parts_of(decoder, batch)).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in decoder.mtp.parameters())


@pytest.mark.parametrize(("tokens", "accumulate"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("form", FORMS)
def test_each_heads_router_is_balanced_by_what_its_own_tokens_chose(form, tokens, accumulate):
    """bias <- bias + rate * sign(mean load - load), of every layer by itself: arXiv:2408.15664, alg. 1."""
    words = ("ffn=experts", "ffn.n_experts=7", "ffn.balance_rate=0.125", f"mtp.form={form}", f"mtp.tokens={tokens}")
    decoder = randomise(archlab.build(*SIZES, *words)).train()
    trained = [*decoder.layers, *decoder.mtp.layers]
    chosen: list[list[int]] = [[] for _ in trained]
    for layer, of_layer in zip(trained, chosen, strict=True):
        layer.ffn.biased.bias.zero_()
        layer.ffn.router.register_forward_hook(
            lambda _, __, y, of=of_layer: of.extend(y.topk(2).indices.flatten().tolist())
        )
    told = settings(batch_size=6, train_len=11, accumulate=accumulate)
    make_step(decoder, told, CPU)(TrainState.begin(decoder, told, CPU, 0), Counting().train(0, 1, 6, 11))
    moves = []
    for layer, of_layer in zip(trained, chosen, strict=True):
        load = torch.bincount(torch.tensor(of_layer), minlength=7)
        assert load.sum() == 6 * 11 * 2
        moves.append(torch.tensor([0.125 * ((132 / 7 > n) - (132 / 7 < n)) for n in load.tolist()]))
        torch.testing.assert_close(layer.ffn.biased.bias, moves[-1], rtol=0, atol=0)
    assert len({tuple(move.tolist()) for move in moves}) == len(trained), (
        "else one layer's counts would do for another's"
    )


# --- what counts --------------------------------------------------------------------------------


def test_a_target_counts_where_all_up_to_it_do():
    targets, scored = torch.tensor([[10, 11, 12, 13, 14, 15]]), torch.tensor([[1, 1, 0, 1, 1, 1]]).bool()
    there, counts = targets_ahead(targets, scored, 1)
    assert there[counts].tolist() == [11, 14, 15] and counts.tolist() == [[True, False, False, True, True, False]]
    there, counts = targets_ahead(targets, scored, 2)
    assert there[counts].tolist() == [15] and counts.tolist() == [[False, False, False, True, False, False]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ["causal", "prefix", "document", "window"])
def test_nothing_that_counts_sees_what_it_is_to_predict(form, case):
    """Another token in the place of a target changes no prediction of it, nor of any target after it but by its own input."""
    words = {
        "causal": (), "prefix": ("mask=prefix", "prefix=[0.2,0.5]"), "document": ("mask=document", "documents=true"),
        "window": ("mask=window", "mask.window=4"),
    }[case]  # fmt: skip
    decoder = built(f"mtp.form={form}", "mtp.tokens=3", *words)
    scored = torch.ones(2, SEQ, dtype=torch.bool)
    starts = torch.tensor([[0] * 4 + [4] * 5, [0] * 6 + [6] * 3])
    if case == "document":
        scored[0, 3] = scored[1, 5] = False  # the first token of a document is no target
    batch = some_batch(
        torch.tensor([3, 4]) if case == "prefix" else None, starts if case == "document" else None, scored
    )
    inputs = placed(decoder, batch)

    def further(tokens):
        contexts = decoder.read(tokens, inputs.prefix_len, document_starts=inputs.document_starts)
        with torch.no_grad():
            return decoder.compute(tokens, contexts, ahead=decoder.ahead).further

    before, checked = further(inputs.tokens), 0
    for by in (1, 2):
        counts = targets_ahead(inputs.targets, inputs.scored, by)[1]
        for row, at in counts.nonzero().tolist():
            place = at + by + 1  # where the target stands among the tokens
            if case == "document":
                assert starts[row, at] == (starts[row, place] if place < SEQ else starts[row, -1])
            if place >= SEQ:
                continue
            changed = inputs.tokens.clone()
            changed[row, place] = (changed[row, place] + 1) % 31
            torch.testing.assert_close(further(changed)[by - 1][row, at], before[by - 1][row, at], **EXACT)
            checked += 1
    assert checked > 8


@pytest.mark.parametrize("options", [LossOptions(z=1e-2), LossOptions(label_smoothing=0.2)], ids=["z", "smoothing"])
def test_what_is_added_to_each_targets_loss_is_added_to_the_further_ones(options):
    decoder, batch = built("mtp.form=chained", "mtp.tokens=3"), some_batch()
    inputs = placed(decoder, batch)
    output = decoder.compute(inputs.tokens, decoder.read(inputs.tokens), ahead=decoder.ahead)
    parts = parts_of(decoder, batch, options)
    for by, logits in enumerate(output.further, start=1):
        logs = logits[:, :-by].log_softmax(-1)
        targets = batch.tokens[:, by + 1 :]
        plain = -logs.gather(-1, targets[..., None]).squeeze(-1)
        smooth = -logs.mean(-1)
        log_z = logits[:, :-by].logsumexp(-1)
        expected = {
            "z": plain + 1e-2 * log_z**2,
            "smoothing": 0.8 * plain + 0.2 * smooth,
        }["z" if options.z else "smoothing"].sum()
        torch.testing.assert_close(parts.terms[f"mtp_loss_{by + 1}"], 0.3 / 2 * expected, **IN_FLOAT32)
        its_own = torch.stack((plain.sum(), torch.tensor(float(plain.numel())).double()))
        torch.testing.assert_close(parts.further[f"mtp_loss_{by + 1}"], its_own, **IN_FLOAT32)


# --- what it costs ------------------------------------------------------------------------------


def test_parameters_and_flops_by_hand():
    """A layer of 4 d^2 + 3 d d_ff and two gains; a module also has 2 d^2 and three gains. FLOPs: two a multiply-add, heads included."""
    d, d_ff, vocab = 24, 40, 31
    layer = 4 * d * d + 3 * d * d_ff + 2 * d
    alone = assemble_without_weights(compose(*SIZES))
    products = 2 * (4 * d * d + 3 * d * d_ff + 2 * SEQ * d + d * vocab)
    for form, n_params, flops in (
        ("independent", layer, products),
        ("chained", layer + 2 * d * d + 3 * d, products + 2 * 2 * d * d),
    ):
        decoder = assemble_without_weights(compose(*SIZES, f"mtp.form={form}", "mtp.tokens=3"))
        assert count_mtp_parameters(decoder) == parameters_by_part(decoder)["mtp"] == 2 * n_params
        assert count_own_parameters(decoder) == count_own_parameters(alone)
        own = forward_flops_per_token(alone, SEQ)
        assert forward_flops_per_token(decoder, SEQ) == own
        assert forward_flops_per_token(decoder, SEQ, training=True) == own + 2 * flops


def test_deepseek_v3s_module_is_as_large_as_released():
    """README_WEIGHTS.md of the release: 671B, and 11.5B of the module that are not shared."""
    decoder = assemble_without_weights(compose("preset=deepseek_v3", "mtp.form=chained"))
    assert count_own_parameters(decoder) == 671_026_404_352
    layer = sum(parameter.numel() for parameter in decoder.layers[-1].parameters())
    assert count_mtp_parameters(decoder) == layer + 2 * 7168 * 7168 + 3 * 7168
    assert round(layer / 1e9, 1) == 11.5


def test_memory_counts_a_layer_and_logits_for_each_further_token():
    settings = MemorySettings(**archlab.compose(*SIZES).memory)
    alone, with_heads = (
        activation_bytes(assemble_without_weights(compose(*SIZES, *words)), settings, SEQ)
        for words in ((), ("mtp.form=independent", "mtp.tokens=3"))
    )
    assert with_heads[0] == alone[0] * 5 / 3  # three layers alike, and two more
    assert with_heads[1] == 3 * alone[1]


def test_a_run_writes_the_further_losses_beside_its_own(tmp_path):
    run = archlab.run(
        "size=nano", "mtp.form=chained", "mtp.tokens=3", "train.steps=3", "train.train_len=8",
        "train.batch_size=2", "train.log_every=1", "eval.lengths=[1]", "eval.tokens=16", f"output={tmp_path}",
    )  # fmt: skip
    records = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert all(record["mtp_loss_2"] > 0 and record["mtp_loss_3"] > 0 for record in records)
    summary = json.loads((run.directory / "summary.json").read_text())
    assert summary["n_params"] == 133_440 and summary["n_mtp_params"] == 2 * (50_304 + 2 * 64 * 64 + 3 * 64)
    drawn = read_sketch(run.directory)
    assert (
        drawn is not None and drawn.further is not None and (drawn.further.name, drawn.further.count) == ("Chained", 2)
    )


@pytest.mark.parametrize("form", FORMS)
def test_what_is_exported_predicts_the_next_token(form, tmp_path):
    decoder = archlab.build("size=nano", f"mtp.form={form}").eval()
    hub.export(decoder, tmp_path / "it")
    tokens = some_batch().inputs
    torch.testing.assert_close(hub.load(tmp_path / "it")(tokens), decoder(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_heads_are_drawn_apart(form):
    drawn = svg(sketch(assemble_without_weights(compose("size=nano", f"mtp.form={form}", "mtp.tokens=4"))))
    assert f"{form.capitalize()}, in training alone" in drawn and "3 of them, for the tokens after the next" in drawn
    assert "in training alone" not in svg(sketch(assemble_without_weights(compose("size=nano"))))


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("mtp.tokens=3",), "mtp.tokens=3: changes nothing under mtp.form=null"),
        (("mtp.weight=0.5",), "mtp.weight=0.5: changes nothing under mtp.form=null"),
        (("mtp.form=chained", "mtp.tokens=1"), "mtp.tokens=1: should be"),
        (("mtp.form=chained", "mtp.weight=0"), "mtp.weight=0: should be"),
        (("mtp.form=both",), "mtp.form=both: should be 'independent' or 'chained'"),
        (("mtp.form=chained", "mask=full"), "mtp.form=chained: under mask=full"),
        (("mtp.form=independent", "data=masked", "mask=full"), "mtp.form=independent: under mask=full"),
        (("mtp.form=chained", "norm=batch", "allow_leak=true"), "mtp.form=chained: norm=batch takes statistics"),
    ],
)
def test_refused_in_one_line(words, says):
    with pytest.raises(UserError, match=says) as refused:
        in_turn("size=nano", *words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (some_batch(scored=torch.eye(2, SEQ).bool()), "no more than 1 target in a row count.*leave mtp.form out"),
        (some_batch(scored=torch.tensor([[True] * 2 + [False] * 7] * 2)), "2 targets in a row.*use at most mtp.tokens=2"),
        (Batch(torch.zeros(2, SEQ).long(), None, torch.ones(2, SEQ).bool(), torch.zeros(2, SEQ).long()), "there are no tokens after it"),
    ],
    ids=["answers of one token", "of two", "targets of its own"],
)  # fmt: skip
def test_data_without_further_tokens_is_refused(batch, says):
    cfg = in_turn(*SIZES, "mtp.form=chained", "mtp.tokens=3")
    with pytest.raises(UserError, match=says):
        check_further_tokens(cfg, archlab.build(cfg), batch)
    check_further_tokens(cfg, archlab.build(cfg), some_batch())
