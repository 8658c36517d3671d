"""Placements at several depths, looked at side by side."""

import archlab
from archlab.initial.settings import PreflightSettings
from archlab.runs import depths
from archlab.runs.assembled import machine_of, open_source
from archlab.runs.beside import Ended


def test_side_by_side_the_depths_are_what_they_are_one_after_the_other(monkeypatch):
    cfg = archlab.compose("size=nano", "size.d_model=24", "size.n_heads=3", "size.d_ff=40", "residual=sandwich")
    settings = PreflightSettings(batch_size=2, seq_len=11, steps=1, depths=[1, 3])
    source, where = open_source(cfg), machine_of(cfg)
    compared, missing = depths.to_compare(cfg, settings.depths)
    assert not missing
    by_turns = list(depths.across_depths(cfg, compared, source, settings, where))
    calls = []

    def beside(jobs, workers, words):
        calls.append([words(number) for number in jobs])
        yield from (Ended(number, jobs[number], True) for number in reversed(list(jobs)))

    monkeypatch.setattr(depths, "side_by_side", beside)
    monkeypatch.setattr(depths, "worth_their_start", lambda seconds, workers: min(seconds) > 0)
    assert list(depths.across_depths(cfg, compared, source, settings, where)) == by_turns
    assert [row.placement for row in by_turns] == ["post", "pre", "deep", "sandwich"]
    assert calls == [["preflight.depths=1", "preflight.depths=3"] * 4]
