"""A fair fight: `match` sets the width, and nothing else, so that arms agree in parameters or FLOPs."""

import pytest
import torch
from omegaconf import OmegaConf

import archlab
from archlab.base.errors import UserError
from archlab.config.assemble import assemble
from archlab.config.match import BESIDE_BLOCKS, flops

ARMS = (
    ["ffn=gelu"],
    ["ffn=relu", "mixer=gqa"],
    ["mixer=mqa"],
    ["pos=learned"],
    ["residual=sandwich", "norm=layer"],
    ["size.n_kv_heads=2", "mixer=gqa"],
    ["layers[1].size.d_ff=64"],
    ["layers[1::2].ffn=gelu"],
    ["embed.tied=true"],
    ["skips=unet"],
)


def numbers(cfg) -> int:
    """Parameters, counted from the state of a model that was really made, tied weights once."""
    decoder = assemble(cfg)
    return sum(
        {
            weight.data_ptr(): weight.numel()
            for weight in decoder.state_dict(keep_vars=True).values()
            if isinstance(weight, torch.nn.Parameter)
        }.values()
    )


@pytest.mark.parametrize("arm", ARMS, ids=" ".join)
@pytest.mark.parametrize("size", ["nano", "tiny"])
def test_arms_matched_in_parameters_agree_with_the_default_blocks_within_half_a_percent(arm, size):
    wanted = numbers(archlab.compose(f"size={size}"))
    assert abs(numbers(archlab.compose(f"size={size}", "match=params", *arm)) / wanted - 1) <= 0.005


@pytest.mark.parametrize("arm", ARMS, ids=" ".join)
def test_arms_matched_in_flops_agree_with_the_default_blocks_within_half_a_percent(arm):
    """Counted by hand: two for each multiply-add of the matrices a token meets; attention's own products are the same for all."""

    def matrix_products(cfg) -> int:
        decoder = assemble(cfg)
        seen = sum(module.weight.numel() for module in decoder.modules() if isinstance(module, torch.nn.Linear))
        size = cfg.size
        return 2 * seen + 4 * size.n_layers * size.n_heads * size.head_dim * cfg.train.train_len

    wanted = matrix_products(archlab.compose("size=nano"))
    assert abs(matrix_products(archlab.compose("size=nano", "match=flops", *arm)) / wanted - 1) <= 0.005


@pytest.mark.parametrize(
    "arm", [["loop.times=2"], ["canon=AC"], ["embed.width=16"], ["layers[1].size.d_ff=64"]], ids=" ".join
)
def test_what_is_beside_the_blocks_is_no_part_of_what_is_matched(arm):
    """Two loops were matched to two loops of the default blocks, so that `loop.times=null,2` compared arms of 1 and 1.9 times the FLOPs."""
    cfg, plain = archlab.compose("size=nano", "match=flops", *arm), archlab.compose("size=nano")
    assert cfg.matched.reference == flops(plain)
    assert abs(flops(cfg) / flops(plain) - 1) <= 0.005


def test_only_the_width_changes_and_what_changed_is_written_down():
    plain, matched = archlab.compose("ffn=gelu"), archlab.compose("ffn=gelu", "size=nano", "match=params")
    assert plain.get("matched") is None
    before = OmegaConf.to_container(archlab.compose("ffn=gelu", "size=nano"))
    after = OmegaConf.to_container(matched)
    assert after["matched"]["d_ff_before"] == before["size"]["d_ff"] == 256
    assert after.pop("matched")["d_ff"] == after["size"].pop("d_ff") != before["size"].pop("d_ff")
    assert after.pop("match") == "params" and before.pop("match") is None
    assert after == before


def test_what_nobody_asked_for_is_what_the_configuration_says():
    plain = OmegaConf.to_container(archlab.compose())
    assert {section: plain[section] for section in BESIDE_BLOCKS} == BESIDE_BLOCKS


def test_the_default_blocks_match_themselves():
    assert archlab.compose("match=params").size == archlab.compose().size


def test_a_width_of_ones_own_and_match_are_one_too_many():
    with pytest.raises(UserError, match=r"match=params: sets size.d_ff=44 to another number; keep one of the two"):
        archlab.compose("match=params", "size.d_ff=44")


def test_what_no_width_can_match_is_refused():
    with pytest.raises(
        UserError, match=r"match=params: with these blocks no size.d_ff comes within 0.5% .*choose a larger size"
    ):
        archlab.compose("pos=learned", "pos.max_positions=4096", "size=nano", "match=params")
