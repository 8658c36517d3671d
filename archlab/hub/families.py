"""The families of released models: the words of their config.json, and the table of their tensors."""

from collections.abc import Callable
from dataclasses import dataclass

from omegaconf import DictConfig

from archlab.hub import experts as of_many
from archlab.hub import llama4
from archlab.hub import tables as at
from archlab.hub import words as say
from archlab.hub.experts import InFiles
from archlab.hub.reading import Config, Words
from archlab.hub.rows import Table


@dataclass(frozen=True)
class Family:
    """`words` turns a config.json into overrides, `rows` say where tensors go, names that end in `skipped` hold no weights.

    `rows` are a table, or make one for a configuration where it depends on more than the sizes.
    """

    words: Callable[[Config], Words]
    rows: Table | Callable[[DictConfig], Table]
    skipped: tuple[str, ...] = ("rotary_emb.inv_freq",)
    older: tuple[tuple[str, str], ...] = ()
    """Names in files of older versions, each with its current name."""

    files: tuple[InFiles, ...] = ()
    """Tensors that released files hold in other pieces than the class of transformers."""

    beyond: Callable[[Config], tuple[str, ...]] = at.nothing_beyond
    """How the names begin of weights that predict tokens after the next one: transformers leaves them out as well."""

    def table(self, cfg: DictConfig) -> Table:
        """The rows for this configuration."""
        return self.rows(cfg) if callable(self.rows) else self.rows


FAMILIES = {
    "llama": Family(say.llama, at.LLAMA),
    "mistral": Family(say.mistral, at.LLAMA),
    "phi3": Family(say.phi3, at.PHI3_ROWS),
    "smollm3": Family(say.smollm3, at.LLAMA),
    "granite": Family(say.granite, at.LLAMA),
    "qwen2": Family(say.qwen2, at.LLAMA),
    "qwen3": Family(say.qwen3, at.LLAMA + at.QK_NORMS),
    "mixtral": Family(of_many.mixtral, at.ENDS + at.SEPARATE + at.PRE + of_many.ROWS, files=of_many.MIXTRAL_FILES),
    "qwen3_moe": Family(of_many.qwen3_moe, at.LLAMA + at.QK_NORMS + of_many.ROWS, files=of_many.FILES),
    "olmoe": Family(of_many.olmoe, at.LLAMA + at.QK_NORMS + of_many.ROWS, files=of_many.FILES),
    "deepseek_v2": Family(of_many.deepseek_v2, of_many.deepseek, files=of_many.FILES),
    "deepseek_v3": Family(of_many.deepseek_v3, of_many.deepseek, files=of_many.FILES, beyond=of_many.layers_beyond),
    "glm4_moe": Family(
        of_many.glm4_moe,
        at.LLAMA + at.QK_NORMS + of_many.ROWS + of_many.CHOICE_BIAS + of_many.SHARED,
        files=of_many.FILES,
        beyond=of_many.layers_beyond,
    ),
    "gpt_oss": Family(of_many.gpt_oss, of_many.GPT_OSS_ROWS),
    "llama4_text": Family(llama4.llama4, llama4.ROWS),
    "qwen3_next": Family(of_many.qwen3_next, of_many.qwen3_next_rows, files=of_many.FILES, beyond=of_many.multi_token),
    "glm": Family(say.glm, at.ENDS + at.SEPARATE + at.FUSED_GATE + at.PRE),
    "glm4": Family(say.glm4, at.ENDS + at.SEPARATE + at.FUSED_GATE + at.GLM4_NORMS),
    "gemma": Family(say.gemma, at.LLAMA),
    "gemma2": Family(say.gemma2, at.ENDS + at.SEPARATE + at.GATED + at.GEMMA2_NORMS),
    "gemma3_text": Family(say.gemma3, at.ENDS + at.SEPARATE + at.GATED + at.GEMMA2_NORMS + at.QK_NORMS),
    "olmo": Family(say.olmo, at.LLAMA),
    "olmo2": Family(say.olmo2, at.ENDS + at.SEPARATE + at.GATED + at.OLMO2_NORMS + at.QK_NORMS),
    "olmo3": Family(say.olmo3, at.ENDS + at.SEPARATE + at.GATED + at.OLMO2_NORMS + at.QK_NORMS),
    "stablelm": Family(say.stablelm, at.LLAMA + at.STABLELM_QK_NORMS),
    "cohere": Family(say.cohere, at.ENDS + at.SEPARATE + at.GATED + at.INPUT + at.COHERE_QK_NORMS),
    "cohere2": Family(say.cohere2, at.ENDS + at.SEPARATE + at.GATED + at.INPUT),
    "phi": Family(say.phi, at.PHI_ROWS),
    "gpt2": Family(say.gpt2, at.GPT2_ROWS, (".attn.bias", ".attn.masked_bias")),
    "gptj": Family(say.gptj, at.GPTJ_ROWS, (".attn.bias", ".attn.masked_bias", ".embed_positions")),
    "gpt_neox": Family(
        say.gpt_neox,
        at.NEOX_ROWS,
        ("rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
        (("embed_out.weight", "lm_head.weight"),),
    ),
    "bloom": Family(say.bloom, at.BLOOM_ROWS),
    "mpt": Family(say.mpt, at.MPT_ROWS),
    "opt": Family(say.opt, at.OPT_ROWS),
    "falcon": Family(say.falcon, at.FALCON_ROWS),
    "apertus": Family(say.apertus, at.APERTUS_ROWS + at.XIELU_CONSTANTS),
    "nemotron": Family(say.nemotron, at.NEMOTRON_ROWS),
    "nanochat": Family(say.nanochat, at.NANOCHAT_ROWS),
    "starcoder2": Family(say.starcoder2, at.STARCODER2_ROWS),
    "lfm2": Family(say.lfm2, at.LFM2_ROWS),
    "mamba2": Family(say.mamba2, at.MAMBA2_ROWS, (), (("backbone.embedding.weight", "backbone.embeddings.weight"),)),
    "baichuan": Family(say.baichuan, at.BAICHUAN_ROWS),
    "qwen": Family(say.qwen, at.QWEN_ROWS),
    "chatglm": Family(say.chatglm, at.CHATGLM_ROWS),
    "chatglm2": Family(say.chatglm2, at.CHATGLM2_ROWS, ("rotary_pos_emb.inv_freq",)),
}
"""By the model_type of their config.json; ChatGLM's second and third generation say chatglm too."""


def kind_of(config: Config) -> str:
    """The family that a config.json says it belongs to."""
    kind = str(config.get("model_type"))
    return "chatglm2" if kind == "chatglm" and "padded_vocab_size" in config else kind
