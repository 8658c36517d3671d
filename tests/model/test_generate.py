"""Generation: against repeated full forwards and Hugging Face's logits processors; and the verb on a run's directory."""

import json
import math
from pathlib import Path

import commands
import pytest
import torch
from oracles import VOCAB, build, built, draw_tokens, make, randomise
from safetensors.torch import load_file, save_file
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import archlab
from archlab.base.errors import UserError
from archlab.model.generate import choose, generate, keep_ended, keep_top_k, keep_top_p
from archlab.runs import lab
from archlab.runs.load import load_run

command = commands.command  # the fixture

NEW = 6


def by_full_forwards(decoder, tokens, n: int, prefix_len=None) -> torch.Tensor:
    for _ in range(n):
        tokens = torch.cat((tokens, decoder(tokens, prefix_len)[:, -1:].argmax(dim=-1)), dim=1)
    return tokens


# --- what is said -------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["causal", "prefix", "window"])
@pytest.mark.parametrize("pos", ["rope", "alibi", "learned"])
def test_greedy_tokens_are_those_of_repeated_full_forwards(pos, mask):
    decoder, tokens = build(pos=pos, mask=mask).eval(), draw_tokens(seq=5)
    prefix_len = 3 if mask == "prefix" else None
    told = generate(decoder, tokens, max_new_tokens=NEW, prefix_len=prefix_len)
    assert torch.equal(told, by_full_forwards(decoder, tokens, NEW, prefix_len))


@pytest.mark.parametrize("pos", ["rope", "alibi", "learned"])
def test_greedy_tokens_of_layers_by_turns_are_those_of_repeated_full_forwards(pos):
    words = ("size=nano", "size.n_layers=4", f"pos={pos}", "mask=window", "mask.window=4", "layers[1::2].mask=causal")
    decoder, tokens = randomise(built(*words)).double().eval(), draw_tokens(seq=5)
    assert torch.equal(generate(decoder, tokens, max_new_tokens=NEW), by_full_forwards(decoder, tokens, NEW))


def test_left_padded_prompts_of_different_lengths_go_on_as_each_does_alone():
    decoder, tokens = build(pos="rope").eval(), draw_tokens(seq=5)
    told = generate(decoder, tokens, max_new_tokens=NEW, padding=torch.tensor([2, 0]))
    for i, pad in enumerate((2, 0)):
        assert torch.equal(told[i : i + 1, pad:], by_full_forwards(decoder, tokens[i : i + 1, pad:], NEW))


def scores_of(seed: int) -> torch.Tensor:
    return 3 * torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 2, 7, VOCAB, VOCAB + 5])
def test_top_k_is_hugging_faces(k):
    assert torch.equal(keep_top_k(scores_of(k), k), TopKLogitsWarper(k)(None, scores_of(k)))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.77, 0.95, 0.999])
def test_top_p_is_hugging_faces(p):
    assert torch.equal(keep_top_p(scores_of(3), p), TopPLogitsWarper(p)(None, scores_of(3)))


def test_top_p_keeps_the_fewest_that_add_up():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.5, 0.3]]).log()
    for p, kept in ((0.4, 1), (0.6, 2), (0.79, 2), (0.81, 3), (0.99, 4)):
        assert keep_top_p(logits, p).isfinite().sum(dim=-1).tolist() == [kept, kept]


def test_top_p_of_one_drops_nothing_and_just_below_it_only_what_is_beyond():
    """At GPT-2's vocabulary, where a running sum in float32 is 1 before its end."""
    logits = 2 * torch.randn(3, 50257, generator=torch.Generator().manual_seed(5))
    assert torch.equal(keep_top_p(logits, 1.0), logits)
    for p in (0.999999, 0.999, 0.9, 0.5):
        for row, stays in zip(logits.double().softmax(dim=-1), keep_top_p(logits, p).isfinite(), strict=True):
            kept = row[stays].sort(descending=True).values
            assert kept[-1] >= row[~stays].max()
            assert (
                kept[:-1].sum() - 5e-6 < p < kept.sum() + 5e-6
            )  # a float32 softmax of so many adds up to 1 within that


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_top_p_that_the_first_ones_reach_exactly_keeps_no_more(dtype, seed):
    """p read off a softmax of either precision; with three that add up to it as well."""
    logits = scores_of(seed)[:1]
    descending = logits.to(dtype).softmax(dim=-1).sort(descending=True).values[0]
    for n in (1, 2, 3):
        assert keep_top_p(logits, float(descending[:n].sum())).isfinite().sum() == n
    many = torch.randn(1, 50257, generator=torch.Generator().manual_seed(seed)).to(dtype)
    assert keep_top_p(many, float(many.softmax(dim=-1).max())).isfinite().sum() == 1
    halves = torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert keep_top_p(halves, 0.5).isfinite().tolist() == [[False, True, False]]
    assert keep_top_p(halves, 0.75).isfinite().tolist() == [[True, True, False]]  # of equal ones the lowest id
    assert keep_top_p(halves, 5e-324).isfinite().tolist() == [[False, True, False]]


def test_of_equal_logits_top_k_keeps_k():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    for k, kept in ((1, [[1], [0]]), (2, [[1, 2], [0, 1]]), (4, [[1, 2, 3, 4], [0, 1, 2, 3]])):
        assert [row.nonzero().flatten().tolist() for row in keep_top_k(logits, k).isfinite()] == kept


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-45, 1e-30])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 1.0}, {"top_p": 0.5}], ids=str)
def test_near_temperature_0_the_likeliest_is_drawn(temperature, options):
    logits = scores_of(2) * 1e4
    drawn = choose(logits, temperature, options.get("top_k"), options.get("top_p"), torch.Generator().manual_seed(0))
    assert torch.equal(drawn, logits.argmax(dim=-1))


def test_at_the_largest_temperature_any_token_is_drawn_alike():
    drawn = choose(scores_of(2)[:1].expand(20000, -1), 1e308, None, None, torch.Generator().manual_seed(0))
    assert (torch.bincount(drawn, minlength=VOCAB) / 20000 - 1 / VOCAB).abs().max() < 0.005  # five standard deviations


def test_draws_have_the_frequencies_of_hugging_faces_warped_softmax():
    """20000 draws: a frequency's standard deviation is at most 0.0036; five of them."""
    logits, n = scores_of(8)[:1], 20000
    warped = TopPLogitsWarper(0.9)(None, TopKLogitsWarper(12)(None, TemperatureLogitsWarper(1.7)(None, logits)))
    drawn = choose(logits.expand(n, -1), 1.7, 12, 0.9, torch.Generator().manual_seed(0))
    frequencies = torch.bincount(drawn, minlength=VOCAB) / n
    expected = warped.softmax(dim=-1)[0]
    assert (frequencies - expected).abs().max() < 0.018
    assert not frequencies[expected == 0].any() and (expected > 0).sum() > 3


def test_a_seed_settles_what_is_drawn():
    decoder, tokens = build(), draw_tokens(seq=4)

    def told(seed):
        return generate(decoder, tokens, max_new_tokens=12, temperature=1.0, seed=seed)

    torch.manual_seed(1)
    first = told(0)
    torch.manual_seed(2)
    assert torch.equal(told(0), first) and not torch.equal(told(1), first)


def test_drawing_from_the_likeliest_alone_is_greedy():
    decoder, tokens = build(), draw_tokens(seq=4)
    greedy = generate(decoder, tokens, max_new_tokens=NEW)
    assert torch.equal(generate(decoder, tokens, max_new_tokens=NEW, temperature=2.0, top_k=1), greedy)
    assert torch.equal(generate(decoder, tokens, max_new_tokens=NEW, temperature=2.0, top_p=1e-6), greedy)


def test_a_sequence_that_has_ended_says_nothing_else_and_all_end_together():
    decoder, tokens = build().eval(), draw_tokens(seq=4)
    free = generate(decoder, tokens, max_new_tokens=12)
    eos = int(free[0, 6])  # what the first sequence says third, or earlier
    told = generate(decoder, tokens, max_new_tokens=12, eos=eos)
    for row, unstopped in zip(told, free, strict=True):
        said = [i for i in range(4, 16) if unstopped[i] == eos]
        end = said[0] if said else 15
        assert torch.equal(row[: end + 1], unstopped[: end + 1][: len(row)])
        assert (row[end + 1 :] == eos).all()
    alone = generate(decoder, tokens[:1], max_new_tokens=12, eos=eos)
    assert alone.shape[1] <= 7 and alone[0, -1] == eos


def test_the_decoder_stays_in_its_mode_and_drops_nothing_out():
    decoder, tokens = build(dropout=0.5).train(), draw_tokens(seq=4)
    told = generate(decoder, tokens, max_new_tokens=NEW)
    assert decoder.training and torch.equal(told, by_full_forwards(decoder.eval(), tokens, NEW))


def test_a_part_that_is_in_another_mode_than_the_decoder_stays_in_it():
    decoder = build(dropout=0.5).train()
    decoder.layers[0].eval()
    generate(decoder, draw_tokens(seq=4), max_new_tokens=NEW)
    assert decoder.training and not any(part.training for part in decoder.layers[0].modules())


def test_each_new_token_costs_one_forward_of_one_token():
    decoder, lengths = build(), []
    decoder.layers[0].register_forward_pre_hook(lambda layer, arguments: lengths.append(arguments[0].shape[1]))
    generate(decoder, draw_tokens(seq=5), max_new_tokens=4)
    assert lengths == [5, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: should be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0: should be 0, for the likeliest token, or a number above it"),
        ({"temperature": math.nan}, "temperature=nan: should be 0, for the likeliest token, or a number above it"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0: should be at least 1, the number of tokens to draw from"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0: should be a probability above 0 and at most 1"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5: should be a probability above 0 and at most 1"),
        (
            {"top_k": 3},
            "top_k=3: changes nothing at temperature=0, which takes the likeliest token; set a temperature above 0, such as temperature=1, or leave it out",
        ),
        (
            {"top_p": 0.5},
            "top_p=0.5: changes nothing at temperature=0, which takes the likeliest token; set a temperature above 0, such as temperature=1, or leave it out",
        ),
        ({"eos": -1}, "eos=-1: should be a token id, 0 or above"),
        ({"eos": VOCAB}, "eos=61: is never said, since the model's vocabulary ends at 60; leave it out"),
        ({"eos": 10**30}, f"eos={10**30}: is never said, since the model's vocabulary ends at 60; leave it out"),
        ({"temperature": 1.0, "seed": 10**23}, f"seed={10**23}: should be from 0 to 2^63 - 1"),
        ({"seed": -1}, "seed=-1: should be from 0 to 2^63 - 1"),
    ],
)
def test_an_option_out_of_range_is_one_line(options, line):
    with pytest.raises(UserError) as refusal:
        generate(build(), draw_tokens(seq=4), **{"max_new_tokens": 2, **options})
    assert str(refusal.value) == line


def test_a_prompt_that_is_empty_or_of_other_tokens_is_one_line():
    with pytest.raises(UserError, match="^prompt: is empty; give at least one token to go on from$"):
        generate(build(), torch.zeros(1, 0, dtype=torch.long), max_new_tokens=2)
    with pytest.raises(UserError, match=f"^prompt: has token 61, and the model's vocabulary ends at {VOCAB - 1}$"):
        generate(build(), torch.tensor([[3, 61]]), max_new_tokens=2)


def test_a_table_of_positions_is_filled_to_its_end_and_no_further():
    decoder = build(pos=make("pos", "learned", max_positions=8))
    assert generate(decoder, draw_tokens(seq=5), max_new_tokens=4).shape[1] == 9  # the ninth is read by nobody
    with pytest.raises(UserError) as refusal:
        generate(decoder, draw_tokens(seq=5), max_new_tokens=5)
    assert str(refusal.value) == (
        "max_new_tokens=5: after a prompt of 5 tokens goes beyond the table of 8 positions; use at most 4, a shorter prompt,"
        " or a scheme without a table"
    )
    padded = generate(decoder, draw_tokens(seq=7), max_new_tokens=4, padding=torch.tensor([2, 3]))
    assert padded.shape[1] == 11


# --- a run's directory --------------------------------------------------------------------------

SMALL = [
    "size=nano",
    "train.steps=2",
    "train.train_len=16",
    "train.batch_size=4",
    "eval.tokens=128",
    "eval.lengths=[1]",
    "probe.every=null",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the default blocks, in a directory whose name holds an = sign."""
    folder = tmp_path_factory.mktemp("run")
    asked = ["pos=rope", *SMALL, f"output={folder}/experiments/runs"]
    directory = lab.run(archlab.compose(*asked), asked, plots=False)
    assert "pos=rope" in directory.name
    return directory


@pytest.fixture
def copied(run, tmp_path):
    for file in ("config.yaml", "overrides.yaml", "model.safetensors"):
        (tmp_path / file).write_bytes((run / file).read_bytes())
    return tmp_path


def test_the_verb_goes_on_from_a_prompt(run, command, monkeypatch):
    relative = run.relative_to(run.parents[2])
    words = ["generate", str(relative), "prompt=In the beginning: a = b, é", "max_new_tokens=9"]
    monkeypatch.chdir(run.parents[2])
    done = command(*words)
    assert done.status == 0, done.err
    prompt = "In the beginning: a = b, é".encode()
    _, decoder = load_run(run)
    expected = by_full_forwards(decoder.eval(), torch.tensor([list(prompt)]), 9)
    assert done.out == bytes(expected[0].tolist()).decode(errors="replace") + "\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["no/such/run", "prompt=a"],
            "no/such/run: has no config.yaml, so it is not a run; give a run's directory, as a run prints it",
        ),
        (["RUN"], "prompt: is empty; give the text to continue, as in prompt='In the beginning'"),
        (["RUN", "prompt="], "prompt: is empty; give the text to continue, as in prompt='In the beginning'"),
        (
            ["prompt=a"],
            "generate: takes one run's directory, not 0, as in archlab generate RUN prompt='In the beginning'",
        ),
        (["RUN", "prompt=a", "top_p=1.5", "temperature=1"], "top_p=1.5: should be a probability above 0 and at most 1"),
        (
            ["RUN", "prompt=a", "top_k=4"],
            "top_k=4: changes nothing at temperature=0, which takes the likeliest token; set a temperature above 0, such as temperature=1, or leave it out",
        ),
        (["RUN", "prompt=a", "max_new_tokens=0"], "max_new_tokens=0: should be greater than or equal to 1"),
        (
            ["RUN", "prompt=a", "temprature=1"],
            "temprature=1: generate has no option temprature; did you mean temperature? it has: prompt, max_new_tokens, temperature, top_k, top_p, seed",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_the_verb_refuses_in_one_line(run, words, line, capsys):
    from archlab.cli.main import main

    with pytest.raises(SystemExit) as left:
        main(["generate", *(word.replace("RUN", str(run), 1) if word == "RUN" else word for word in words)])
    said = capsys.readouterr()
    assert (left.value.code, said.err, said.out) == (2, f"archlab: {line}\n", "")


def refused(directory: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as refusal:
        load_run(directory, *overrides)
    assert "\n" not in str(refusal.value)
    return str(refusal.value).replace(str(directory), "RUN")


def test_a_run_of_a_task_has_no_text_to_go_on_from(copied, capsys):
    from archlab.cli.main import main

    config = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(config.replace("  data: text\n", "  data: copy\n"))
    with pytest.raises(SystemExit) as left:
        main(["generate", str(copied), "prompt=a"])
    assert left.value.code == 2
    assert (
        "was trained on data=copy, whose tokens are not bytes of text; give a run of data=text, python or file"
        in capsys.readouterr().err
    )


def test_a_run_is_read_back_as_it_was(run):
    cfg, decoder = load_run(run)
    stored = load_file(run / "model.safetensors")
    assert all(torch.equal(weight, stored[name]) for name, weight in decoder.state_dict().items() if name in stored)
    assert (cfg.choices.pos, cfg.pos.base, len(decoder.layers)) == ("rope", 10000.0, cfg.size.n_layers)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["n_params"] == sum(weight.numel() for weight in decoder.parameters())


def test_the_same_weights_under_another_configuration(run):
    _, as_it_was = load_run(run)
    cfg, decoder = load_run(run, "pos.base=500", "mask=window", "mask.window=3")
    assert (cfg.pos.base, cfg.mask.window, decoder.mask.window) == (500, 3, 3)
    own, other = as_it_was.state_dict(), decoder.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    tokens = torch.arange(24)[None]
    assert not torch.allclose(decoder(tokens), as_it_was(tokens))
    assert torch.equal(load_run(run, "seed=5")[1](tokens), as_it_was(tokens))


def test_weights_of_another_model_are_named(run):
    assert "are another model's weights" in refused(run, "pos=learned")
    assert "are another model's weights" in refused(run, "size.n_layers=3")
    assert refused(run, "pos.bse=5").startswith("pos.bse")


def test_damaged_files_are_named(copied):
    weights = copied / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert refused(copied).startswith("RUN/model.safetensors: cannot be read:")
    stored = load_file_of(whole, copied)
    stored["layers.0.mixer.q_proj.weight"][1, 2] = math.nan
    save_file(stored, weights)
    assert (
        refused(copied)
        == "RUN/model.safetensors: layers.0.mixer.q_proj.weight holds a number that is not finite; a run that diverged has no use for its weights"
    )
    del stored["layers.0.mixer.q_proj.weight"]
    save_file(stored, weights)
    assert "are another model's weights" in refused(copied)
    weights.unlink()
    assert refused(copied) == "RUN: has no model.safetensors; give the directory of a run that ended"


def load_file_of(whole: bytes, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "whole.safetensors").write_bytes(whole)
    return load_file(folder / "whole.safetensors")


@pytest.mark.parametrize("text", ["a: [", "5", "size: {}", "{}"])
def test_a_configuration_that_is_none_is_named(copied, text):
    (copied / "config.yaml").write_text(text)
    assert refused(copied).startswith("RUN/config.yaml: is no configuration of this version's runs:")


def test_a_run_whose_overrides_tell_another_story_can_be_loaded_but_not_changed(copied):
    (copied / "overrides.yaml").write_text("- size=nano\n- pos=alibi\n")
    load_run(copied)
    assert "its overrides no longer compose to the pos in its config.yaml" in refused(copied, "mask=window")


def test_a_sequence_that_has_ended_says_its_end_again_whatever_is_likeliest():
    new, ended = keep_ended(torch.tensor([5, 7, 3, 4]), torch.tensor([True, False, False, True]), eos=3)
    assert new.tolist() == [3, 7, 3, 3] and ended.tolist() == [True, False, True, True]
    assert keep_ended(torch.tensor([3]), torch.tensor([False]), eos=None)[1].tolist() == [False]
