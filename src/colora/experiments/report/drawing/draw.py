"""Every kind of figure as an <svg> element."""

from colora.experiments.report.drawing.heat_map import draw_heat_map
from colora.experiments.report.drawing.panel import draw_panel
from colora.experiments.report.drawing.rows import draw_forest, draw_strips
from colora.experiments.report.plots import Figure, Forest, HeatMap, Panel

__all__ = ["draw"]


def draw(figure: Figure) -> str:
    """An <svg> element with a title and a description, to stand inside a page that has `style.STYLE`."""
    if isinstance(figure, Panel):
        return draw_panel(figure)
    if isinstance(figure, HeatMap):
        return draw_heat_map(figure)
    return draw_forest(figure) if isinstance(figure, Forest) else draw_strips(figure)
