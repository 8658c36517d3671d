"""The HTML page: whole, escaped, self-contained; and alive in a browser where there is one."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from records import write_run

from archlab.base.errors import UserError
from archlab.cli.main import main
from archlab.records.reader import read_run
from archlab.report.page.comparison import provenance
from archlab.report.page.curves import ArmCurves, seconds, training
from archlab.report.written import write_report
from archlab.train.clock import Clock

VOID = {"meta", "link", "img", "br", "hr", "input"}
EVIL = "<script>document.title='hurt'</script>"

CLAIM = {
    "name": "mine", "sentence": f"A beats B {EVIL}.", "source": "arXiv:1706.03762, sec. 3; a note", "verdict": "REFUTED", "reason": "b is lower",
    "regime": "2 layers", "seconds": 12.5, "seeds": 3,
    "parts": [{"text": "lower", "arms": ["a", "b"], "metric": "val_loss", "effect": 0.5, "interval": [0.4, 0.6], "p": 0.001, "verdict": "REFUTED",
               "smallest_effect": 0.01, "values": {"a": [2.5, None], "b": [2.0, 2.1]}}],
}  # fmt: skip


class Checked(HTMLParser):
    """Every tag closed in turn; what is loaded; the text outside scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.loaded, self.links, self.text, self.headings = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.loaded += [given[name] for name in ("src", "srcset", "data", "poster") if given.get(name)]
        if tag == "link" and given.get("href"):
            self.loaded.append(given["href"])
        if tag == "a":
            self.links.append(given["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two arms at two seeds, one more that diverged, a damaged run, a claim."""
    folder = tmp_path_factory.mktemp("page")
    for seed in (0, 1):
        write_run(folder / "runs", "norm=layer", seed=seed, val_loss=2.0 + seed / 10)
        write_run(folder / "runs", "norm=rms", seed=seed, val_loss=2.3 + seed / 10)
        write_run(folder / "runs", f"pos={EVIL}", seed=seed, val_loss=None, name=f"hurt-{seed}")
    damaged = folder / "runs" / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text("seed: 0")
    (damaged / "summary.json").write_text("{")
    (folder / "mine").mkdir()
    (folder / "mine" / "result.json").write_text(json.dumps(CLAIM))
    return write_report([str(folder / "runs"), str(folder / "mine")], folder / "report.html")


@pytest.fixture(scope="module")
def page(written):
    return written.read_text(encoding="utf-8")


def test_every_tag_is_closed_and_nothing_is_loaded_from_elsewhere(page):
    checked = Checked(page)
    assert all(source.startswith("data:") for source in checked.loaded)
    assert all(link.startswith(("#", "https://arxiv.org/abs/")) for link in checked.links)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page


def test_text_of_runs_and_claims_stays_text(page):
    assert EVIL not in page
    assert EVIL in " ".join(Checked(page).text)


def test_the_page_says_what_was_asked_seen_and_left_out(page):
    text = " ".join("".join(Checked(page).text).split())
    assert text.count("Does any of 2 arms differ in val_loss from") == 2  # the title of the window and of the page
    assert "damaged" in text and "Left out" in text
    assert "REFUTED" in text and "0.4 to 0.6" in text
    assert re.search(r"python -m archlab .*norm=layer", text)


def test_a_paper_s_number_leads_to_the_paper(page):
    assert "https://arxiv.org/abs/1706.03762" in Checked(page).links


def test_the_verdict_stands_beside_the_arm(page):
    headings = re.findall(r"<th[^>]*><button[^>]*>([^<]*)</button>", page)
    at = headings.index("arm")
    assert headings[at + 1] == "verdict"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "report: name runs or claims"),
        (["nowhere"], "nowhere: no such run"),
        (["nowhere", "output=page.txt"], "output=page.txt: is a web page; give a name that ends in .html"),
        (["nowhere", "outptu=page.html"], "outptu=page.html: report has no option outptu; did you mean output?"),
    ],
)  # fmt: skip
def test_misuse_is_one_line_and_status_two(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        main(["report", *words])
    error = capsys.readouterr().err
    assert leaving.value.code == 2 and error.startswith(f"archlab: {told}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_readable_is_refused_and_writes_nothing(tmp_path):
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "result.json").write_text("{}")
    with pytest.raises(UserError, match="report: nothing that can be read; .*lacks name"):
        write_report([str(tmp_path / "lost")], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_glob_passes_over_the_comparisons_that_a_sweep_writes_beside_its_runs(tmp_path):
    for norm in ("layer", "rms"):
        write_run(tmp_path / "runs", f"norm={norm}")
    comparison = tmp_path / "runs" / "comparisons" / "20261101-000000"
    comparison.mkdir(parents=True)
    (comparison / "comparison.json").write_text("{}")
    page = write_report([str(tmp_path / "runs" / "*")], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "norm=rms" in page and "Left out" not in page
    with pytest.raises(UserError, match="comparisons: neither a run nor a folder of runs"):
        write_report([str(comparison.parent)], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("file", "record"),
    [("result.json", CLAIM | {"parts": [{"text": "t"}]}), ("stability_map.json", {"arms": [{"label": "a"}]})],
)
def test_a_record_whose_inside_is_damaged_is_left_out_with_a_note(file, record, tmp_path, capsys):
    for name, content in (("good", CLAIM), ("bad", record)):
        (tmp_path / name).mkdir()
        (tmp_path / name / (file if name == "bad" else "result.json")).write_text(json.dumps(content))
    write_report([str(tmp_path / "good"), str(tmp_path / "bad")], tmp_path / "report.html")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("archlab: note: left out: ") and f"bad/{file}: its record is damaged" in line
    assert not line.rstrip().endswith("leave it out")  # it is already


@pytest.mark.parametrize("damage", ["a line of its metrics", "no hash"])
def test_a_run_whose_inside_is_damaged_is_left_out_with_a_note(damage, tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path / "runs", "norm=layer", seed=seed)
        write_run(tmp_path / "runs", "norm=rms", seed=seed)
    bad = write_run(
        tmp_path / "runs", "norm=rms", seed=2, name="bad", **({"corpus_sha256": None} if damage == "no hash" else {})
    )
    if damage != "no hash":
        (bad / "metrics.jsonl").write_text('{"step": 1\n' + (bad / "metrics.jsonl").read_text())
    write_report([str(tmp_path / "runs")], tmp_path / "report.html")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("archlab: note: left out: ") and "runs/bad: its " in line


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

SELF_TEST = """
<script>
const told = {};
window.addEventListener("error", (event) => { told.error = event.message; });
window.addEventListener("load", () => setTimeout(() => {
  const figure = [...document.querySelectorAll("figure.plot")].find((plot) => plot.querySelector(".legend button"));
  const arms = () => figure.querySelector(".canvas").data.map((trace) => trace.visible);
  told.before = arms();
  figure.querySelector(".legend button").click();
  told.after = arms();
  figure.querySelector(".legend button").click();
  told.again = arms();
  const table = document.querySelector("table.sortable");
  const column = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  const button = table.tHead.rows[0].cells[0].querySelector("button");
  button.click(); told.rising = column();
  button.click(); told.falling = column();
  told.requests = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
  told.plots = [...document.querySelectorAll("figure.plot .canvas")].map((canvas) => canvas.querySelectorAll(".main-svg").length > 0);
  const out = document.createElement("pre");
  out.id = "told"; out.textContent = JSON.stringify(told);
  document.body.append(out);
}, 500));
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_in_a_browser_the_curves_toggle_the_tables_sort_and_nothing_is_asked_of_a_network(written, tmp_path):
    test = tmp_path / "test.html"
    test.write_text(written.read_text(encoding="utf-8").replace("<body>", "<body>" + SELF_TEST, 1), encoding="utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom", test.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    import html

    told = json.loads(html.unescape(found[1]))
    assert "error" not in told and not re.search(r"CONSOLE.*(Error|Refused|Uncaught)", done.stderr), done.stderr[-2000:]
    assert all(told["before"]) and not all(told["after"]) and told["again"] == told["before"]
    assert told["rising"] == told["falling"][::-1] and len(set(told["rising"])) > 1
    assert told["requests"] == [] and told["plots"] and all(told["plots"])


def test_the_seconds_of_a_curve_are_those_since_the_first_step_was_done():
    """Of two steps of 100 tokens the second took 4 s, in which 8 s were shown; after ten steps the error was a ninth."""
    speed = Clock(tokens_per_step=100)
    speed.steps, speed.last_done = 2, 4.0
    assert seconds({"step": 2, "tokens": 200, "tokens_per_second": speed.tokens_per_second}) == pytest.approx(4.0)
    speed.steps, speed.last_done = 10, 36.0
    assert seconds({"step": 10, "tokens": 1000, "tokens_per_second": speed.tokens_per_second}) == pytest.approx(36.0)
    assert seconds({"step": 1, "tokens": 100, "tokens_per_second": None}) is None


@pytest.mark.parametrize(
    ("pack", "axes"), [(None, ["steps", "tokens", "FLOPs", "seconds"]), (4, ["steps", "tokens", "FLOPs"])]
)
def test_curves_over_seconds_are_those_of_runs_that_were_timed_alike(pack, axes, tmp_path):
    """A run in a pack of four, which takes as long for each as for all, stood at four times the seconds of one by itself."""
    arms = []
    for word, of in (("pos=rope", None), ("pos=alibi", pack)):
        directory = write_run(tmp_path, word, pack=of)
        lines = [{"step": step, "tokens": 96 * step, "loss": 2.0, "tokens_per_second": 50.0} for step in (2, 4)]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        arms.append(ArmCurves(word, [read_run(directory)]))
    figure = training(arms)
    assert figure is not None and [view.name for view in figure.views] == axes


def test_the_time_of_all_runs_counts_a_pack_once(tmp_path):
    """A pack of three that took 30 s stood there as 90 s."""
    packed = [read_run(write_run(tmp_path, "pos=rope", seed=seed, pack=3, wall_seconds=30.0)) for seed in (0, 1, 2)]
    alone = read_run(write_run(tmp_path, "pos=alibi", wall_seconds=12.0))
    assert dict(provenance([*packed, alone]))["time of all runs"] == "42.0 s"
