"""Whether what blocks let be seen has a name in words wherever it is told or plotted."""

import inspect

from archlab.blocks import attention, deltanet, experts, linear_attention, mamba
from archlab.blocks.contracts import FeedForward, Mixer
from archlab.report.page import curves
from archlab.report.plots_autopsy import AT_LOOKS, autopsy_figure
from archlab.report.tables import QUANTITIES


def test_each_tap_has_words_a_plot_and_a_curve():
    classes = (c for module in (attention, deltanet, experts, linear_attention, mamba) for _, c in inspect.getmembers(module, inspect.isclass))  # fmt: skip
    taps = {
        name for c in classes if issubclass(c, (FeedForward, Mixer)) and isinstance(c.taps, tuple) for name in c.taps
    }
    assert {"state_rms", "mean_decay", "router_entropy", "max_load", "min_load"} <= taps
    assert taps <= set(QUANTITIES) and taps <= set(AT_LOOKS) and taps <= set(curves.QUANTITIES.values())


def test_a_quantity_of_some_layers_is_drawn_though_the_first_layer_has_none():
    layers = [{"activation_rms": 1.0}, {"activation_rms": 2.0, "state_rms": 0.5}]
    recorded = [{"step": step, "loss": 2.0, "layers": layers} for step in (1, 2, 3)]
    findings = {"first": None, "note": "nothing moved", "event": "loss", "event_step": 2, "loss_moved": None}
    figure = autopsy_figure(findings, recorded)
    (panel,) = (axes for axes in figure.axes if axes.get_ylabel() == "state\nRMS")
    assert [0.5, 0.5, 0.5] in [list(line.get_ydata()) for line in panel.get_lines()]
