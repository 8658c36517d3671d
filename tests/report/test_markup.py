"""Text that comes from files is text wherever it is written; and no number is cut, however narrow the terminal."""

import io
import json
import re
import shutil
from contextlib import suppress
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from records import write_run
from rich.console import Console
from rich.text import Text

from archlab.cli import main as cli
from archlab.diagram.canvas import Canvas, document
from archlab.report import bills, comparison, preflight, stability_map, tables
from archlab.report import claims as claims_pages
from archlab.report import diff as diff_tables
from archlab.report.stability_map import figure as map_figure
from archlab.report.verify import findings

EVIL = "[red]x[/red] <b>y</b> *z* `w` [l](http://h) ![i](http://h) | q $\\frac{1}$ _e_ ~~s~~ &amp; </script>"
CODES = "\x1b[31m"


def comparison_record(label="norm=layer", needs=12):
    others = {
        "n": 3,
        "diverged": 0,
        "n_params": 857344,
        "train_flops_per_token": 5.73e6,
        "seeds": [0, 1, 2],
        "runs": [],
        "overrides": [],
    }
    at = {"steps": 1.44251, "tokens": 1.44252, "flops": 1.44253, "seconds": 1.44254}
    base = others | {"label": "norm=rms", "rank": 1, "mean": 1.632414, "sd": 0.012345, "values": [1.62, 1.63, 1.64], "at_equal": at, "effect": None,
                     "interval": None, "level": None, "e": None, "p": None, "verdict": None, "alone": None, "survives": None,
                     "seeds_needed": None, "runs_needed": None, "minutes_needed": None, "failed": []}  # fmt: skip
    arms = [base] + [
        base | {"label": f"{label} {i}" if i else label, "rank": 2 + i, "effect": -0.123456, "interval": [-0.234567, -0.012345], "level": 0.95 + i / 100,
                "e": 7.1234, "p": 0.0246, "verdict": "open", "seeds_needed": needs}
        for i in range(2)
    ]  # fmt: skip
    return {"question": f"Does {label} differ?", "metric": "val_loss", "unit": "nats per token", "lower_is_better": True, "baseline": "norm=rms",
            "smallest_effect": 0.01, "alpha": 0.05, "noise": {"sd": 0.012345, "n": 3}, "notes": [f"note of {label}"], "arms": arms}  # fmt: skip


def chart(label="residual=deep"):
    cells = [
        {
            "lr": lr,
            "n_layers": 6,
            "warmup": 100,
            "seeds": [0],
            "losses": [2.5],
            "loss": 2.5,
            "plateau": 3.1,
            "status": "trained",
        }
        for lr in (1e-3, 3e-3, 1e-2)
    ]
    row = {
        "n_layers": 6,
        "warmup": 100,
        "lrs": [1e-3, 3e-3, 1e-2],
        "best_loss": 2.5123,
        "best_lr": 0.00316,
        "lr_sensitivity": 0.1234,
        "largest_stable_lr": 0.01,
        "stable_up_to": 0.01,
        "at_edge": True,
    }
    return {"arms": [{"label": label, "cells": cells, "rows": [row]}], "notes": [f"note of {label}"]}


def claim(text="mine"):
    part = {"text": text, "told": text, "form": "difference", "arms": [text, "b"], "metric": "val_loss", "over": {}, "reduce": None, "expect": "below", "than": 0.0,
            "smallest_effect": 0.01, "effect": -0.12345, "interval": [-0.23456, -0.01234], "verdict": "SUPPORTED", "values": {text: [2.1234, 2.2345], "b": [2.3456, 2.4567]}, "p": 0.01}  # fmt: skip
    return {"name": "mine", "sentence": text, "source": text, "verdict": "SUPPORTED", "reason": text, "regime": "2 layers", "seconds": 12.0, "seeds": 3, "parts": [part],
            "arms": {text: {"train": [text], "then": [text]}}, "command": "python -m archlab claims mine", "date": "2026-11-26", "versions": {"torch": "2"}}  # fmt: skip


DIFFERENCE = {
    "names": ("preset=chatglm_6b residual=deep", "experiments/runs/20261126-042012-pos=local_global"), "blocks": [("norm", "rms eps=1e-06", "layer eps=1e-05")], "same": ["ffn"],
    "settings": [("train.lr", "0.003", "0.001")], "sizes": [("d_model", 4096, 12288)], "parts": [("all", 6_173_286_400, 124_439_808)],
    "costs": [("flops_per_token", 1.23456e10, 2.345e9)], "memory": [("weights", 1.2346e10, 2.4891e8)], "seq_len": (2048, 4096), "weights": ("bf16", "fp32"),
}  # fmt: skip
LAYER = {
    "activation_rms": 1.23456,
    "attention_entropy": 2.34567,
    "max_score": 3.45678,
    "grad_norm": 0.0123456,
    "mixer_to_stream": 0.000123456,
    "ffn_to_stream": 1.23456e-5,
}
START = {
    "layers": [LAYER] * 2,
    "loss": 5.6,
    "uniform_loss": 5.545,
    "logit_std": 0.5,
    "growth_exponent": 0.5,
    "gradient_ratio": 2.0,
    "update": 0.1,
    "steps": 5,
    "lr": 1e-5,
}
DEPTHS = [{"placement": "pre", "depths": [2, 4, 8, 16], **{quantity: [0.0123456, 0.0234567, 0.0345678, 0.0456789] for quantity in ("gradient", "rms", "update")},
           "exponents": dict.fromkeys(("gradient", "rms", "update"), -0.512), "predicted": dict.fromkeys(("gradient", "rms", "update"), -0.5)}]  # fmt: skip
LENGTHS = [
    {
        "eval_len": 2048 * k,
        "loss": 1.63241,
        "loss_last": 1.61951,
        "late_ratio": 1.00412,
        "exact_match": 0.98765,
        "token_accuracy": 0.99123,
    }
    for k in (1, 16)
]
BILL = bills.Bill({"weights": 1.2346e10}, ["one"], {"kept": (2.6781e10, 2.01, 2.02)}, None)

PRINTED = {
    "comparison": (lambda: comparison.comparison(comparison_record()), ["1.6324", "0.0123", "-0.1235", "-0.2346,", "12", "0.025", "7.1", "857k", "5.73", "1.4425"]),
    "stability map": (lambda: stability_map.table(chart()), ["100", "2.5123", "0.1234", "0.00316", "0.01"]),
    "claims": (lambda: claims_pages.claims_table([claim()]), ["-0.123", "-0.235", "-0.0123", "3"]),
    "difference": (lambda: diff_tables.difference(DIFFERENCE), ["6,173,286,400", "124,439,808", "4096", "12288", "12.3"]),
    "start": (lambda: preflight.start(START, []), ["1.23", "2.35", "3.46", "0.0123", "0.000123", "1.23e-05"]),
    "depths": (lambda: preflight.depths(DEPTHS), ["0.0123", "0.0235", "0.0346", "0.0457", "-0.512", "-0.5"]),
    "lengths": (lambda: tables._lengths(LENGTHS, 2048), ["32768", "16x", "1.6324", "1.6195", "1.004", "98.8%", "99.1%"]),
    "memory": (lambda: bills.memory(BILL), ["12.35", "26.78", "x2.01", "x2.02"]),
    "findings": (lambda: findings("norm=rms", [{"verdict": "holds", "promise": "a promise of some length", "sentence": "it was 0.000123 at most"}]), ["0.000123"]),
}  # fmt: skip


def printed(renderable, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
@pytest.mark.parametrize("what", PRINTED)
def test_no_number_is_cut_at_any_width(what, width):
    make, numbers = PRINTED[what]
    text = printed(make(), width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    words = set(re.split(r"[\s\[\]]+", text))
    assert [number for number in numbers if number not in words] == []


def test_where_there_is_room_a_table_is_a_table_and_where_there_is_none_its_rows_are_lists():
    table = tables.make_table(("name", "left"), ("number", "right"))
    table.add_row(Text("a"), "123456789")
    assert next(line.split() for line in printed(table, 80).splitlines()) == ["name", "number"]
    assert [line.split() for line in printed(table, 15).splitlines()] == [
        ["name", "a"],
        ["number", "1234567"],
        ["89"],
        [],
    ]
    assert printed(table, 16).splitlines()[0].split() == ["name", "number"]


# --- markup ---------------------------------------------------------------------------------------


def test_a_terminal_shows_markup_as_it_stands():
    for renderable in (
        comparison.comparison(comparison_record(EVIL)),
        stability_map.table(chart(EVIL)),
        claims_pages.claims_table([claim(EVIL)]),
    ):
        assert "[red]x[/red]" in printed(renderable, 400)


@pytest.mark.parametrize(
    "text",
    [
        comparison.markdown(comparison_record(EVIL)),
        claims_pages.claims_markdown([claim(EVIL)]),
        claims_pages.readme(claim(EVIL), None),
    ],
)
def test_markdown_holds_no_markup_of_a_files_making(text):
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    allowed = {"h1", "h2", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "code", "pre", "a"}
    assert {tag.lower() for tag in re.findall(r"<([a-zA-Z0-9]+)", html)} <= allowed
    assert re.findall(r'href="([^"]*)"', html) in ([], ["mine/README.md"])
    shown = re.sub(r"<[^>]*>", "", html).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert EVIL in shown or EVIL.replace("&amp;", "&amp;amp;") in shown
    rows = re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    assert len({len(re.findall("<t[hd]", row)) for row in rows[:3]}) == 1


def test_a_formula_in_a_label_is_drawn_as_its_letters(tmp_path):
    comparison.save_all(comparison_record(EVIL), tmp_path)
    map_figure(chart(EVIL)).savefig(tmp_path / "map.png")
    claims_pages.draw_claim(claim(EVIL), tmp_path / "claim.png")
    titles = [axes.get_title() for axes in map_figure(chart("$x$ $y$")).axes if axes.get_title()]
    assert titles == [r"\$x\$ \$y\$"]


def test_a_drawing_is_xml_whatever_it_is_called():
    canvas = Canvas()
    canvas.text(0, 0, EVIL + CODES + "\x00")
    with canvas.group("norm", label=EVIL + CODES + '"'):
        pass
    root = ElementTree.fromstring(document(canvas.elements, 0, 0, 9, 9, EVIL + CODES))
    assert {element.tag.rpartition("}")[2] for element in root.iter()} == {
        "svg",
        "title",
        "defs",
        "marker",
        "path",
        "rect",
        "text",
        "g",
    }
    assert EVIL in "".join(root.itertext())


# --- codes that a terminal obeys ------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.yaml", "summary.json", "overrides.yaml", "metrics.jsonl"])
def test_an_escape_code_in_a_file_never_reaches_the_terminal(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs", "norm=rms", seed=0)
    hurt = write_run(tmp_path / "runs", "norm=layer", seed=0)
    evil = {"config.yaml": 'seed: 0\ntrain: {"\\e[31m": 1}\n', "summary.json": json.dumps({"status": CODES, "val_loss": 1.0, "corpus_sha256": "a"}),
            "overrides.yaml": '- "norm=\\e[31m"\n', "metrics.jsonl": json.dumps({"step": 1, "tokens": 1, CODES: 1}) + "\n"}  # fmt: skip
    (hurt / file).write_text(evil[file])
    for words in (["compare", "runs"], ["report", "runs"], ["compare", str(hurt)]):
        with suppress(SystemExit):
            cli.main(words)
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err and "control character" in " ".join((said.out + said.err).split())


def test_nor_does_one_in_a_directorys_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs", "norm=rms", seed=0)
    shutil.move(str(write_run(tmp_path / "runs", "norm=layer", seed=0)), tmp_path / "runs" / f"2026{CODES}")
    cli.main(["compare", "runs"])
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "control character in its name" in " ".join(said.out.split())
