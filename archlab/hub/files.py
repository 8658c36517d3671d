"""Released weights read into a decoder, and a decoder written as a released model's folder."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from archlab.base.arguments import checked
from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError
from archlab.base.files import whole, whole_folder, write_text
from archlab.base.messages import did_you_mean
from archlab.base.plain import Unreadable, read_json
from archlab.base.words import key_of
from archlab.config.assemble import MADE_FROM, assemble_without_weights
from archlab.config.compose import in_turn
from archlab.config.overrides import conf_dir
from archlab.config.presets import in_rules_too, overruled
from archlab.hub.classes import known_to_transformers
from archlab.hub.experts import in_one_piece, in_pieces
from archlab.hub.families import FAMILIES, Family, kind_of
from archlab.hub.fields import check_fields
from archlab.hub.reading import Config
from archlab.hub.rows import Row
from archlab.hub.saying import by_field, said_by
from archlab.hub.writing import as_released
from archlab.model.decoder import Decoder

ORIGIN = "hub_origin"
FOLDER = "hub_folder"
"""Where a decoder keeps the folder it was loaded from, whose tokenizer goes with it."""

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
             "merges.txt", "tokenizer.model", "vocab.txt", "chat_template.jinja", "generation_config.json")  # fmt: skip
"""Files beside the weights by which text becomes their tokens and is generated."""

WEIGHTS = "model.safetensors"

READ = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
"""The types of numbers that weights are read in: narrower ones go with scales that a folder keeps apart."""

LARGEST_INDEX = 2**26
"""In bytes: enough for a model of half a million tensors."""


def from_hf(model: Any, *overrides: str) -> Decoder:
    """The decoder that computes what this transformers model does, with its weights in their dtype.

    Overrides, spelt as on the command line, put the weights under other options: "mask=window", "pos.scaling=yarn".
    Raises UserError where the model_type is unknown, its configuration asks for something no block does, or a tensor
    is missing, unknown, of another shape or not finite.
    """
    if not hasattr(model, "config") or not hasattr(model.config, "to_dict"):
        raise UserError(
            f"{type(model).__name__}: is not a transformers model; give one, or load a folder with hub.load"
        )
    weights = {name.removeprefix(COMPILED): weight for name, weight in model.state_dict().items()}
    if on_meta := next((name for name, weight in weights.items() if weight.is_meta), None):
        raise UserError(f"{on_meta}: is on the meta device and has no numbers; load the model's weights first")
    return assembled(model.config.to_dict(), weights, overrides)


COMPILED = "_orig_mod."
"""What `torch.compile(model)` puts before the names of weights."""


@checked
def load(path: str | Path, *overrides: str) -> Decoder:
    """The decoder of a folder with config.json and safetensors, or of a GGUF file, on the CPU. Raises UserError."""
    path = Path(path)
    if path.suffix == ".gguf":
        return from_hf(from_gguf(path), *overrides)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give one with config.json and safetensors, or a .gguf file")
    config = with_infinity(read_object(path / "config.json"))
    check_nothing_beside(path, config)
    decoder = assembled(config, {} if config.get("quantization_config") else read_tensors(path), overrides)
    setattr(decoder, FOLDER, path.absolute())
    return decoder


def check_nothing_beside(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError where transformers would take other weights from this folder, or add some to them."""
    if (file := config.get("transformers_weights")) not in (None, WEIGHTS):
        raise UserError(
            f"config.json: transformers_weights={str(file)[:60]}: the weights are read from {WEIGHTS} or by its index alone;"
            " rename that file, and leave the field out"
        )
    if (adapter := folder / "adapter_config.json").is_file():
        raise UserError(
            f"{adapter}: an adapter is not added to the weights, as transformers does; merge it into them, or move it away"
        )


@checked
def export(decoder: Decoder, path: str | Path) -> None:
    """Writes config.json and model.safetensors, which transformers loads; the folder is written completely or not at all.

    Heads of further tokens (`mtp`), which transformers' classes leave out too, are not written. A decoder made of released
    weights is written as its family has it, with the config.json it came with, in which a dtype is that of the weights now;
    any other as a released family that has all of its blocks (`archlab.hub.writing`). The tokenizer's files are copied from
    the folder that the weights came from, where there are any. Raises UserError.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path}: exists already; give a folder that does not")
    if not path.parent.is_dir():
        raise UserError(f"{path}: {path.parent} is not a folder; make it first")
    ours = {name: weight for name, weight in decoder.state_dict().items() if not name.startswith("mtp.")}
    if hasattr(decoder, ORIGIN):
        config, cfg = getattr(decoder, ORIGIN)
        config = with_dtype(config, ours["embedding.weight"].dtype)
        config = {name: value for name, value in config.items() if name != "transformers_weights"}
    elif hasattr(decoder, MADE_FROM):
        config, ours, cfg = as_released(ours, DictConfig(getattr(decoder, MADE_FROM)))
    else:
        raise UserError(
            f"{path}: this decoder was made by calling its class, so its options are not known; make it with archlab.build"
        )
    check_still_as_made(ours, cfg)
    tensors = {
        row.theirs: row.join([ours[name] for name in row.ours], cfg.size).contiguous().clone()
        for row in rows_of(FAMILIES[kind_of(config)], ours, cfg)
    }
    if cfg.embed.tied:
        tensors = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    tensors = in_pieces(FAMILIES[kind_of(config)].files, tensors)
    with whole_folder(path) as folder:
        write_text(folder / "config.json", json.dumps(config, indent=2, default=str))
        with whole(folder / WEIGHTS) as part:
            save_file(tensors, part, metadata={"format": "pt"})
        if source := getattr(decoder, FOLDER, None):
            for name in TOKENIZER:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)


def check_still_as_made(ours: Mapping[str, Tensor], cfg: DictConfig) -> None:
    """Raises UserError where a decoder's weights are by now others than its options mean, or have no numbers.

    A layer that was taken out, say, or a matrix of another width: config.json would describe another model.
    """
    meant = {name: tuple(weight.shape) for name, weight in assemble_without_weights(cfg).state_dict().items()}
    have = {name: tuple(weight.shape) for name, weight in ours.items()}
    for name in sorted(meant.keys() | have.keys()):
        if meant.get(name) != have.get(name):
            now, then = (f"has shape {had}" if (had := of.get(name)) else "is not there" for of in (have, meant))
            raise UserError(f"{name}: {now} in this decoder, but by its options it {then}; export it as it was made")
    if on_meta := next((name for name, weight in ours.items() if weight.is_meta), None):
        raise UserError(f"{on_meta}: is on the meta device and has no numbers; give the decoder its weights first")


def with_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> Mapping[str, Any]:
    """A config.json that says no other dtype than this: transformers makes the model in the one that it says."""
    said, now = config.get("dtype") or config.get("torch_dtype"), str(dtype)[6:]
    if said in (None, now):
        return config
    return {name: value for name, value in config.items() if name != "torch_dtype"} | {"dtype": now}


OF_A_RUN = frozenset(
    "seed data_seed init data train optimizer schedule average loss probe eval memory preflight budget match tune output loggers"
    " experiment device precision compile".split()
)
"""Groups and fields that decide how a decoder starts and is trained, and no logits; learned positions have train.train_len rows."""


def assembled(config: Mapping[str, Any], tensors: Mapping[str, Tensor], overrides: Sequence[str] = ()) -> Decoder:
    kind = kind_of(config)
    if kind not in FAMILIES:
        hint = (
            "" if known_to_transformers(kind) else did_you_mean(kind, FAMILIES)
        )  # what is spelt right is another model
        raise UserError(f"config.json: model_type={kind}: no such family; {hint}families: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    check_fields(config, kind)
    if config.get("quantization_config"):
        how = config["quantization_config"]
        method = how.get("quant_method", "") if isinstance(how, Mapping) else how
        raise UserError(
            f"config.json: quantization_config: the weights are quantised ({str(method)[:40]}), and only floating-point weights"
            " are read; use the release in bf16 or fp16, or dequantise it first"
        )
    try:
        cfg = as_configured(family, config, overrides)
    except UserError as error:
        raise by_field(family, config, error) from None
    decoder = assemble_without_weights(cfg)
    tensors = without_beyond(family.beyond(config), tensors)
    check_numbers(family, tensors)
    tensors = in_one_piece(family.files, tensors)
    decoder.load_state_dict(of_one_dtype(renamed(family, decoder, cfg, tensors)), assign=True)
    if cfg.embed.tied:
        decoder.head.weight = decoder.embedding.weight
    if not overrides:  # with overrides it differs from config.json, and is exported like a decoder made here
        setattr(decoder, ORIGIN, (dict(config), cfg))
    return decoder.requires_grad_().eval()


def as_configured(family: Family, config: Config, overrides: Sequence[str]) -> DictConfig:
    """What a config.json says, under other options. Raises UserError."""
    words = said_by(family, config)
    taken = {key_of(word) for word in overrides}
    if "preset" in taken:
        raise UserError(
            "preset: config.json already describes the model of these weights; override single options instead"
        )
    for key in taken:
        if key != "train.train_len" and key.split(".")[0] in OF_A_RUN:
            raise UserError(
                f"{key}: changes nothing of a decoder whose weights are loaded; override options of its blocks, as in mask=window"
            )
    kept = [word for word in words if not overruled(key_of(word), taken)]
    return in_turn(*in_rules_too(kept, overrides, [conf_dir()]), *overrides)


def rows_of(family: Family, ours: Mapping[str, Tensor], cfg: DictConfig) -> list[Row]:
    """The rows, layer by layer, for the weights that this decoder has."""
    return [row for row in all_rows_of(family, cfg) if ours.keys() >= set(row.ours)]


def all_rows_of(family: Family, cfg: DictConfig) -> Iterator[Row]:
    """Layer by layer, also for weights that only some models of the family have."""
    sizes = SimpleNamespace(**plain_dict(cfg.size))  # of which each is asked for in each row
    return (row for table_row in family.table(cfg) for row in table_row.in_model(sizes))


def without_beyond(beginnings: tuple[str, ...], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names do not begin so."""
    return {name: tensor for name, tensor in tensors.items() if not beginnings or not name.startswith(beginnings)}


def check_numbers(family: Family, tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError at a weight whose numbers are not of a type that is read."""
    for name, tensor in tensors.items():
        if tensor.dtype not in READ and not name.endswith(family.skipped):
            raise UserError(
                f"{name}: holds {str(tensor.dtype)[6:]}, but weights are floating-point numbers: {', '.join(READ.values())}"
            )


def in_whole_model(family: Family, cfg: DictConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under their names of today in the whole model. Raises UserError where two of them are one there.

    GPT-2's and BLOOM's own folders, and those of every model without a head, name weights without the base model.
    """
    today = dict(family.older)
    whole = {row.theirs for row in all_rows_of(family, cfg)}
    bases = list(dict.fromkeys(row.theirs.partition(".")[0] for row in family.table(cfg) if row.theirs.count(".") > 1))
    given: dict[str, str] = {}
    for name in tensors:
        known = today.get(name, name)
        longer = (f"{base}.{known}" for base in bases)
        known = known if known in whole else next((n for n in longer if n in whole), known)
        if known in given:
            raise UserError(f"{name}: is {given[known]} under another name, and the files hold both; leave one out")
        given[known] = name
    return {known: tensors[name] for known, name in given.items()}


def renamed(family: Family, decoder: Decoder, cfg: DictConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names; UserError where one is missing, left over, of the wrong shape or not finite."""
    tensors = in_whole_model(family, cfg, tensors)
    shapes = {name: tuple(weight.shape) for name, weight in decoder.state_dict().items()}
    found: dict[str, Tensor] = {}
    used = set()
    for row in rows_of(family, decoder.state_dict(), cfg):
        if row.theirs not in tensors:
            continue
        used.add(row.theirs)
        if not torch.isfinite(tensors[row.theirs]).all():
            raise UserError(f"{row.theirs}: holds a number that is not finite; these weights cannot be used")
        try:
            parts = row.split(tensors[row.theirs], cfg.size)
        except UserError as error:
            raise UserError(f"{row.theirs}: {error}") from None
        except Exception as error:
            why = " ".join(str(error).split())[:120]
            raise UserError(f"{row.theirs}: {tuple(tensors[row.theirs].shape)} cannot be split: {why}") from None
        for name, part in zip(row.ours, parts, strict=True):
            if tuple(part.shape) != shapes[name]:
                raise UserError(
                    f"{row.theirs}: has shape {tuple(part.shape)}, but config.json means {shapes[name]}; the file and"
                    " config.json are of different models"
                )
            found[name] = part.clone().contiguous()
    if cfg.embed.tied:
        head = next((row.theirs for row in family.table(cfg) if row.ours == ("head.weight",)), None)
        if head in tensors and not torch.equal(tensors[head], found.get("embedding.weight", tensors[head])):
            raise UserError(
                f"{head}: differs from the embedding table, but config.json says that the two are tied; one is wrong"
            )
        found["head.weight"] = found.get("embedding.weight", torch.empty(0))
        used |= {name for name in tensors if name == "lm_head.weight"}
    missing = [name for name in shapes if name not in found]
    # Without numbers are such as the shared experts of a model that has none.
    unused = [n for n, tensor in tensors.items() if n not in used and tensor.numel() and not n.endswith(family.skipped)]
    if missing:
        raise UserError(
            f"weights: {', '.join(missing[:5])} of {len(missing)} missing; the weights are incomplete, or of another model"
        )
    if unused:
        raise UserError(
            f"weights: {', '.join(unused[:5])} ({len(unused)} in all) do not belong to this family; are they of another model?"
        )
    return found


def of_one_dtype(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The same where matrices and their biases have one dtype; otherwise all in the widest of theirs, which loses nothing.

    Routers, gains and other vectors may have a wider one: they are applied in it.
    """
    multiplied = {
        weight.dtype
        for name, weight in weights.items()
        if (weight.ndim > 1 or (name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in weights))
        and ".router." not in name
    }
    if len(multiplied) < 2:
        return weights
    widest = reduce(torch.promote_types, multiplied)
    return {name: weight.to(widest) for name, weight in weights.items()}


def read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file}: no such file; a model's folder has one")
    try:
        content = read_json(file, LARGEST_INDEX)
    except Unreadable as error:
        raise UserError(f"{file}: is not JSON: {error}; fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: should hold one object; fetch it again")
    return content


def with_infinity(value: Any) -> Any:
    """The same with numbers in the place of {"__float__": "Infinity"}, as transformers writes what JSON has no word for."""
    if isinstance(value, dict):
        if set(value) == {"__float__"} and isinstance(value["__float__"], str):
            return float(value["__float__"])
        return {key: with_infinity(part) for key, part in value.items()}
    return [with_infinity(part) for part in value] if isinstance(value, list) else value


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors, in one file or in several with an index, which one file goes before."""
    index = folder / "model.safetensors.index.json"
    in_several = index.is_file() and not (folder / WEIGHTS).is_file()
    names = indexed(index) if in_several else {WEIGHTS}
    tensors: dict[str, Tensor] = {}
    for file in (folder / name for name in sorted(names)):
        if not file.is_file():
            raise UserError(f"{file}: no such file; only safetensors and GGUF are read, no pickles (.bin, .pt)")
        try:
            more = load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())}; the file is damaged") from None
        if twice := sorted(tensors.keys() & more.keys()):
            raise UserError(
                f"{file}: holds {twice[0]}, which another file that the index names holds too; leave one out"
            )
        tensors |= more
    return tensors


def indexed(index: Path) -> set[str]:
    """The files that an index names, all of which lie beside it. Raises UserError."""
    where = read_object(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise UserError(f"{index}: should hold a weight_map, the file of each tensor; fetch it again")
    for name in where.values():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors", name):
            raise UserError(f"{index}: {str(name)[:60]!r} names no safetensors file beside it; fetch it again")
    return set(where.values())


def from_gguf(file: Path) -> Any:
    """A GGUF file as a transformers model, with its weights in float32."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a .gguf file, or a folder with config.json and safetensors")
    try:
        import accelerate  # noqa: F401 (transformers asks for it)
        import gguf  # noqa: F401
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise UserError(
            f"{file}: reading GGUF needs transformers, gguf and accelerate; pip install 'archlab[hub]'"
        ) from None
    try:
        with tempfile.TemporaryDirectory(prefix="archlab-") as alone:  # so that no other file of its folder is read
            (Path(alone) / file.name).symlink_to(file.absolute())
            return AutoModelForCausalLM.from_pretrained(
                alone, gguf_file=file.name, dtype=torch.float32, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        raise UserError(f"{file}: transformers cannot read it: {' '.join(str(error).split())[:160]}") from None
