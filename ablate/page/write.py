"""Writes a page: one HTML file that opens in a browser without a network."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ablate.files import write_text
from ablate.page.drawing import Plot


def write_page(path: Path, template: Path, plots: list[Plot], values: dict[str, Any]) -> None:
    """Fills `template`, which extends base.html, with `plots` and `values`, and writes it to `path`."""
    folders = [template.parent, Path(__file__).parent]
    environment = Environment(loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined)
    figures = {plot.name: plot.figure.to_plotly_json() for plot in plots if plot.figure}
    html = environment.get_template(template.name).render(
        {**values, "plots": plots, "figures": figures, "plotly": Markup(get_plotlyjs())}
    )
    write_text(path, html)
