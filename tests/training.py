"""A small model's training, for tests of the loop and of what looks at it: settings, a machine, sequences that count."""

import torch

from archlab.data.batch import Batch, Source
from archlab.train.runtime import Runtime
from archlab.train.settings import TrainSettings

CPU = Runtime(torch.device("cpu"), torch.float32)
SMALL = ("size=nano", "size.d_model=24", "size.n_heads=3", "size.vocab_size=17")


def settings(**changed):
    plain = dict(
        steps=5, tokens=None, train_len=11, batch_size=6, accumulate=1, lr=1e-2, min_lr=0.1, warmup=0, weight_decay=0.1,
        beta1=0.9, beta2=0.95, clip=1.0, checkpoint=False, eval_every=None, patience=None, log_every=1,
    )  # fmt: skip
    return TrainSettings(**(plain | changed))


class Counting(Source):
    """Sequences that count upwards modulo 17; some targets do not count."""

    name, vocab_size, sha256, exact = "counting", 17, "0" * 64, False

    def train(self, seed, step, batch_size, seq_len):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        start = torch.randint(0, 17, (batch_size, 1), generator=generator)
        scored = torch.rand(batch_size, seq_len, generator=generator) < torch.linspace(0.2, 1.0, batch_size)[:, None]
        return Batch((start + torch.arange(seq_len + 1)) % 17, None, scored)

    def validation(self, seq_len, n_tokens, batch_size, stride=None):
        yield self.train(999, 1, batch_size, seq_len)
