"""How a model's start changes with its depth, beside what was proved of it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from omegaconf import DictConfig, OmegaConf

from archlab.base.configuration import plain_dict
from archlab.blocks.residual import DeepNorm, PostNorm, PreNorm
from archlab.config.assemble import build
from archlab.config.check import option, target
from archlab.data.batch import Source
from archlab.initial.measure import exponent, look_at_start, update_size
from archlab.initial.settings import PreflightSettings
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


def across_depths(cfg: DictConfig, source: Source, settings: PreflightSettings, where: Runtime) -> Iterator[Depths]:
    """The placements that theory speaks of and the one that was chosen, each at every depth, all else equal."""
    for name, residual in placements(cfg).items():
        seen = [at_depth(cfg, residual, depth, source, settings, where) for depth in settings.depths or ()]
        gradient, rms, update = map(list, zip(*seen, strict=True))
        kind = target(OmegaConf.create({"residual": residual}), "residual")
        standard = kind is not DeepNorm or name == "deep"  # deep_glm has other gains than those of the theorem
        predicted = PREDICTIONS.get(kind, Prediction()) if standard else Prediction()
        yield Depths(name, list(settings.depths or ()), gradient, rms, update, predicted)


def placements(cfg: DictConfig) -> dict[str, dict]:
    """By name, the nodes of the schemes to compare; without norms the chosen one alone."""
    chosen = {option(cfg, "residual"): plain_dict(cfg.residual)}
    if not target(cfg, "norm").acts:
        return chosen
    named = {
        name: {"_target_": f"{kind.__module__}.{kind.__name__}", "_partial_": True} for name, kind in PLACEMENTS.items()
    }
    return named | chosen


def at_depth(
    cfg: DictConfig, residual: dict, depth: int, source: Source, settings: PreflightSettings, where: Runtime
) -> tuple[float, float, float]:
    changed = cfg.copy()
    OmegaConf.set_struct(changed, False)
    changed.residual, changed.size.n_layers = residual, depth
    decoder = build(changed).to(where.device)
    size = (settings.batch_size, settings.seq_len or cfg.train.train_len)
    last = look_at_start(decoder, source, cfg.seed, *size, where).layers[-1]
    moved = update_size(decoder, source, settings.steps, settings.lr, cfg.seed, *size, where)
    return last["ffn_to_stream"], last["activation_rms"], moved
