"""Multi-head latent attention: keys and values of all heads are projected from one narrow vector for each token."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.quantities import Positive, Probability, Width
from archlab.blocks.activations import FLOAT32, MASK, Accounting, Term
from archlab.blocks.attention_parts import ON_REQUEST, multiply, seen_of
from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Mask, Mixer, Position, SomeHeads, Stream
from archlab.blocks.kernel import Kernel, explicit_kernel, explicit_scores, keeps_weights
from archlab.blocks.norm import MakeWidthNorm, RMSNorm, no_norm
from archlab.blocks.softcap import leave
from archlab.blocks.steps import DrawnStep


class Latent(Mixer):
    """Softmax attention whose keys and values are projected from a latent vector, and which caches that vector alone.

    c = norm(W_kv_a x), kv_lora_rank wide; each head's key is W_k_b c, qk_nope_head_dim wide, followed by one rotated key
    W_k_rope x that all heads share; its value is W_v_b c. A query is W_q x, or W_q_b norm(W_q_a x) with a `q_lora_rank`;
    its last features are rotated. Scores are divided by sqrt(qk_nope_head_dim + qk_rope_head_dim). qk_rope_head_dim, the
    width of what is rotated, is the model's head_dim. Decoding caches c and the rotated key of each token,
    kv_lora_rank + qk_rope_head_dim numbers, and projects keys and values again from what is cached. The norms are RMS, of
    any model.

    Options:

    kv_lora_rank      width of the latent vector; null: 4 head_dim
    q_lora_rank       width of the queries' latent vector; null: queries are projected from the input
    qk_nope_head_dim  features of a head's queries and keys that are not rotated; null: head_dim
    v_head_dim        features of a head's values; null: head_dim
    bias              whether the projections to latent vectors, to the rotated key and to the stream have a bias
    scale             the factor on q k^T, in the place of 1 / sqrt(qk_nope_head_dim + qk_rope_head_dim)
    dropout           a probability, of the weights and of the output
    kernel            computes softmax attention, here with values of another width than queries
    inner_norm        makes a norm of the input of `out_proj`, where the residual scheme asks for one

    Source: arXiv:2405.04434, sec. 2.1; norms, biases and widths as `DeepseekV3Attention` of transformers has them.
    """

    honours = frozenset({"rotation", "bias", "mask", "padding"})
    taps = ("attention_entropy", "max_score")
    on_request = ON_REQUEST
    gained = ("v_b_proj", "out_proj")
    inputs_grow = dict.fromkeys(("q_b_proj", "k_b_proj", "v_b_proj"), False)
    decodes = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int,
        kernel: Kernel,
        kv_lora_rank: Width | None = None,
        q_lora_rank: Width | None = None,
        qk_nope_head_dim: Width | None = None,
        v_head_dim: Width | None = None,
        bias: bool = False,
        scale: Positive | None = None,
        dropout: Probability = 0.0,
        inner_norm: MakeWidthNorm = no_norm,
    ):
        super().__init__()
        self.n_heads, self.rope_dim, self.rank = n_heads, head_dim, kv_lora_rank or 4 * head_dim
        self.nope_dim, self.v_dim = qk_nope_head_dim or head_dim, v_head_dim or head_dim
        qk_dim = self.nope_dim + self.rope_dim
        if q_lora_rank:
            self.q_a_proj = nn.Linear(d_model, q_lora_rank, bias=bias)
            self.q_a_norm = RMSNorm(q_lora_rank)
            self.q_b_proj = nn.Linear(q_lora_rank, n_heads * qk_dim, bias=False)
        else:
            self.q_proj = nn.Linear(d_model, n_heads * qk_dim, bias=False)
        self.project_queries = self.queries_from_latent if q_lora_rank else self.queries_from_input
        self.kv_a_proj = nn.Linear(d_model, self.rank, bias=bias)
        self.kv_a_norm = RMSNorm(self.rank)
        self.k_rope_proj = nn.Linear(d_model, self.rope_dim, bias=bias)
        self.k_b_proj = nn.Linear(self.rank, n_heads * self.nope_dim, bias=False)
        self.v_b_proj = nn.Linear(self.rank, n_heads * self.v_dim, bias=False)
        self.out_proj = nn.Linear(n_heads * self.v_dim, d_model, bias=bias)
        self.dropout, self.out_dropout = dropout, nn.Dropout(dropout)
        self.inner_norm = inner_norm(d_model=n_heads * self.v_dim)
        self.q_lora_rank, self.scale = q_lora_rank, qk_dim**-0.5 if scale is None else scale
        self.rescale = leave if scale is None else partial(multiply, by=scale * qk_dim**0.5)
        self.kernel = kernel

    def forward(self, x: Stream, context: AttentionContext) -> Stream:
        q = self.queries(x, context)
        latent, k_rope = self.kv_a_norm(self.kv_a_proj(x))[:, None], context.rotate_keys(self.k_rope_proj(x)[:, None])
        context.tap((*self.taps, *self.on_request), partial(self.look, q, latent, k_rope, context))
        latent, k_rope = context.with_cached(self, latent, k_rope)
        v = self.heads(self.v_b_proj(latent[:, 0]))
        gathered = self.kernel(q, self.keys(latent, k_rope), v, context, self.dropout * self.training)
        joined = rearrange(gathered, "batch heads seq v_dim -> batch seq (heads v_dim)")
        return self.out_dropout(self.out_proj(self.inner_norm(joined)))

    def queries(self, x: Stream, context: AttentionContext) -> SomeHeads:
        """(batch, heads, seq, nope + rope features), the last ones rotated."""
        as_they_are, to_rotate = self.heads(self.project_queries(x)).split((self.nope_dim, self.rope_dim), dim=-1)
        return self.rescale(torch.cat((as_they_are, context.rotate_queries(to_rotate)), dim=-1))

    def queries_from_input(self, x: Stream) -> Float[Tensor, "batch seq width"]:
        """Without a `q_lora_rank`."""
        return self.q_proj(x)

    def queries_from_latent(self, x: Stream) -> Float[Tensor, "batch seq width"]:
        """With one."""
        return self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))

    def keys(
        self, latent: Float[Tensor, "batch 1 key rank"], k_rope: Float[Tensor, "batch 1 key rope_dim"]
    ) -> Float[Tensor, "batch heads key qk_dim"]:
        """Each head's keys of the latent vectors, followed by the rotated ones, which are the same for all heads."""
        k = self.heads(self.k_b_proj(latent[:, 0]))
        return torch.cat((k, k_rope.expand(-1, self.n_heads, -1, -1)), dim=-1)

    def heads(self, x: Float[Tensor, "batch seq width"]) -> SomeHeads:
        """(batch, seq, heads * features) -> (batch, heads, seq, features)."""
        return rearrange(x, "batch seq (heads features) -> batch heads seq features", heads=self.n_heads)

    def look(self, q: Tensor, latent: Tensor, k_rope: Tensor, context: AttentionContext) -> Mapping[str, Tensor]:
        """What `seen_of` says of its weights."""
        *_, block = context.of_first().blocks()
        scores = explicit_scores(q[:1], self.keys(latent[:1], k_rope[:1]), block, leave)
        return seen_of(scores, scores.softmax(dim=-1), block)

    def for_packs(self) -> None:
        """Takes the explicit kernel: `archlab.blocks.folded`, which is fused under vmap, is for values as wide as queries."""
        self.kernel = explicit_kernel(leave)

    # ------------------------------------------------------------ what it says of itself

    @property
    def summary(self) -> str:
        ranks = f"{self.rank}, queries {self.q_lora_rank}" if self.q_lora_rank else f"{self.rank}"
        widths = f"head_dim {self.nope_dim} + {self.rope_dim}, v {self.v_dim}"
        return f"{type(self).__name__} {ranks}, heads {self.n_heads}, {widths}"

    def saved_activations(self, rules: Accounting) -> Iterator[Term]:
        """As attention's: latent vectors before and after their norms, queries, keys, values, and what the scores keep."""
        e, d_model, width = rules.e, self.out_proj.out_features, self.n_heads * self.v_dim
        from_input = ("q_a_proj" if self.q_lora_rank else "q_proj", "kv_a_proj", "k_rope_proj")
        yield Term("attention: input", e * d_model, needed_by=from_input, branch_input=True)
        yield Term(
            "attention: latent vectors before and after their norm", e * 2 * (self.rank + (self.q_lora_rank or 0))
        )
        qk_width = self.n_heads * (self.nope_dim + self.rope_dim)
        yield Term("attention: queries, keys, values", e * (2 * qk_width + width))
        if rules.flash and not keeps_weights(self.kernel):
            yield Term("attention: sums of exponentials", FLOAT32 * self.n_heads)
            yield Term("attention: what the heads gather", e * width)
        else:
            yield Term("attention: weights", pair=e * self.n_heads)
            if rules.drops(self.dropout):
                yield Term("attention: dropout mask of the weights", pair=MASK * self.n_heads)
                yield Term("attention: weights after dropout", pair=e * self.n_heads)
            yield Term("attention: what the heads gather", e * width, needed_by=("out_proj",))
        if rules.drops(self.out_dropout.p):
            yield Term("attention: dropout mask", MASK * d_model)

    def steps(self, position: Position, mask: Mask) -> Sequence[DrawnStep]:
        """From the latent vectors to the output."""
        steps: list[DrawnStep] = []

        def then(kind: str, label: str, *reads: int, path: str = "", detail: str = "") -> int:
            """Adds a step; returns its number."""
            steps.append(DrawnStep(kind, label, detail, path, reads))
            return len(steps)

        def part(path: str, read: int, detail: str = "") -> int:
            return then("part", path, read, path=path, detail=detail)

        of_query = f"{self.n_heads}×({self.nope_dim} + {self.rope_dim})"
        if self.q_lora_rank:
            q = part("q_b_proj", part("q_a_norm", part("q_a_proj", 0)), of_query)
        else:
            q = part("q_proj", 0, of_query)
        latent, k_rope = part("kv_a_norm", part("kv_a_proj", 0)), part("k_rope_proj", 0)
        k, v = (part(f"{name}_b_proj", latent, f"{self.n_heads}×{width}") for name, width in (("k", self.nope_dim), ("v", self.v_dim)))  # fmt: skip
        if position.rotates:
            q = k_rope = then(
                "position", f"{type(position).__name__} rotates the last {self.rope_dim} of q, k", q, k_rope
            )
        own = (self.nope_dim + self.rope_dim) ** -0.5
        factor = f"× {self.scale:.4g}" if self.scale != own else f"/ √{self.nope_dim + self.rope_dim}"
        scores = then("op", f"scores  q · k {factor}", q, k, k_rope)
        if position.biases_scores:
            scores = then("position", f"+ {type(position).__name__} bias", scores)
        scores = then("mask", f"mask: {type(mask).__name__}", scores)
        gathered = then("op", "weights · v", then("op", "softmax", scores), v)
        for name in ("inner_norm", "out_proj", "out_dropout"):
            gathered = part(name, gathered)
        return steps
