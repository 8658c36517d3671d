"""A sink token: one id at the head of every sequence."""

from collections.abc import Iterator

from archlab.data.batch import Batch, ChangedSource, Source


class SinkToken(ChangedSource):
    """The batches of another source, with one id in the place of every sequence's first token.

    Attention then always finds the same token first, whose embedding is learned. The first token of a sequence is no target,
    so what is scored is the same as without. An id that the text has nowhere else stands for the sink alone.

    Source: arXiv:2309.17453, sec. 3.3, where the token is put before the sequence; arXiv:2410.10781, sec. 5 ("Fixing token in
    a specific position"), where it takes the place of one.
    """

    def __init__(self, source: Source, token: int):
        super().__init__(source)
        self.token, self.vocab_size = token, max(source.vocab_size, token + 1)

    def train(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        return self._headed(self.source.train(seed, step, batch_size, seq_len))

    def validation(self, seq_len: int, n_tokens: int, batch_size: int, stride: int | None = None) -> Iterator[Batch]:
        return map(self._headed, self.source.validation(seq_len, n_tokens, batch_size, stride))

    def tuning(self) -> "SinkToken":
        return SinkToken(self.source.tuning(), self.token)

    def _headed(self, batch: Batch) -> Batch:
        tokens = batch.tokens.clone()
        tokens[:, 0] = self.token
        return batch._replace(tokens=tokens)
