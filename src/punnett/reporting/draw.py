"""Effects in, chart specifications and SVG or PNG files out. One style: readable in grey, by the colour-blind, on paper."""

from pathlib import Path
from typing import Any

from punnett.analysis.effects import HEADLINE, Findings
from punnett.spec.arms import Arm
from punnett.spec.measure import Effect, Measure

INK, PALE, ACCENT = "#1f2933", "#9aa5b1", "#0b6e99"
# position, shape and shade all tell the groups apart, so that no one of them has to
SHADES = (ACCENT, "#c2571a", "#5f6b7a", "#8f9aa6")
SHAPES = ("circle", "diamond", "square", "triangle-up")


def rates_chart(findings: Findings, measure: Measure, arms: list[Arm]) -> Any:
    """Every arm's rate with its 95 % interval, one row an arm, groups of items beside one another."""
    import altair

    groups = _groups(findings, measure)
    rows = [
        {
            "arm": effect.arm.replace("_", " "),
            "group": _group_name(measure, effect.group),
            "rate": effect.estimate,
            "low": effect.low,
            "high": effect.high,
        }
        for effect in findings.rates
        if effect.measure == measure.name and effect.group in groups
    ]
    order = [arm.name.replace("_", " ") for arm in arms]
    names = [_group_name(measure, group) for group in groups]
    row = altair.Y("arm:N", sort=order, title=None, axis=altair.Axis(labelLimit=220))
    offset = altair.YOffset("group:N", sort=names)
    colour = altair.Color(
        "group:N", sort=names, title=None, scale=altair.Scale(domain=names, range=list(SHADES[: len(names)])), legend=_legend(len(names))
    )
    shape = altair.Shape("group:N", sort=names, title=None, scale=altair.Scale(domain=names, range=list(SHAPES[: len(names)])))
    base = altair.Chart(altair.Data(values=rows))
    scale = altair.Scale(domain=[0, 1])
    title = "share of answers that doubt the date" if measure.name == "date_confusion" else f"{measure.name}: share"
    whisker = base.mark_rule(strokeWidth=1.6).encode(
        x=altair.X("low:Q", scale=scale, title=title, axis=altair.Axis(format=".1f", tickCount=5)), x2="high:Q", y=row, yOffset=offset, color=colour
    )
    point = base.mark_point(filled=True, size=58, opacity=1).encode(
        x=altair.X("rate:Q", scale=scale), y=row, yOffset=offset, color=colour, shape=shape
    )
    height = len(order) * (13 * len(names) + 12)
    return _styled((whisker + point).properties(width=430, height=height), altair)


def contrasts_chart(findings: Findings, measure: Measure, margin: float) -> Any:
    """Every contrast with its 95 % interval against 0 and the equivalence margin."""
    import altair

    rows = [
        {"contrast": contrast_name(e), "difference": e.estimate, "low": e.low, "high": e.high, "verdict": e.verdict}
        for e in findings.contrasts
        if e.measure == measure.name
    ]
    order = [row["contrast"] for row in rows]
    verdicts = ["different", "equivalent", "undecided"]
    colour = altair.Color("verdict:N", scale=altair.Scale(domain=verdicts, range=[ACCENT, "#5f6b7a", "#c2571a"]), title=None, legend=_legend(3))
    shape = altair.Shape("verdict:N", scale=altair.Scale(domain=verdicts, range=["circle", "square", "diamond"]), title=None)
    row = altair.Y("contrast:N", sort=order, title=None, axis=altair.Axis(labelLimit=320))
    base = altair.Chart(altair.Data(values=rows))
    band = (
        altair.Chart(altair.Data(values=[{"from": -margin, "to": margin}]))
        .mark_rect(color="#e4e7eb", opacity=0.8)
        .encode(
            x=altair.X("from:Q", scale=altair.Scale(domain=[-1, 1]), title="difference of shares", axis=altair.Axis(tickCount=5, format="+.1f")),
            x2="to:Q",
        )
    )
    zero = altair.Chart(altair.Data(values=[{"at": 0}])).mark_rule(color=PALE).encode(x="at:Q")
    whisker = base.mark_rule(strokeWidth=1.6).encode(x="low:Q", x2="high:Q", y=row, color=colour)
    point = base.mark_point(filled=True, size=58, opacity=1).encode(x="difference:Q", y=row, color=colour, shape=shape)
    return _styled((band + zero + whisker + point).properties(width=430, height=25 * len(order)), altair)


def contrast_name(effect: Effect) -> str:
    """A contrast as the table and the picture call it."""
    return f"{effect.arm} − {effect.versus}".replace("_", " ")


def save(chart: Any, path: Path) -> str:
    """Write the chart as SVG and PNG beside each other; returns the SVG's text."""
    import vl_convert

    specification = chart.to_json()
    svg = str(vl_convert.vegalite_to_svg(specification))
    path.with_suffix(".svg").write_text(svg, encoding="utf-8")
    path.with_suffix(".png").write_bytes(vl_convert.vegalite_to_png(specification, scale=2))
    return svg


def _groups(findings: Findings, measure: Measure) -> list[str]:
    """The headline first, then the other groups of a trait; a capability shows its headline alone."""
    others = sorted({e.group for e in findings.rates if e.measure == measure.name} - {HEADLINE, measure.headline_group or HEADLINE})
    return [HEADLINE, *others] if measure.kind == "trait" else [HEADLINE]


def _group_name(measure: Measure, group: str) -> str:
    if group != HEADLINE:
        return group
    return measure.headline_group or "all items"


def _legend(n_entries: int) -> Any:
    import altair

    return altair.Legend(orient="top", direction="horizontal") if n_entries > 1 else None


def _styled(chart: Any, altair: Any) -> Any:
    font = "Helvetica, Arial, sans-serif"
    return (
        # room on the left: labels are measured in a font that the viewer may not have
        chart.configure(background="#ffffff", font=font, padding={"left": 45, "right": 10, "top": 5, "bottom": 5})
        .configure_axis(
            labelColor=INK, titleColor=INK, gridColor="#eceff2", domainColor=PALE, tickColor=PALE, labelFontSize=12, titleFontWeight="normal"
        )
        .configure_legend(labelColor=INK, labelFontSize=12)
        .configure_view(stroke=None)
    )
