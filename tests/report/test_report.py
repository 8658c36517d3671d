"""What a reader of a run sees: numbers as written, tables at 80 columns, plots, progress."""

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from archlab.report import plots, progress, tables

NAN, INF = float("nan"), float("inf")


def step_record(step, loss=2.5, grad_norm=0.8, clipped=False, **more):
    record = {"step": step, "tokens": 2048 * step, "loss": loss, "lr": 3e-3, "grad_norm": grad_norm, "clipped": clipped}
    return record | {"tokens_per_second": 21234.0} | more


def layer_records(rms):
    rest = {"grad_norm": 0.5, "update_ratio": 1e-3, "attention_entropy": 2.0, "max_score": 9.0}
    return [rest | {"activation_rms": value} for value in rms]


METRICS = [
    step_record(1, loss=6.9, grad_norm=4.0, clipped=True, layers=layer_records([1.0, 1.1, 1.2])),
    step_record(10, loss=4.2, grad_norm=1.5, clipped=True),
    step_record(20, loss=3.1, grad_norm=0.7, val_loss=3.2, layers=layer_records([1.5, 2.1, 2.2])),
    step_record(30, loss=2.6, grad_norm=0.6, layers=layer_records([1.6, 2.9, 4.2])),
]
DIVERGING = [*METRICS[:2], step_record(11, loss=None, grad_norm=INF, layers=layer_records([1.5, None, NAN]))]
LENGTH = [
    {"eval_len": 128, "loss": 2.1, "loss_last": 2.0, "late_ratio": 1.0, "protocol": "disjoint"},
    {"eval_len": 256, "loss": 2.4, "loss_last": 2.5, "late_ratio": 1.2345, "protocol": "disjoint"},
    {"eval_len": 512, "loss": 12.9485, "loss_last": 13.4142, "late_ratio": 6.1, "protocol": "disjoint"},
    {"eval_len": 1024, "loss": None, "loss_last": None, "protocol": "disjoint", "note": "not defined beyond 512"},
]
TASK_LENGTH = [
    record | {"late_ratio": None, "exact_match": 0.5, "token_accuracy": 0.9375} for record in LENGTH[:3]
] + LENGTH[3:]
POSITIONS = [
    {"eval_len": n, "position": list(range(n)), "loss": [2 + 1 / (p + 1) for p in range(n)]} for n in (128, 256, 512)
]
SUMMARY = {
    "status": "completed",
    "leaking": False,
    "choices": {"norm": "rms", "residual": "pre", "ffn": "swiglu"},
    "n_params": 1_234_567,
    "flops_per_token": 4.5e6,
    "train_flops_per_token": 13.5e6,
    "kv_bytes_per_token": 12_595,
    "train_loss": 1.93124,
    "val_loss": 2.02135,
    "length": LENGTH,
    "length_verdict": {"verdict": "degrades", "ratio": 1.3312, "reason": "1.33 times, above the limit of [1.05]"},
    "stability": {
        "max_grad_norm": 3.5123,
        "clipped_share": 0.1234,
        "loss_spike_score": 0.0123,
        "max_activation_rms": 6.789,
        "min_attention_entropy": 0.4321,
        "max_attention_score": 23.456,
        "first_nonfinite": None,
        "max_update_ratio": 0.00321,
    },
    "tokens_per_second": 21234.5,
    "wall_seconds": 83.2,
    "first_step_seconds": 1.234,
    "seed": 7,
    "device": "cuda",
    "dtype": "bf16",
    "train_len": 128,
    "corpus_sha256": "3fa9c1d2" * 8,
}
DIVERGED = SUMMARY | {
    "status": "diverged",
    "train_loss": None,
    "val_loss": NAN,
    "length": [],
    "length_verdict": None,
    "stability": {
        "max_grad_norm": INF,
        "first_nonfinite": {"step": 37, "where": "layers.2.ffn", "quantity": "activation"},
    },
}


def told(renderable, width=80):
    """What a file gets to read, a line an entry."""
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue().splitlines()


def flat(lines):
    return " ".join(" ".join(lines).split())


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


class TestNumbers:
    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            (tables.count(0), "0"),
            (tables.count(512), "512"),
            (tables.count(999.6), "1k"),
            (tables.count(12_345), "12.3k"),
            (tables.count(1_234_567), "1.23M"),
            (tables.count(999_600), "1M"),
            (tables.count(7e16), "70000T"),
            (tables.flop(4.5e9), "4.5 GFLOP"),
            (tables.flop(1.28e18), "1.28 EFLOP"),
            (tables.size(12_595), "12.3 KiB"),
            (tables.size(1024), "1 KiB"),
            (tables.size(1023 * 1024), "0.999 MiB"),
            (tables.percent(0.1234), "12.3%"),
            (tables.nats(2.34567), "2.3457"),
            (tables.nats(0.3, "+"), "+0.3000"),
            (tables.nats(-0.3, "+"), "-0.3000"),
            (tables.nats(123_456.0), "1.23e+05"),
            (tables.nats(NAN), "nan"),
            (tables.nats(INF), "inf"),
            (tables.number(0.0123), "0.0123"),
            (tables.number(-INF), "-inf"),
            (tables.duration(1.234), "1.23 s"),
            (tables.duration(12.34), "12.3 s"),
            (tables.duration(59.97), "1 min 0 s"),
            (tables.duration(83.2), "1 min 23 s"),
            (tables.duration(7380), "2 h 3 min"),
        ],
    )
    def test_is_written_as(self, written, expected):
        assert written == expected

    @pytest.mark.parametrize(
        "write",
        [tables.count, tables.flop, tables.size, tables.percent, tables.nats, tables.number, tables.duration],
    )
    def test_every_way_of_writing_copes_with_what_is_no_number(self, write):
        assert write(None) == "n/a"
        assert write(NAN).startswith("nan")
        assert write(INF).startswith("inf")


class TestResult:
    def test_holds_the_numbers_at_80_columns(self):
        lines = told(tables.result(SUMMARY))
        text = flat(lines)
        assert max(map(len, lines)) <= 80
        for expected in (
            "norm=rms residual=pre ffn=swiglu",
            "training loss 1.9312 nats per token",
            "validation loss 2.0213 nats per token",
            "speed 21.2k tokens/s",
            "time 1 min 23 s, of which the first step 1.23 s",
            "parameters 1.23M",
            "forward pass 4.5 MFLOP per token",
            "forward + backward 13.5 MFLOP per token",
            "key-value cache 12.3 KiB per token",
            "trained on 128 tokens a sequence",
            "ran on cuda, bf16, seed 7",
            "largest gradient norm 3.51",
            "steps that were clipped 12.3%",
            "smallest attention entropy 0.432 nats",
            "first not finite none",
            "largest update/weight ratio 0.00321",
        ):
            assert expected in text

    def test_length_rows_compare_the_same_tokens_with_the_training_length(self):
        text = flat(told(tables.result(SUMMARY)))
        assert "128 1x 2.1000 2.0000 1.000" in text
        assert "256 2x 2.4000 2.5000 1.234" in text
        assert "512 4x 12.9485 13.4142 6.100" in text
        assert "1024 8x n/a n/a n/a" in text
        assert "1024 tokens: not defined beyond 512" in text
        assert "exact" not in text

    def test_a_task_adds_its_shares_and_nothing_is_cut(self):
        lines = told(tables.result(SUMMARY | {"length": TASK_LENGTH}))
        assert max(map(len, lines)) <= 80
        assert "512 4x 12.9485 13.4142 50.0% 93.8%" in flat(lines)
        assert not any("…" in line for line in lines)

    def test_verdict_is_in_words_with_the_reason_as_written(self):
        text = flat(told(tables.result(SUMMARY)))
        assert "Length degrades: longer sequences are predicted worse" in text
        assert "(1.33 times, above the limit of [1.05])." in text

    @pytest.mark.parametrize("verdict", ["improves", "holds", "degrades", "collapses", "undecided"])
    def test_every_verdict_has_words(self, verdict):
        bare = {"verdict": verdict, "ratio": None, "reason": ""}
        text = flat(told(tables.result(SUMMARY | {"length_verdict": bare})))
        assert f"Length {verdict}: " in text
        assert "ratio" not in text.split(f"Length {verdict}: ")[1]

    def test_divergence_is_told_with_step_layer_and_quantity(self):
        text = flat(told(tables.result(DIVERGED)))
        told_first = "at step 37 the activation in the ffn of layer 2 (counted from 0) was no longer finite"
        assert text.startswith(f"Diverged: {told_first}, and training ended there.")
        assert "training loss n/a validation loss nan nats per token" in text
        assert "largest gradient norm inf" in text
        assert "Held-out" not in text

    @pytest.mark.parametrize(
        ("where", "quantity", "expected"),
        [
            ("loss", "loss", "at step 1 the loss was no longer finite"),
            ("head", "gradient", "at step 1 the gradient in head was no longer finite"),
            (
                "layers.0",
                "activation",
                "at step 1 the activation in the output of layer 0 (counted from 0) was no longer finite",
            ),
        ],
    )
    def test_divergence_outside_a_branch(self, where, quantity, expected):
        assert tables.divergence({"step": 1, "where": where, "quantity": quantity}) == expected

    def test_leaking_comes_first_and_in_red(self):
        console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
        console.print(tables.result(SUMMARY | {"leaking": True}))
        assert console.file.getvalue().startswith("\x1b[1;31mLEAKING: ")
        assert "LEAKING" not in flat(told(tables.result(SUMMARY)))

    def test_a_run_with_next_to_nothing_to_tell(self):
        assert "Stopped" in flat(told(tables.result({"status": "stopped"})))

    def test_assembled_wraps_words_and_keeps_options(self):
        rows = [("norm", "rms", "divides by the root mean square " * 4), ("mixer", "mha", "as many keys as queries")]
        lines = told(tables.assembled(rows, SUMMARY))
        text = flat(lines)
        assert max(map(len, lines)) <= 80
        assert "norm rms divides" in text
        assert "mixer mha as many keys as queries" in text
        assert "parameters 1.23M" in text

    def test_a_long_list_of_layers_leaves_room_for_how_they_differ(self):
        local = ", ".join(f"{first}-{first + 4}" for first in range(0, 60, 6))
        layers = [(f"layers {local} (52 of 62)", "mask=window"), ("layers 5::6 (10 of 62)", "mask=causal")]
        lines = told(tables.assembled([("norm", "rms", "")], SUMMARY, layers))
        text = flat(lines)
        assert max(map(len, lines)) <= 80
        assert "mask=window" in text and "layers 5::6 (10 of 62) mask=causal" in text and "(52 of 62)" in text


class TestPlots:
    def test_all_are_written_and_none_is_blank(self, tmp_path):
        written = plots.draw_all(tmp_path / "new", METRICS, SUMMARY, POSITIONS)
        assert [path.name for path in written] == ["loss.png", "layers.png", "positions.png", "lengths.png"]
        for path in written:
            pixels = imread(path)
            assert min(pixels.shape[:2]) > 400
            assert pixels[..., :3].std() > 0.05

    def test_a_run_that_diverged_at_once_leaves_no_empty_picture(self, tmp_path):
        first = [step_record(1, loss=NAN, grad_norm=None, layers=layer_records([None, NAN, INF]))]
        first[0]["layers"] = [layer | {"grad_norm": None} for layer in first[0]["layers"]]
        undefined = DIVERGED | {"length": [{"eval_len": 128, "loss": None, "loss_last": None, "note": "diverged"}]}
        lost = [{"eval_len": 128, "position": [0, 1], "loss": [None, NAN]}]
        assert plots.draw_all(tmp_path, first, undefined, lost) == []
        assert plots.draw_all(tmp_path, [], DIVERGED, []) == []
        assert list(tmp_path.iterdir()) == []

    def test_a_single_step_is_seen(self, tmp_path):
        figure = plots.training_figure(METRICS[:1])
        assert figure.axes[0].lines[0].get_marker() == "."
        assert plots.training(METRICS[:1], tmp_path / "one.png").exists()
        assert plots.layers(METRICS[:1], tmp_path / "layers.png").exists()

    def test_leaking_is_in_every_title(self):
        for figure in (
            plots.training_figure(METRICS, leaking=True),
            plots.layers_figure(METRICS, leaking=True),
            plots.by_position_figure(POSITIONS, 128, leaking=True),
            plots.by_length_figure(LENGTH, 128, leaking=True),
        ):
            assert figure.get_suptitle().startswith("LEAKING: ")

    def test_training_shows_validation_and_clipped_steps(self):
        upper, lower = plots.training_figure(METRICS).axes
        assert upper.get_ylabel() == "loss (nats per token)"
        assert lower.get_xlabel() == "step (61.4k tokens by the last)"
        assert legend(upper) == ["training", "validation"]
        assert legend(lower) == ["gradient norm", "clipped (2 of 4 logged)"]
        assert lower.lines[1].get_xydata().tolist() == [[1, 4.0], [10, 1.5]]
        assert (upper.get_yscale(), lower.get_yscale()) == ("linear", "log")

    def test_a_validation_loss_of_zero_is_a_point_and_a_lost_one_is_not(self):
        metrics = [*METRICS, step_record(40, val_loss=0.0), step_record(50, val_loss=None)]
        upper, _ = plots.training_figure(metrics).axes
        assert upper.lines[1].get_xydata().tolist() == [[20, 3.2], [40, 0.0]]

    def test_training_marks_what_is_not_finite(self):
        upper, lower = plots.training_figure(DIVERGING).axes
        for axes in (upper, lower):
            cross = axes.lines[legend(axes).index("not finite")]
            assert cross.get_xdata().tolist() == [11]
        assert math.isnan(upper.lines[0].get_ydata()[-1])

    def test_a_loss_that_shot_up_gets_a_log_axis(self):
        upper, _ = plots.training_figure([*METRICS, step_record(40, loss=4e6)]).axes
        assert upper.get_yscale() == "log"

    def test_layers_show_the_first_middle_and_last_look(self):
        rms, gradient = plots.layers_figure(METRICS).axes
        assert (rms.get_ylabel(), gradient.get_ylabel()) == ("activation RMS", "gradient norm")
        assert legend(rms) == ["step 1", "step 20", "step 30"]
        assert rms.lines[2].get_ydata().tolist() == [1.6, 2.9, 4.2]
        assert rms.get_yscale() == gradient.get_yscale() == "log"

    def test_layers_mark_where_numbers_ended(self):
        rms, gradient = plots.layers_figure(DIVERGING).axes
        assert rms.lines[legend(rms).index("not finite")].get_xdata().tolist() == [1, 2]
        assert "not finite" not in legend(gradient)

    def test_positions_have_a_line_a_length_and_ticks_at_multiples(self, tmp_path):
        figure = plots.by_position_figure(POSITIONS, 128)
        axes = figure.axes[0]
        assert legend(axes) == ["128 tokens (1x)", "256 tokens (2x)", "512 tokens (4x)", "trained on 128 tokens"]
        labels = [text.get_text() for text in axes.get_xticklabels()]
        assert labels == ["1", "2", "4", "8", "16", "32", "64", "128\n1x", "256\n2x", "512\n4x"]
        assert "mean of 1/4 of a doubling" in axes.get_xlabel()
        assert plots.by_position(POSITIONS, 128, tmp_path / "positions.png").exists()

    def test_a_training_length_that_is_no_power_of_two(self):
        odd = [{"eval_len": 200, "position": list(range(200)), "loss": [2.0] * 200}]
        labels = [text.get_text() for text in plots.by_position_figure(odd, 100).axes[0].get_xticklabels()]
        assert labels == ["1", "2", "4", "8", "16", "32", "100\n1x", "200\n2x"]

    def test_bins_average_and_stop_at_the_training_length(self):
        centres, means = plots.binned(list(range(16)), [1.0] * 8 + [3.0] * 8, train_len=8)
        assert set(means) == {1.0, 3.0}
        assert (means == 3.0).tolist() == (centres > 8).tolist()
        # A quarter of a doubling above 8 ends at 9.51, 11.31, 13.45 and 16.
        assert np.allclose(centres[centres > 8], [9, 110**0.5, 156**0.5, (14 * 15 * 16) ** (1 / 3)])

    def test_no_positions_make_no_bins(self):
        centres, means = plots.binned([], [], train_len=8)
        assert len(centres) == len(means) == 0
        assert plots.by_position_figure([{"eval_len": 8, "position": [], "loss": []}], 8) is None

    def test_a_bin_with_a_lost_number_is_lost(self):
        _, means = plots.binned([0, 1, 14, 15], [1.0, 2.0, None, 3.0], train_len=8)
        assert means[:2].tolist() == [1.0, 2.0]
        assert math.isnan(means[2])

    def test_lengths_say_where_the_model_is_not_defined(self):
        (axes,) = plots.by_length_figure(LENGTH, 128).axes
        assert legend(axes) == ["whole window", "end of the window", "not defined beyond 512", "trained on 128 tokens"]
        assert axes.lines[0].get_xydata().tolist() == [[128, 2.1], [256, 2.4], [512, 12.9485]]
        assert axes.lines[2].get_xdata().tolist() == [1024]
        assert axes.get_xlabel() == "evaluation length (tokens)"
        assert [text.get_text() for text in axes.get_xticklabels()] == ["128\n1x", "256\n2x", "512\n4x", "1,024\n8x"]

    def test_lengths_of_a_task_add_a_panel_of_shares(self):
        _, shares = plots.by_length_figure(TASK_LENGTH, 128).axes
        assert shares.get_ylabel() == "share that is right"
        assert legend(shares)[:2] == ["whole answers", "single tokens"]
        assert shares.lines[0].get_ydata().tolist() == [0.5, 0.5, 0.5]

    def test_drawing_leaves_matplotlibs_settings_alone(self):
        import matplotlib

        before = dict(matplotlib.rcParams)
        plots.training_figure(METRICS)
        assert dict(matplotlib.rcParams) == before
        assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


class TestProgress:
    def test_outside_a_terminal_it_is_ten_plain_lines(self):
        console = Console(file=io.StringIO(), width=40)
        with progress.TrainingProgress(400, console=console) as bar:
            for step in range(1, 401):
                bar.advance(step, 3.12345, 0.8123, 21234.5)
        lines = console.file.getvalue().splitlines()
        assert len(lines) == 10
        assert lines[0].startswith("train   40/400  loss 3.1235  grad 0.812  21.2k tok/s  ETA ")
        assert lines[-1].startswith("train  400/400  loss 3.1235  grad 0.812  21.2k tok/s  took ")

    def test_a_short_training_tells_every_step(self):
        console = Console(file=io.StringIO())
        with progress.TrainingProgress(3, console=console) as bar:
            for step, loss in ((1, 2.0), (2, NAN), (3, None)):
                bar.advance(step, loss, INF, None)
        lines = console.file.getvalue().splitlines()
        assert [line.split("  ")[1] for line in lines] == ["1/3", "2/3", "3/3"]
        assert "loss nan  grad inf  n/a tok/s" in lines[1]

    def test_a_resumed_training_goes_on_from_where_it_was(self):
        console = Console(file=io.StringIO())
        with progress.TrainingProgress(100, start=95, console=console) as bar:
            for step in range(96, 101):
                bar.advance(step, 2.0, 1.0, 1e4)
        assert [line.split()[1] for line in console.file.getvalue().splitlines()] == ["100/100"]

    def test_in_a_terminal_one_line_holds_everything_at_80_columns(self):
        terminal = {"TERM": "xterm"}
        console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None, _environ=terminal)
        with progress.TrainingProgress(400, console=console) as bar:
            bar.advance(123, 3.12345, 12.345, 21234.5)
        last = [line for line in console.file.getvalue().splitlines() if "train" in line][-1]
        assert "123/400  loss 3.1235  grad 12.3  21.2k tok/s  ETA" in last
        assert "…" not in last

    def test_the_default_is_stderr(self, capsys):
        with progress.TrainingProgress(1) as bar:
            bar.advance(1, 2.0, 1.0, 1e4)
        out, err = capsys.readouterr()
        assert out == ""
        assert "1/1  loss 2.0000" in err

    def test_track_passes_everything_on_and_tells_once(self):
        console = Console(file=io.StringIO())
        assert list(progress.track(iter("abcd"), "evaluate 256 tokens", 4, console)) == list("abcd")
        lines = console.file.getvalue().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("evaluate 256 tokens  4/4  took ")

    def test_track_of_nothing(self):
        assert list(progress.track([], "nothing", 0, Console(file=io.StringIO()))) == []


@pytest.mark.parametrize("modules", ["archlab.report", "archlab.report.tables, archlab.report.progress"])
def test_the_room_costs_no_more_than_it_says(modules):
    code = f"import sys, {modules}; print([m for m in ('torch', 'hydra', 'matplotlib', 'numpy') if m in sys.modules])"
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert told.stdout.strip() == "[]"
