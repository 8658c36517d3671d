"""What a model learns from: text and generated tasks, all as the same `Batch` from the same kind of `Source`.

batch.py      the contract; read it first
corpus.py     windows of one long run of tokens, cut into a training and a held-out part
text.py       byte corpora: an English text that comes along, the standard library, any file
masked.py     BERT's objective, some tokens masked; blank.py: GLM's, spans after the text; given.py: their text
hf.py         a Hugging Face dataset and tokenizer
generated.py  what every generated task shares: sizes, layout, the split by question
tasks.py      the tasks
"""

from archlab.data.batch import Batch, Source, TooLong

__all__ = ["Batch", "Source", "TooLong"]
