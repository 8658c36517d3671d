"""Sections -> one HTML page that holds all it needs: it loads nothing when it is opened, and is not allowed to."""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

import archlab
from archlab.report.page.parts import Figure, Section


def page(sections: Sequence[Section], title: str, note: str = "") -> str:
    """The page as text. Whatever comes from runs is escaped; SVG is shown as a picture, which can run no script."""
    return template().render(sections=sections, title=title, note=note, **assets(), version=archlab.__version__,
                             written=f"{datetime.now():%Y-%m-%d %H:%M}")  # fmt: skip


@cache
def template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure_json"] = figure_json
    environment.filters["data_uri"] = data_uri
    environment.filters["cited"] = cited
    return environment.from_string(asset("page.html.j2"))


def assets() -> dict[str, str]:
    from plotly.offline import get_plotlyjs

    return {"style": asset("page.css"), "script": asset("page.js"), "plotly": get_plotlyjs()}


def asset(name: str) -> str:
    return (files("archlab.report.page") / name).read_text(encoding="utf-8")


def figure_json(figure: Figure) -> str:
    """A figure's views, safe inside a script element: no < can end it."""
    return json.dumps([asdict(view) for view in figure.views], allow_nan=False).replace("<", "\\u003c")


def data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def cited(text: str) -> Markup:
    """Text in which a paper's number is a link to the paper; everything else is escaped."""
    linked = r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>'
    return Markup(re.sub(r"arXiv:(\d{4}\.\d{5}(?:v\d+)?)", linked, str(escape(text))))
