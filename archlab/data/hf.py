"""Text from a Hugging Face dataset, through one of their tokenizers. Needs the extra `hf`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np
from jaxtyping import Integer

from archlab.base.errors import UserError
from archlab.base.quantities import Share
from archlab.data.corpus import Corpus, DocumentStarts, slices, split, split_documents, starts_after
from archlab.data.text import N_BYTES

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
TEXT_TYPES = ("string", "large_string")
DOCUMENTS_AT_ONCE = 1000


@final
class HuggingFace(Corpus):
    """The documents of one column of a dataset, one after the other, each followed by an end-of-text id.

    `path` is a folder written by `save_to_disk`, or what `load_dataset` takes: a folder of data files or a name on
    the hub. `tokenizer` is a tokenizer.json or a name on the hub; null reads UTF-8 bytes and ends a document with byte
    0. A tokenizer without an end-of-text id joins documents with nothing. Without `valid_split`, the last
    `valid_share` of the training split is held out. All documents are tokenised when the source is made.
    """

    name = "hf"

    def __init__(
        self,
        path: str | None = None,
        split: str = "train",
        valid_split: str | None = None,
        column: str = "text",
        tokenizer: str | None = None,
        valid_share: Share = 0.1,
        prefix: Sequence[float] | None = None,
        documents: bool = False,
    ):
        require_extra()
        codec = Bytes() if tokenizer is None else TokenizerCodec(tokenizer)
        train_part, valid_part = parts(path, split, valid_split, column, codec, valid_share)
        starts = (train_part.starts, valid_part.starts) if documents else None
        super().__init__(train_part.tokens, valid_part.tokens, codec.vocab_size, prefix, starts)


class Encoded(NamedTuple):
    """Documents one after the other, and where each starts."""

    tokens: Integer[np.ndarray, " tokens"]
    starts: DocumentStarts


class Bytes:
    """Documents as UTF-8, each ended by byte 0, which no text uses."""

    vocab_size = N_BYTES

    def encode(self, documents: list[str]) -> list[Integer[np.ndarray, " tokens"]]:
        return [np.frombuffer((document + "\0").encode(), np.uint8) for document in documents]


class TokenizerCodec:
    """Documents as a tokenizer's ids, each ended by its end-of-text id where it has one."""

    def __init__(self, tokenizer: str):
        self.tokenizer = load_tokenizer(tokenizer)
        known = self.tokenizer.get_vocab()
        self.vocab_size = max(known.values()) + 1
        self.end = [known[token] for token in END_OF_TEXT if token in known][:1]

    def encode(self, documents: list[str]) -> list[Integer[np.ndarray, " tokens"]]:
        encoded = self.tokenizer.encode_batch(documents, add_special_tokens=False)
        return [np.array(document.ids + self.end, np.int32) for document in encoded]


def parts(
    path: str | None,
    train_split: str,
    valid_split: str | None,
    column: str,
    codec: Bytes | TokenizerCodec,
    valid_share: float,
) -> tuple[Encoded, Encoded]:
    """The training and the held-out part, as two splits or as two ends of one."""
    train_part = encode(load_split(path, train_split), column, codec)
    if valid_split is None:
        tokens = split(train_part.tokens, valid_share)
        starts = split_documents(train_part.starts, len(tokens[0]))
        return Encoded(tokens[0], starts[0]), Encoded(tokens[1], starts[1])
    if valid_split == train_split:
        raise UserError(f"data.valid_split={valid_split}: is the split to train on; use another or null")
    return train_part, encode(load_split(path, valid_split), column, codec)


def encode(dataset: "Dataset", column: str, codec: Bytes | TokenizerCodec) -> Encoded:
    texts = [name for name, kind in dataset.features.items() if getattr(kind, "dtype", None) in TEXT_TYPES]
    if column not in texts:
        raise UserError(f"data.column={column}: the dataset has no such text; it has {', '.join(texts) or 'none'}")
    runs = (dataset[rows][column] for rows in slices(len(dataset), DOCUMENTS_AT_ONCE))
    encoded = [document for run in runs for document in codec.encode([text or "" for text in run])]
    tokens = np.concatenate(encoded) if encoded else np.empty(0, np.uint8)
    return Encoded(tokens, starts_after([len(document) for document in encoded]))


def load_split(path: str | None, name: str) -> "Dataset":
    from datasets import load_dataset, load_from_disk

    if not path:
        raise UserError(
            f"data.path={'null' if path is None else ''}: data=hf does not know which dataset; give a folder or a name on the hub"
        )
    try:
        if not saved_to_disk(Path(path)):
            return load_dataset(path, split=name)
        saved = load_from_disk(path)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"data.path={path}: cannot be loaded ({reason}); give a folder or a name on the hub") from error
    splits = saved if isinstance(saved, dict) else {"train": saved}
    if name not in splits:
        raise UserError(f"data.path={path}: has no split {name}; use one of {', '.join(splits)}")
    return splits[name]


def saved_to_disk(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def load_tokenizer(tokenizer: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    load = Tokenizer.from_file if Path(tokenizer).exists() else Tokenizer.from_pretrained
    try:
        return of_whole_documents(load(tokenizer))
    except Exception as error:  # tokenizers raises nothing narrower
        reason = first_line(error)
        raise UserError(
            f"data.tokenizer={tokenizer}: cannot be loaded ({reason}); give a tokenizer.json, a name on the hub or null"
        ) from error


def of_whole_documents(tokenizer: "Tokenizer") -> "Tokenizer":
    """A tokenizer.json may say to cut and pad what is encoded, for batches of one length, or to merge at random.

    Here a document is encoded whole, with nothing added, and the same at every time.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    return tokenizer


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def require_extra() -> None:
    try:
        import datasets  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise UserError(f"data=hf: needs {error.name}, which is not installed; pip install 'archlab[hf]'") from error
