"""summary.json: how a run ended. Each field is defined here once, with its type and its unit. A field that runs may be
compared by also says which way is better and how large a difference matters.

The run writes it, the reader checks it, and tables, comparisons and pages use it. A new number needs one line here and
one where it is measured (`archlab.runs.lab.summary_of`); `archlab compare RUNS metric=its_name` then knows it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, get_args, get_type_hints

from annotated_types import Interval
from pydantic import ConfigDict, Strict
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from archlab.base.metrics import Higher, Kind, Lower
from archlab.base.quantities import Count, Natural

BOUND = 1e100
"""Numbers beyond it are not measurements, and their squares overflow."""

Number = Annotated[float, Strict(), Interval(ge=-BOUND, le=BOUND)]
Amount = Annotated[float, Strict(), Interval(ge=0, le=BOUND)]

Portion = Annotated[float, Strict(), Interval(ge=0, le=1)]

NATS = "nats per token"
LOSS = Lower(NATS, smallest_effect=0.01)


class AtLength(TypedDict, total=False):
    """What was measured at one length of the evaluation, or a `note` of why nothing was."""

    eval_len: Count
    """Tokens."""

    protocol: str | None
    n_tokens: Natural | None
    loss: Annotated[Number | None, LOSS]
    loss_last: Annotated[Number | None, LOSS]
    """Over the last tokens of each sequence."""

    context_gain: Annotated[Number | None, Higher(NATS)]
    """The loss of a window's first targets less that of its last quarter."""

    late_ratio: Annotated[Number | None, Lower("times the same targets at 1x")]
    exact_match: Annotated[Portion | None, Higher("share of answers")]
    token_accuracy: Annotated[Portion | None, Higher("share of tokens")]
    first_token_share: Annotated[Number | None, Lower("share of attention's weights")]
    """What a sequence's first token has of them: much is a sink. Measured where eval.first_token_share asks for it."""

    note: str | None


class NotFinite(TypedDict):
    """The first quantity that was not finite."""

    step: Natural
    quantity: str
    where: str


class Stability(TypedDict, total=False):
    """How calmly it trained: worst values over the run; gradient norms before clipping."""

    max_grad_norm: Annotated[Number | None, Lower()]
    median_grad_norm: Annotated[Number | None, Lower()]
    clipped_share: Annotated[Portion | None, Lower("share of steps")]
    loss_spike_score: Annotated[Portion | None, Lower("share of steps")]
    max_activation_rms: Annotated[Number | None, Lower()]
    max_update_ratio: Annotated[Number | None, Lower()]
    min_attention_entropy: Annotated[Number | None, Higher("nats")]
    max_attention_score: Annotated[Number | None, Lower()]
    first_nonfinite: NotFinite | None


class Commit(TypedDict):
    """The checkout that archlab ran from."""

    commit: str
    changed: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended. A field that older runs did not write has a default."""

    __pydantic_config__ = ConfigDict(strict=True, extra="ignore")

    status: str
    """completed, stopped early, stopped or diverged."""

    val_loss: Annotated[Number | None, LOSS]
    """None for a run that diverged or was stopped."""

    corpus_sha256: str

    # what it learned
    train_loss: Annotated[Number | None, LOSS] = None
    """Mean over the last steps."""

    unigram_loss: Number | None = None
    """Nats per token of a model that knows only how often each token occurs."""

    best_step: Natural | None = None
    """The validation it stopped at, where patience ended it."""

    length: list[AtLength] | None = None
    length_verdict: dict[str, Any] | None = None
    stability: Stability | None = None
    autopsy: dict[str, Any] | None = None

    # what it was
    choices: dict[str, str] | None = None
    """The option of each group."""

    leaking: bool = False
    """Whether positions could see what they were to predict."""

    matched: Any = None
    """Sizes that were found by matching parameters or FLOPs."""

    tuned: dict[str, Any] | None = None
    """The learning rate that was found, and the losses it was found by."""

    seed: Natural | None = None
    train_len: Count | None = None
    """Tokens per sequence."""

    steps: Natural | None = None
    tokens: Natural | None = None

    # what it costs
    n_params: Annotated[Amount | None, Lower("parameters")] = None
    n_active_params: Annotated[Amount | None, Lower("parameters")] = None
    """Those that one token uses; None where it uses all."""

    n_mtp_params: Annotated[Amount | None, Lower("parameters")] = None
    """Of heads that predict tokens after the next, in training alone, and are not among n_params; None without them."""

    flops_per_token: Annotated[Amount | None, Lower("FLOPs per token")] = None
    """Of the forward pass; a multiply-add is two."""

    train_flops_per_token: Annotated[Amount | None, Lower("FLOPs per token")] = None
    kv_bytes_per_token: Annotated[Amount | None, Lower("bytes per token")] = None
    state_bytes: Annotated[Amount | None, Lower("bytes per sequence")] = None
    tokens_per_second: Annotated[Amount | None, Higher("tokens per second")] = None
    first_step_seconds: Annotated[Number | None, Lower("seconds")] = None
    wall_seconds: Annotated[Amount | None, Lower("seconds")] = None

    pack: Count | None = None
    """How many runs were trained as one program, from whose beginning `wall_seconds` counts; None: it was trained by itself."""

    # what it ran on
    dtype: str | None = None
    """Of matrix products."""

    tf32: bool = False
    """Whether float32 products were rounded as precision=tf32 has it."""

    compiled: bool = False
    """Whether the layers were compiled in training."""

    attention: Sequence[str] | None = None
    """On CUDA, torch's implementations in the order in which each layer tries them."""

    device: str | None = None
    threads: Natural | None = None
    versions: dict[str, str] | None = None
    git: Commit | None = None
    begun_with: dict[str, Any] | None = None
    """Versions and commit of the first steps, where the run was finished with others."""

    def to_record(self) -> dict[str, Any]:
        """As it is written; versions and commit of the first steps are left out where they also finished the run."""
        record = asdict(self)
        if record["begun_with"] is None:
            del record["begun_with"]
        return record


def kinds(of: type) -> Iterator[tuple[str, Kind]]:
    """The fields that runs may be compared by."""
    for name, hint in get_type_hints(of, include_extras=True).items():
        yield from ((name, part) for part in get_args(hint)[1:] if isinstance(part, Kind))


ASKED_FOR = ("first_token_share",)
"""Numbers of a length that are measured where the option of `eval` by their name asks for them."""

KINDS: dict[str, Kind] = {name: kind for of in (Summary, AtLength, Stability) for name, kind in kinds(of)}
"""By the last part of a number's name in summary.json."""


def seconds_of(summary: Mapping[str, Any]) -> float | None:
    """What a run took; of a pack's seconds, which `wall_seconds` are for each of its runs, one run's share."""
    seconds = summary.get("wall_seconds")
    return None if seconds is None else seconds / (summary.get("pack") or 1)
