"""How a model's start changes with its depth, beside what was proved of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from archlab.base.configuration import copied, plain_dict
from archlab.base.errors import UserError
from archlab.blocks.residual import DeepNorm, PostNorm, PreNorm
from archlab.config.assemble import assemble_without_weights, build
from archlab.config.groups import option, target
from archlab.data.batch import Source
from archlab.initial.measure import exponent, look_at_start, update_size
from archlab.initial.settings import PreflightSettings
from archlab.runs.assembled import machine_of, open_source, training_seed
from archlab.runs.beside import side_by_side
from archlab.runs.expected import seconds_of_a_step
from archlab.runs.workers import default_workers, worth_their_start
from archlab.train.runtime import Runtime

PLACEMENTS = {"post": PostNorm, "pre": PreNorm, "deep": DeepNorm}
"""Those of which the papers speak."""


@dataclass(frozen=True)
class Prediction:
    """What is proved of a placement: exponents in the depth, and words for what has none."""

    gradient: float | None = None
    rms: float | None = None
    update: str = ""


PREDICTIONS = {
    PostNorm: Prediction(gradient=0.0, rms=0.0, update="grows"),
    PreNorm: Prediction(gradient=-0.5, rms=0.5),
    DeepNorm: Prediction(rms=0.0, update="bounded"),
}
"""Source: arXiv:2002.04745, theorem 1 (gradient of the last feed-forward network's last matrix) and lemma 2 (size of the stream, in the limit of
many layers); arXiv:2203.00555, sec. 3 (post) and theorem 4.2 (deep). All are bounds, so a measured exponent may fall below."""


@dataclass(frozen=True)
class Depths:
    """One placement at several depths."""

    placement: str
    depths: Sequence[int]
    gradient: list[float]
    """Of what the last feed-forward network writes to the stream by."""
    rms: list[float]
    """Of the stream after the last layer."""
    update: list[float]
    predicted: Prediction

    def exponent(self, quantity: str) -> float | None:
        """p in quantity ~ depth^p."""
        return exponent(self.depths, getattr(self, quantity))

    def to_record(self) -> dict[str, object]:
        """The same as a record."""
        return asdict(self) | {"exponents": {quantity: self.exponent(quantity) for quantity in asdict(self.predicted)}}


def across_depths(
    cfg: DictConfig, compared: Mapping[str, dict], source: Source, settings: PreflightSettings, where: Runtime
) -> Iterator[Depths]:
    """The compared placements, each at every depth, all else equal.

    Side by side in worker processes, where that is sooner done than one after the other.
    """
    depths = list(settings.depths or ())
    looks = [Look(cfg, residual, depth, settings) for residual in compared.values() for depth in depths]
    workers = default_workers()
    if where.device.type == "cpu" and worth_their_start([look.seconds for look in looks], workers):
        jobs = {number: look.do_alone for number, look in enumerate(looks)}
        with closing(side_by_side(jobs, workers, lambda number: f"preflight.depths={looks[number].depth}")) as ended:
            done = {number: result() for number, result, _ in ended}
        found = iter([done[number] for number in range(len(looks))])
    else:
        found = (look.do(source, where) for look in looks)
    for name, residual in compared.items():
        seen = [next(found) for _ in depths]
        gradient, rms, update = map(list, zip(*seen, strict=True))
        kind = target(OmegaConf.create({"residual": residual}), "residual")
        standard = kind is not DeepNorm or name == "deep"  # deep_glm has other gains than those of the theorem
        predicted = PREDICTIONS.get(kind, Prediction()) if standard else Prediction()
        yield Depths(name, depths, gradient, rms, update, predicted)


class Missing(NamedTuple):
    """Why a placement is not compared."""

    placement: str
    depth: int
    why: str


def to_compare(cfg: DictConfig, depths: Sequence[int]) -> tuple[dict[str, dict], list[Missing]]:
    """`placements` of which this model can be built at every depth; and the others, each with why not."""
    compared, missing = placements(cfg), []
    for name, residual in list(compared.items()):
        for depth in depths:
            changed = with_placement(cfg, residual, depth)
            try:
                instantiate(changed.init).check(assemble_without_weights(changed))
            except UserError as error:
                missing.append(Missing(name, depth, str(error)))
                del compared[name]
                break
    return compared, missing


def with_placement(cfg: DictConfig, residual: dict, depth: int) -> DictConfig:
    """The same model with this residual scheme and number of layers."""
    changed = copied(cfg)
    OmegaConf.set_struct(changed, False)
    changed.residual, changed.size.n_layers = residual, depth
    return changed


def placements(cfg: DictConfig) -> dict[str, dict]:
    """By name, the nodes of the placements that theory speaks of and of the chosen one; without norms of the chosen one alone."""
    chosen = {option(cfg, "residual"): plain_dict(cfg.residual)}
    if not target(cfg, "norm").acts:
        return chosen
    named = {
        name: {"_target_": f"{kind.__module__}.{kind.__name__}", "_partial_": True} for name, kind in PLACEMENTS.items()
    }
    return named | chosen


@dataclass(frozen=True)
class Look:
    """One placement at one depth."""

    cfg: DictConfig
    residual: dict
    depth: int
    settings: PreflightSettings

    @property
    def changed(self) -> DictConfig:
        return with_placement(self.cfg, self.residual, self.depth)

    @property
    def size(self) -> tuple[int, int]:
        """Sequences and tokens of a batch."""
        return self.settings.batch_size, self.settings.seq_len or self.cfg.train.train_len

    @property
    def seconds(self) -> float:
        """An estimate for one CPU thread: the steps, and a look before and after them."""
        cfg = self.changed
        cfg.train.batch_size, cfg.train.train_len = self.size
        return (self.settings.steps + 2) * seconds_of_a_step(cfg)

    def do(self, source: Source, where: Runtime) -> tuple[float, float, float]:
        """The gradient and the stream's size at the last layer, and how far the steps move the model."""
        decoder, seed = build(self.changed).to(where.device), training_seed(self.cfg)
        last = look_at_start(decoder, source, seed, *self.size, where).layers[-1]
        moved = update_size(decoder, source, self.settings.steps, self.settings.lr, seed, *self.size, where)
        return last["ffn_to_stream"], last["activation_rms"], moved

    def do_alone(self) -> tuple[float, float, float]:
        """The same in a process of its own."""
        where = machine_of(self.cfg)
        with where.in_force():
            return self.do(open_source(self.cfg), where)
