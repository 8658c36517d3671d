"""Heads and what surrounds the embedding, against Hugging Face's BERT and OPT and formulas written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import BATCH, D_MODEL, SEQ, VOCAB, build, draw_tokens, gradients, make, randomise
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLMPredictionHead

EXACT = dict(rtol=1e-12, atol=1e-12)  # float64, sums of 48 terms


def draw_stream():
    return torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64).requires_grad_()


def make_head(name: str, norm: str = "layer", **changes):
    head = make("head", name, **changes)
    return randomise(head(d_model=D_MODEL, vocab_size=VOCAB, norm=lambda: make("norm", norm)(d_model=D_MODEL))).double()


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.0625, None), (1.0, 0.7), (2.5, 3.0)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_head_formula(bias, scale, softcap):
    head, x = make_head("linear", bias=bias, scale=scale, softcap=softcap), draw_stream()
    logits = [
        [
            [
                scale * sum(w * f for w, f in zip(row, features, strict=True))
                + (head.bias[token].item() if bias else 0.0)
                for token, row in enumerate(head.weight.tolist())
            ]
            for features in sequence
        ]
        for sequence in x.tolist()
    ]
    expected = torch.tensor(logits, dtype=torch.float64)
    if softcap:
        expected = expected.apply_(lambda z: softcap * math.tanh(z / softcap))
    torch.testing.assert_close(head(x), expected, **EXACT)
    assert (head.bias is not None) == bias


def test_norm_head_reads_the_stream_against_rows_of_length_one():
    head, x = make_head("norm_head"), draw_stream()
    lengths = torch.tensor([math.sqrt(sum(w * w for w in row)) for row in head.weight.tolist()], dtype=torch.float64)
    torch.testing.assert_close(head(x), (x @ head.weight.T) / lengths, **EXACT)
    before = head(x)
    head.weight.data *= torch.rand(VOCAB, 1).double() * 9 + 1
    torch.testing.assert_close(head(x), before, **EXACT)


@pytest.mark.parametrize("tied", [False, True])
def test_mlm_head_is_berts(tied):
    config = BertConfig(hidden_size=D_MODEL, vocab_size=VOCAB, hidden_act="gelu", layer_norm_eps=1e-5)
    theirs = randomise(BertLMPredictionHead(config)).double()
    decoder = build(head="mlm", norm="layer", tied=tied)
    head, names = decoder.head, {"weight": "decoder.weight", "bias": "decoder.bias", "dense.weight": "transform.dense.weight",
        "dense.bias": "transform.dense.bias", "norm.gain": "transform.LayerNorm.weight", "norm.shift": "transform.LayerNorm.bias"}  # fmt: skip
    head.load_state_dict({ours: theirs.get_parameter(name) for ours, name in names.items()})
    assert (head.weight is decoder.embedding.weight) == tied
    x = draw_stream()
    torch.testing.assert_close(head(x), theirs(x), **EXACT)
    ours = gradients(head(x), [x, *(head.get_parameter(name) for name in names)])
    torch.testing.assert_close(
        ours, gradients(theirs(x), [x, *(theirs.get_parameter(name) for name in names.values())]), **EXACT
    )


# --- around the embedding -----------------------------------------------------------------------


def first_input(decoder, tokens):
    seen = []
    decoder.layers[0].register_forward_pre_hook(lambda layer, arguments: seen.append(arguments[0]))
    decoder(tokens)
    return seen[0]


def test_token_types_and_positions_are_added_before_the_norm_as_in_bert():
    config = BertConfig(
        hidden_size=D_MODEL,
        vocab_size=VOCAB,
        type_vocab_size=3,
        max_position_embeddings=19,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
    )
    theirs = randomise(BertEmbeddings(config)).double()
    decoder = build(
        pos=make("pos", "learned", max_positions=19), norm="layer", mask="full", embed_norm=True, embed_types=3
    ).eval()
    for ours, name in {
        "embedding.weight": "word_embeddings.weight", "position.table.weight": "position_embeddings.weight",
        "embed_types.weight": "token_type_embeddings.weight", "embed_norm.gain": "LayerNorm.weight", "embed_norm.shift": "LayerNorm.bias",
    }.items():  # fmt: skip
        decoder.get_parameter(ours).data.copy_(theirs.get_parameter(name))
    tokens = draw_tokens()
    torch.testing.assert_close(first_input(decoder, tokens), theirs(tokens), **EXACT)


@pytest.mark.parametrize("tied", [False, True])
def test_a_narrower_table_is_projected_in_and_out(tied):
    decoder, tokens = build(embed_width=20, tied=tied, embed_scale="sqrt_d_model"), draw_tokens()
    assert decoder.embedding.weight.shape == decoder.head.weight.shape == (VOCAB, 20)
    expected = F.linear(decoder.embedding.weight[tokens], decoder.embed_proj.weight) * D_MODEL**0.5
    torch.testing.assert_close(first_input(decoder, tokens), expected, **EXACT)
    seen = []
    decoder.final_norm.register_forward_hook(lambda norm, arguments, output: seen.append(output))
    logits = decoder(tokens)
    torch.testing.assert_close(logits, seen[0] @ decoder.head_proj.weight.T @ decoder.head.weight.T, **EXACT)


def test_without_a_width_there_is_nothing_to_project():
    names = {name for name, _ in build().named_parameters()}
    assert not any("proj" in name and "layers" not in name for name in names) and "embed_types.weight" not in names
