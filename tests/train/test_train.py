"""Training: schedule, optimiser, accumulation, checkpointing, precision, early stopping, divergence."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import build, built
from training import CPU, SMALL, Counting, settings

from archlab.data.batch import Batch
from archlab.train import clock
from archlab.train.loop import train
from archlab.train.objective import scored_targets, token_losses
from archlab.train.optimizer import AdamW
from archlab.train.patience import Patience
from archlab.train.runtime import Runtime
from archlab.train.schedule import learning_rate
from archlab.train.step import backward, split


def run(decoder, changed=None, machine=CPU, validate=lambda: 1.0, seed=3, probe_every=None):
    records = []
    outcome = train(
        decoder, Counting(), settings(**(changed or {})), machine, seed=seed, probe_every=probe_every,
        validate=validate, report=records.append, tick=lambda *_: None,
    )  # fmt: skip
    return outcome, records


# ---------------------------------------------------------------- schedule and optimiser


@pytest.mark.parametrize(
    ("step", "expected"),
    # lr 1e-2, 10 warm-up steps of 110, down to a tenth: the cosine's quarter points are exact by hand.
    [(1, 1e-3), (5, 5e-3), (10, 1e-2), (60, 5.5e-3), (110, 1e-3)],
)
def test_schedule_at_hand_computed_steps(step, expected):
    assert learning_rate(step, settings(steps=110, warmup=10)) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 1, None])
def test_a_run_of_one_step_takes_it_at_lr(warmup):
    assert learning_rate(1, settings(steps=1, warmup=warmup, lr=0.02)) == 0.02


def test_schedule_without_warmup_starts_near_the_top_and_by_default_warms_up_a_tenth():
    assert learning_rate(1, settings(steps=1000, warmup=0)) == pytest.approx(1e-2, rel=1e-4)
    assert settings(steps=70, warmup=None).warmup_steps == 7


def test_weight_decay_is_on_matrices_only():
    decoder = built(*SMALL, "norm=layer", "ffn.bias=true", "mixer.qkv_bias=true")
    decaying, still = AdamW()(decoder, settings(weight_decay=0.3)).param_groups
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim == 2 for p in decaying["params"]) and all(p.ndim == 1 for p in still["params"])
    assert len(decaying["params"]) + len(still["params"]) == len(list(decoder.parameters()))
    assert decaying["fused"] is True


def test_one_step_is_torchs_adamw_on_the_clipped_gradient():
    ours, theirs = (built(*SMALL) for _ in range(2))
    run(ours, {"steps": 1, "clip": 0.05, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(
        theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0
    )  # one step is taken at lr
    batch = Counting().train(3, 1, 6, 11)
    logits = theirs(batch.tokens[:, :-1])
    torch.nn.functional.cross_entropy(logits[batch.scored], batch.tokens[:, 1:][batch.scored]).backward()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
    optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)  # float32, and another order of summation


# ---------------------------------------------------------------- the objective


def gradients(decoder):
    return {name: p.grad.clone() for name, p in decoder.named_parameters()}


@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_accumulation_gives_the_gradients_of_the_whole_batch(pieces):
    batch, found = Counting().train(0, 1, 6, 11), []
    for n in (1, pieces):
        decoder = built(*SMALL).double()
        loss, *_ = backward(decoder, batch, n, CPU, CPU.scaler())
        found.append((float(loss), gradients(decoder)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)  # the total is kept in float32
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-5, atol=1e-9, msg=name)


def test_what_blocks_add_to_the_loss_counts_once_in_however_many_pieces():
    """A router's balance is a mean over the sequences; of three pieces that are the same, it is that of one."""
    one, found = Counting().train(0, 1, 2, 11), []
    batch = Batch(torch.cat([one.tokens] * 3), None, torch.cat([one.scored] * 3))
    for pieces in (1, 3):
        decoder = built(*SMALL, "ffn=experts", "ffn.balance_loss=1.0", "ffn.z_loss=0.1").double()
        backward(decoder, batch, pieces, CPU, CPU.scaler())
        found.append(gradients(decoder))
    assert found[0]["layers.0.ffn.router.weight"].any()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-5, atol=1e-9, msg=name)


def test_the_pieces_weigh_by_their_scored_targets():
    """A mean of means would be wrong here: the fixture scores more targets in later sequences."""
    batch = Counting().train(0, 1, 6, 11)
    counts = [int(piece.sum()) for piece in batch.scored.chunk(3)]
    assert len(set(counts)) == 3


def test_recomputing_activations_changes_no_gradient():
    batch, found = Counting().train(0, 1, 6, 11), []
    for recompute in (False, True):
        decoder = built(*SMALL)
        if recompute:
            decoder.recompute_activations()
        backward(decoder, batch, 1, CPU, CPU.scaler())
        found.append(gradients(decoder))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=0, msg=name)


def test_recomputing_activations_keeps_fewer_tensors():
    kept = []
    for recompute in (False, True):
        decoder = built(*SMALL)
        if recompute:
            decoder.recompute_activations()
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            token_losses(decoder, Counting().train(0, 1, 6, 11))
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 2


def test_targets_inside_a_prefix_are_not_scored_and_the_causal_arm_scores_the_same():
    tokens = torch.arange(8).repeat(2, 1)
    batch = Batch(tokens, torch.tensor([3, 5]), torch.ones(2, 7, dtype=torch.bool))
    decoder = built(*SMALL, "mask=prefix")
    # Position 2 of a prefix of 3 predicts token 3, the first it cannot read.
    assert scored_targets(decoder, batch).int().tolist() == [[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1]]


def test_under_a_full_mask_only_the_last_target_is_scored():
    batch = Batch(torch.arange(8).repeat(2, 1), None, torch.ones(2, 7, dtype=torch.bool))
    assert scored_targets(built(*SMALL, "mask=full"), batch).int().tolist() == [[0, 0, 0, 0, 0, 0, 1]] * 2


# ---------------------------------------------------------------- the loop


def test_the_same_seed_gives_the_same_losses_and_probing_changes_none():
    losses = [run(built(*SMALL, "dropout=0.1"), {"steps": 7}, probe_every=every)[0].losses for every in (None, None, 2)]
    assert losses[0] == losses[1] == losses[2]


def test_it_learns_to_count():
    outcome, _ = run(built(*SMALL), {"steps": 60, "batch_size": 16})
    assert outcome.losses[0] > 2.5 and outcome.losses[-1] < 0.5


def test_records_of_logged_probed_and_validated_steps():
    _, records = run(built(*SMALL), {"steps": 9, "log_every": 4, "eval_every": 3}, probe_every=5)
    assert [r["step"] for r in records] == [1, 3, 4, 5, 6, 8, 9]
    assert [r["step"] for r in records if "layers" in r] == [1, 5, 9]
    assert [r["step"] for r in records if "val_loss" in r] == [3, 6, 9]
    assert records[-1]["tokens"] == 9 * 6 * 11


def test_the_logged_gradient_norm_is_the_one_before_clipping():
    outcome, records = run(built(*SMALL), {"steps": 2, "clip": 1e-3})
    assert min(outcome.grad_norms) > 0.1 and all(r["clipped"] for r in records)
    assert not any(r["clipped"] for r in run(built(*SMALL), {"steps": 2, "clip": None})[1])


def test_early_stopping_keeps_the_best_weights():
    losses = iter([3.0, 2.0, 2.5, 2.4, 1.0])
    decoder, seen = built(*SMALL), []

    def validate():
        seen.append(decoder.head.weight.detach().clone())
        return next(losses)

    outcome, _ = run(decoder, {"steps": 10, "eval_every": 2, "patience": 2}, validate=validate)
    assert (outcome.status, outcome.best_step, len(outcome.losses)) == ("stopped", 4, 8)
    torch.testing.assert_close(decoder.head.weight, seen[1], rtol=0, atol=0)


def test_a_validation_that_is_no_better_is_waited_out():
    patience, decoder = Patience(2), built(*SMALL)
    for step, loss in ((1, 2.0), (2, 2.0), (3, 2.0)):
        assert not patience.over
        patience.see(step, loss, decoder)
    assert patience.over and patience.best_step == 1


def test_without_patience_nothing_is_kept():
    patience = Patience(None)
    patience.see(1, 0.5, built(*SMALL))
    assert not patience.over and patience.best_weights == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains_and_keeps_float32_weights(dtype):
    decoder = built(*SMALL, "pos=alibi", "mixer.qk_norm=head")
    outcome, _ = run(decoder, {"steps": 40, "batch_size": 16}, machine=Runtime(torch.device("cpu"), dtype))
    assert outcome.status == "completed" and outcome.losses[-1] < 0.6 * outcome.losses[0]
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}


def test_loss_scaling_is_on_for_float16_alone():
    enabled = [
        Runtime(torch.device("cpu"), dtype).scaler().is_enabled()
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    assert enabled == [False, False, True]


# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize(
    ("break_it", "where", "quantity"),
    [
        (lambda d: d.layers[1].ffn.up_proj.weight.data[3].fill_(float("inf")), "layers.1.ffn.up_proj.weight", "weight"),
        (lambda d: d.layers[0].mixer.v_proj.weight.data.fill_(3e38), "layers.0.mixer.v_proj", "activation"),
        (lambda d: d.head.weight.data.fill_(3e38), "head", "activation"),
    ],
)
def test_divergence_names_step_layer_and_quantity(break_it, where, quantity):
    decoder = built(*SMALL)
    break_it(decoder)
    outcome, records = run(decoder, {"steps": 4})
    assert (outcome.status, len(outcome.losses)) == ("diverged", 1)
    found = outcome.first_nonfinite
    assert (found.step, found.where, found.quantity) == (1, where, quantity)
    assert records[-1]["step"] == 1


def test_a_broken_gradient_is_told_from_a_broken_loss():
    decoder = built(*SMALL)
    decoder.layers[0].ffn.register_full_backward_pre_hook(lambda module, grad: (grad[0] * float("nan"),))
    outcome, _ = run(decoder, {"steps": 4})
    found = outcome.first_nonfinite
    assert math.isfinite(outcome.losses[0])
    assert (found.quantity, found.where) == ("gradient", "layers.0.ffn.down_proj.weight")


@pytest.mark.parametrize("words", [(), ("norm=batch", "allow_leak=true"), ("ffn=experts", "ffn.balance_rate=0.1")])
def test_the_step_that_breaks_does_not_reach_the_weights(words):
    """Nor running statistics, nor the experts' bias, which are saved with them."""
    decoder = built(*SMALL, *words)
    decoder.layers[0].mixer.register_full_backward_pre_hook(lambda module, grad: (grad[0] * float("nan"),))
    before = {name: kept.clone() for name, kept in decoder.state_dict().items()}
    run(decoder, {"steps": 4})
    for name, kept in decoder.state_dict().items():
        torch.testing.assert_close(kept, before[name], rtol=0, atol=0, msg=name)


# --- targets and positions of the data's own ----------------------------------------------------


def test_given_targets_are_predicted_where_the_data_scores_them_whatever_the_mask_shows():
    decoder = build(mask="full", vocab_size=23)
    tokens, targets = torch.randint(23, (3, 6)), torch.randint(23, (3, 6))
    scored = torch.rand(3, 6) < 0.5
    losses = token_losses(decoder, Batch(tokens, None, scored, targets=targets))
    expected = -decoder(tokens).float().log_softmax(dim=-1).gather(2, targets[..., None])[..., 0]
    torch.testing.assert_close(losses.nats, expected, rtol=1e-6, atol=1e-6)  # float32 losses
    assert torch.equal(losses.scored, scored)


def test_next_tokens_given_as_targets_are_next_tokens():
    decoder, tokens, scored = build(vocab_size=23), torch.randint(23, (3, 8)), torch.rand(3, 7) < 0.5
    implied = token_losses(decoder, Batch(tokens, None, scored))
    given = token_losses(decoder, Batch(tokens[:, :-1], None, scored, targets=tokens[:, 1:]))
    assert all(torch.equal(one, other) for one, other in zip(implied, given, strict=True))


def test_given_positions_reach_the_decoder_and_are_split_with_their_sequences():
    decoder, tokens, scored = (
        build(pos="sinusoidal", vocab_size=23),
        torch.randint(23, (4, 8)),
        torch.ones(4, 7, dtype=torch.bool),
    )
    positions = torch.randint(40, (4, 1, 7))
    batch = Batch(tokens, None, scored, positions=positions)
    whole = token_losses(decoder, batch).nats
    expected = F.cross_entropy(decoder(tokens[:, :-1], positions=positions).float().mT, tokens[:, 1:], reduction="none")
    torch.testing.assert_close(whole, expected, rtol=1e-6, atol=1e-6)  # float32 losses, laid out otherwise
    assert (whole - token_losses(decoder, batch._replace(positions=None)).nats).abs().max() > 1e-3
    pieces = [token_losses(decoder, piece).nats for piece in split(batch, 2)]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-5, atol=1e-6)  # float32 losses of float64 logits


def test_some_rows_of_a_batch_keep_what_it_has_not():
    rows = Batch(torch.arange(12).view(4, 3), None, torch.ones(4, 2, dtype=torch.bool)).rows(slice(1, 3))
    assert rows.tokens.tolist() == [[3, 4, 5], [6, 7, 8]] and rows.scored.shape == (2, 2)
    assert rows.prefix_len is rows.targets is rows.positions is None


def test_tokens_per_second_are_those_of_the_steps_after_the_first_while_they_run(monkeypatch):
    """Ten tokens a step: one step, 4 s, three more; then 3 s that are no training, and two steps more in 6 s."""
    now = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    told = clock.Clock(tokens_per_step=10)
    told.steps_done(0)
    now[0] += 50.0
    told.steps_done(1)
    assert told.tokens_per_second is None
    now[0] += 4.0
    told.steps_done(3)
    assert told.tokens_per_second == 3 * 10 / 4
    with told.paused():
        now[0] += 3.0
    assert told.tokens_per_second == 3 * 10 / 4
    now[0] += 6.0
    assert told.tokens_per_second == 3 * 10 / 4, (
        "that of the steps that were read: a bar of progress fell to half between reads"
    )
    told.steps_done(2)
    assert told.tokens_per_second == 5 * 10 / 10
    saved, again = told.state_dict(), clock.Clock(tokens_per_step=10)
    now[0] += 1000.0
    again.load_state_dict(saved)  # nothing ran in between
    assert again.tokens_per_second == 5 * 10 / 10
