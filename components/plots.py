"""Plots as inline SVG: the search history, quality against size, and the heatmaps and curves of a search method.

Colours come from the page's style sheet (`components/report.css`).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 540, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 46
COLOURS = 8

MOST_NUMBERED, MOST_NUMBERED_ROWS, MOST_DIGITS = 12, 40, 6
"""With more columns, rows or letters than this, the cells of a heatmap have no room for their numbers."""
NUMBERED_CELL, BARE_CELL = (40, 20), (16, 16)
MOST_WIDTH, MOST_HEIGHT = 960, 900
"""Pixels that all cells of a heatmap may take together; cells shrink to fit."""
CELLS_TOP, NARROWEST = 58, 420
LETTER, LINE, MOST_LETTERS = 6.6, 14, 22
SLANT = 60
FAINTEST, STRONG = 0.12, 0.7
"""Opacity of a cell just above or below 0, and from where on its number is written in the page's light on it."""
SWATCHES, SCALE_END = 24, 190


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, and knows its ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the axis, four to eight of them where it is linear."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            marks = [m * 10.0**decade for decade in decades for m in ((1,) if len(decades) > 4 else (1, 2, 5))]
        else:
            step = _round_step((self.high - self.low) / 5)
            first = math.ceil(self.low / step - 1e-9)
            marks = [step * k for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [mark for mark in marks if self.low <= mark <= self.high]


def _round_step(rough: float) -> float:
    scale = 10.0 ** math.floor(math.log10(rough))
    return next(scale * m for m in (1, 2, 2.5, 5, 10) if scale * m >= rough * (1 - 1e-9))


def _span(values: Sequence[float], share: float = 0.07) -> tuple[float, float]:
    """The range of values with some air, never empty."""
    low, high = min(values), max(values)
    air = (high - low) * share or abs(high) * 0.01 or 1.0
    return low - air, high + air


@dataclass(frozen=True)
class Trial:
    """One point of the search history: `value` None where the trial gave none."""

    study: str
    number: int
    value: float | None
    hint: str


def history(trials: Sequence[Trial], metric: str) -> str:
    """Trials of each study as points, and the best value so far as a line. Lower values are better."""
    shown = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    if not shown:
        return ""
    # A diverged trial must not squeeze all others into one line: the axis ends a little above the upper quartile.
    values = sorted(trial.value for trial in shown if trial.value is not None)
    ceiling = values[3 * len(values) // 4] + 3 * (values[len(values) // 2] - values[0]) + 1e-12
    y = Axis(*_span([value for value in values if value <= ceiling]), HEIGHT - BOTTOM, TOP)
    x = Axis(-0.5, max(trial.number for trial in shown) + 0.5, LEFT, WIDTH - RIGHT)
    studies = list(dict.fromkeys(trial.study for trial in trials))
    marks = []
    for index, study in enumerate(studies):
        of_study = sorted((trial for trial in shown if trial.study == study), key=lambda trial: trial.number)
        marks.append(_best_line(of_study, x, y, f"c{index % COLOURS}"))
        for trial in of_study:
            value = min(trial.value or 0.0, y.high)
            marks.append(_dot(x.at(trial.number), y.at(value), f"c{index % COLOURS}", trial.hint))
    frame = _frame(x, y, "trial", f"validation {metric}", _whole, _digits(y))
    text = f"Search history of {', '.join(studies)}: validation {metric} of each trial, and the best so far."
    return _figure(text, frame + "".join(marks)) + legend(studies)


def _best_line(trials: Sequence[Trial], x: Axis, y: Axis, colour: str) -> str:
    best, path = math.inf, ""
    for trial in trials:
        value = min(best, trial.value or math.inf)
        if value < best:
            path += f"M{x.at(trial.number):.1f} {y.at(value):.1f}" if not path else ""
            path += f"H{x.at(trial.number):.1f}V{y.at(min(value, y.high)):.1f}"
            best = value
    return f'<path class="best {colour}" d="{path}H{x.end:.1f}"/>' if path else ""


@dataclass(frozen=True)
class Model:
    """One point of the quality plot."""

    name: str
    origin: str
    cost: int
    mean: float
    std: float
    pareto: bool


def quality(models: Sequence[Model], metric: str, lower_is_better: bool, cost: str = "parameters") -> str:
    """A metric against what the models cost (log scale), with one standard deviation and the Pareto front."""
    ends = [model.mean + sign * model.std for model in models for sign in (-1, 1)]
    y = Axis(*_span(ends), HEIGHT - BOTTOM, TOP)
    sizes = [max(model.cost, 1) for model in models]
    x = Axis(min(sizes) / 1.6, max(sizes) * 1.6, LEFT, WIDTH - RIGHT, log=True)
    front = sorted((model for model in models if model.pareto), key=lambda model: model.cost)
    marks = [_front_line(front, x, y)] + [_model_mark(model, cost, x, y) for model in models] + _names(models, x, y)
    frame = _frame(x, y, cost, metric, _count, _digits(y))
    better = "lower" if lower_is_better else "higher"
    text = f"{metric} ({better} is better) against {cost}. On the Pareto front: " + ", ".join(
        f"{model.name} ({model.mean:.4f}, {model.cost:,} {cost})" for model in front
    )
    return _figure(text, frame + "".join(marks))


def _front_line(front: Sequence[Model], x: Axis, y: Axis) -> str:
    points = [(x.at(max(model.cost, 1)), y.at(model.mean)) for model in front]
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    path += "".join(f"H{px:.1f}V{py:.1f}" for px, py in points[1:]) + f"H{x.end}"
    return f'<path class="front" d="{path}"/>'


def _model_mark(model: Model, cost: str, x: Axis, y: Axis) -> str:
    px, colour = x.at(max(model.cost, 1)), "c0" if model.origin == "found" else "c1"
    low, high = y.at(model.mean - model.std), y.at(model.mean + model.std)
    bar = f'<path class="error {colour}" d="M{px:.1f} {low:.1f}V{high:.1f}"/>' if model.std else ""
    hint = f"{model.name}: {model.mean:.5f} ± {model.std:.5f}, {model.cost:,} {cost}"
    return bar + _dot(px, y.at(model.mean), colour, hint)


def _names(models: Sequence[Model], x: Axis, y: Axis) -> list[str]:
    """Each name at the first of a few places around its point where it covers no point and no other name.

    Of many models only those on the front are named.
    """
    points = [(x.at(max(model.cost, 1)), y.at(model.mean)) for model in models]
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in points]
    texts = []
    for model, (px, py) in zip(models, points, strict=True):
        if len(models) > MOST_NAMES and not model.pareto:
            continue
        width = 6.8 * len(model.name)
        places = [(px + dx, py + dy, width) for dy in _OFFSETS for dx in (10, -10 - width)]
        inside = [
            place for place in places if LEFT < place[0] < WIDTH - RIGHT - width and TOP < place[1] < HEIGHT - BOTTOM
        ]
        left, middle, _ = next((place for place in inside if _free(place, taken)), inside[0] if inside else places[0])
        taken.append(_covered((left, middle, width)))
        texts.append(f'<text class="mark" x="{left:.1f}" y="{middle + 4:.1f}">{escape(model.name)}</text>')
    return texts


MOST_NAMES = 16
_OFFSETS = (0, -10, 10, -20, 20, -32, 32, -44, 44)


def _covered(place: tuple[float, float, float]) -> tuple[float, float, float, float]:
    left, middle, width = place
    return left, middle - 6, left + width, middle + 6


def _free(place: tuple[float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> bool:
    left, top, right, bottom = _covered(place)
    return all(right < x1 or left > x2 or bottom < y1 or top > y2 for x1, y1, x2, y2 in taken)


# ---- what a search method shows -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cells:
    """Where the cells of a heatmap lie, and how a value looks. The axes count columns and rows from 0."""

    x: Axis
    y: Axis
    low: float
    high: float
    decimals: int | None
    """Of the numbers in the cells; None where there is no room for numbers."""

    @property
    def size(self) -> tuple[float, float]:
        return self.x.at(1) - self.x.at(0), self.y.at(1) - self.y.at(0)

    def strength(self, value: float) -> float:
        """The opacity of a cell."""
        return FAINTEST + (1 - FAINTEST) * abs(value) / max(self.high, -self.low) if value else 0.0

    def draw(self, x: float, y: float, size: tuple[float, float], value: float) -> str:
        """A cell by its upper left corner. Exactly 0 has a look of its own: closed is not the same as small."""
        look = "above" if value > 0 else "below" if value < 0 else "zero"
        box = f'x="{x:.1f}" y="{y:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
        return f'<rect class="cell {look}" fill-opacity="{self.strength(value):.2f}" {box}/>'

    def text(self, x: float, y: float, value: float) -> str:
        """What is printed in the middle of a cell: its number, or a dot in a closed one that has no room for it."""
        text = "" if value else "·"
        if self.decimals is not None:
            text = f"{value:.{self.decimals}f}" if value else "0"
        look = "number strong" if self.strength(value) > STRONG else "number"
        return f'<text class="{look}" x="{x:.1f}" y="{y + 4:.1f}">{text}</text>' if text else ""


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    row_name: str = "",
    column_name: str = "",
    marked: Iterable[Sequence[int]] = (),
) -> str:
    """`values[row][column]` as tinted cells, in two colours where some are negative; None stays blank.

    Cells in `marked`, as (row, column), are outlined.
    """
    if not rows or not columns:
        return ""
    lines = [_finite(line) for line in values]
    cells = _cells(rows, columns, [value for line in lines for value in line if value is not None])
    drawn = [
        _cell(cells, row, column, value, f"{rows[row]} × {columns[column]}: {value:.5g}")
        for row, line in enumerate(lines)
        for column, value in enumerate(line)
        if value is not None
    ]
    zeros, blanks = (sum(line.count(kind) for line in lines) for kind in (0, None))
    labels, bottom = _column_labels(columns, cells)
    labels += _row_labels(rows, cells) + _axis_name(4, CELLS_TOP - 10, row_name, "start")
    labels += _axis_name((cells.x.start + cells.x.end) / 2, bottom + 22, column_name, "middle")
    text = f"{len(rows)} × {len(columns)} values from {cells.low:.5g} to {cells.high:.5g}, {zeros} of them exactly 0."
    size = (max(cells.x.end + 8, NARROWEST), bottom + 28)
    style = f' style="max-width:{size[0]:.0f}px;min-width:{0.75 * size[0]:.0f}px"'
    drawn += [_outline(cells, row, column) for row, column in marked]
    return _figure(text, _scale(cells, bool(zeros), bool(blanks)) + labels + "".join(drawn), size, style)


def _outline(cells: _Cells, row: int, column: int) -> str:
    (width, height), x, y = cells.size, cells.x.at(column), cells.y.at(row)
    return f'<rect class="outline" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" height="{height - 2:.1f}"/>'


def _finite(values: Sequence[float | None]) -> list[float | None]:
    return [value if value is not None and math.isfinite(value) else None for value in values]


def _cells(rows: Sequence[str], columns: Sequence[str], values: Sequence[float]) -> _Cells:
    low, high = min([0.0, *values]), max([0.0, *values])
    decimals = 0 if all(value == round(value) for value in values) else 2
    letters = max(len(f"{end:.{decimals}f}") for end in (low, high))
    numbered = len(columns) <= MOST_NUMBERED and len(rows) <= MOST_NUMBERED_ROWS and letters <= MOST_DIGITS
    width, height = NUMBERED_CELL if numbered else BARE_CELL
    left = 14 + LETTER * max(_longest(rows), _longest(columns) * math.cos(math.radians(SLANT)))
    x = Axis(0, len(columns), left, left + min(width * len(columns), MOST_WIDTH))
    y = Axis(0, len(rows), CELLS_TOP, CELLS_TOP + min(height * len(rows), MOST_HEIGHT))
    return _Cells(x, y, low, high, decimals if numbered else None)


def _cell(cells: _Cells, row: int, column: int, value: float, hint: str) -> str:
    drawn = cells.draw(cells.x.at(column), cells.y.at(row), cells.size, value)
    drawn += cells.text(cells.x.at(column + 0.5), cells.y.at(row + 0.5), value)
    return f"<g><title>{escape(hint)}</title>{drawn}</g>"


def _row_labels(rows: Sequence[str], cells: _Cells) -> str:
    places = [(cells.x.start - 6, cells.y.at(row + 0.5) + 4) for row in range(len(rows))]
    return _labels(rows, places, cells.size[1], "end")


def _column_labels(columns: Sequence[str], cells: _Cells) -> tuple[str, float]:
    """The labels, slanted if they have no room side by side, and where they end."""
    middles, top = [cells.x.at(column + 0.5) for column in range(len(columns))], cells.y.end + LINE
    width = LETTER * _longest(columns)
    if width < cells.size[0]:
        return _labels(columns, [(x, top) for x in middles], cells.size[0], "middle"), top
    labels = _labels(columns, [(x + 4, top - 2) for x in middles], cells.size[0], "end", slant=SLANT)
    return labels, top + width * math.sin(math.radians(SLANT))


def _labels(
    names: Sequence[str], places: Sequence[tuple[float, float]], pitch: float, anchor: str, slant: int = 0
) -> str:
    """One name for each place, or for every so many if a line of text is higher than the cells."""
    texts = []
    for name, (x, y) in list(zip(names, places, strict=True))[:: math.ceil(LINE / pitch)]:
        turn = f' transform="rotate(-{slant} {x:.1f} {y:.1f})"' if slant else ""
        short = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
        texts.append(f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(short)}</text>')
    return "".join(texts)


def _longest(names: Sequence[str]) -> int:
    return max(min(len(name), MOST_LETTERS) for name in names)


def _scale(cells: _Cells, zeros: bool, blanks: bool) -> str:
    """What the tints mean: swatches from the least value to the greatest, exactly 0, and blank cells."""
    parts, at = [], 4.0
    if cells.low < cells.high:
        axis = Axis(cells.low, cells.high, at, SCALE_END)
        step = (cells.high - cells.low) / SWATCHES
        size = ((SCALE_END - at) / SWATCHES, 10)
        lefts = [cells.low + step * k for k in range(SWATCHES)]
        parts += [cells.draw(axis.at(left), 4, size, left + step / 2) for left in lefts]
        parts += [_scale_mark(axis, value) for value in _scale_values(axis)]
        at = SCALE_END + 26
    if zeros:
        parts.append(cells.draw(at, 1, BARE_CELL, 0.0))
        parts.append(cells.text(at + 8, 9, 0.0))
        parts.append(f'<text class="tick" x="{at + 22}" y="13">exactly 0</text>')
        at += 90
    if blanks:
        parts.append(f'<text class="tick" x="{at}" y="13">blank: no value</text>')
    return "".join(parts)


def _scale_values(axis: Axis) -> list[float]:
    """Both ends, and 0 where it is not too close to one of them."""
    inside = [0.0] if min(axis.at(0) - axis.start, axis.end - axis.at(0)) > 40 else []
    return [axis.low, *inside, axis.high]


def _scale_mark(axis: Axis, value: float) -> str:
    anchor = {axis.low: "start", axis.high: "end"}.get(value, "middle")
    return f'<text class="tick" x="{axis.at(value):.1f}" y="28" text-anchor="{anchor}">{value:.3g}</text>'


@dataclass(frozen=True)
class Series:
    """One curve; None where it has no value."""

    name: str
    values: Sequence[float | None]

    @property
    def known(self) -> list[float]:
        """The values that it has, in order."""
        return [value for value in _finite(self.values) if value is not None]


def curves(x_values: Sequence[float], series: Sequence[Series], x_name: str, y_name: str) -> str:
    """Each series as a line: in its own colour while there are colours, else coloured by whether it ends at 0."""
    drawn = [one for one in series if one.known]
    if not drawn:
        return ""
    y = Axis(*_span([value for one in drawn for value in one.known]), HEIGHT - BOTTOM, TOP)
    x = Axis(*_span(x_values, 0.01), LEFT, WIDTH - RIGHT)
    groups = _groups(drawn)
    lines = [
        _line(x_values, one, x, y, f"c{index}{'' if len(drawn) <= COLOURS else ' thin'}")
        for index, (_, group) in reversed(list(enumerate(groups)))  # the first group on top
        for one in group
    ]
    x_text = _whole if all(value == round(value) for value in x_values) else _digits(x)
    frame = _frame(x, y, x_name, y_name, x_text, _digits(y))
    text = f"{y_name} by {x_name}, {len(drawn)} curves."
    return _figure(text, frame + "".join(lines)) + legend([name for name, _ in groups])


def _groups(series: Sequence[Series]) -> list[tuple[str, list[Series]]]:
    """The series by what the legend says of their colour."""
    if len(series) <= COLOURS:
        return [(one.name, [one]) for one in series]
    ended = [one for one in series if one.known[-1] == 0]
    others = [one for one in series if one.known[-1] != 0]
    return [(f"does not end at 0 ({len(others)})", others), (f"ends at exactly 0 ({len(ended)})", ended)]


def _line(x_values: Sequence[float], series: Series, x: Axis, y: Axis, colour: str) -> str:
    path, pen = "", "M"
    for at, value in zip(x_values, _finite(series.values), strict=True):
        if value is not None:
            path += f"{pen}{x.at(at):.1f} {y.at(value):.1f}{'h0' if pen == 'M' else ''}"  # h0: alone it is a dot
        pen = "M" if value is None else "L"
    hint = f"{series.name}: ends at {series.known[-1]:.5g}"
    return f'<path class="curve {colour}" d="{path}"><title>{escape(hint)}</title></path>'


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot, and what it stands for."""

    name: str
    x: float
    y: float


def scatter(points: Sequence[Point], x_name: str, y_name: str) -> str:
    """Points over two measured axes."""
    shown = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not shown:
        return ""
    y = Axis(*_span([point.y for point in shown]), HEIGHT - BOTTOM, TOP)
    x = Axis(*_span([point.x for point in shown]), LEFT, WIDTH - RIGHT)
    dots = [
        _dot(x.at(point.x), y.at(point.y), "c0", f"{point.name}: {x_name} {point.x:.5g}, {y_name} {point.y:.5g}")
        for point in shown
    ]
    frame = _frame(x, y, x_name, y_name, _digits(x), _digits(y))
    return _figure(f"{y_name} against {x_name}, {len(shown)} points.", frame + "".join(dots))


@dataclass(frozen=True)
class Option:
    """One option of a decision: its score, None if it has none, and whether it was taken."""

    name: str
    score: float | None
    taken: bool


@dataclass(frozen=True)
class Decision:
    """A decision with its options. `rising`: a greater score is better."""

    name: str
    options: Sequence[Option]
    rising: bool

    @property
    def width(self) -> float:
        """Pixels of its column."""
        return max(LETTER * _longest([option.name for option in self.options]) + 74, LETTER * len(self.name)) + 12

    def strength(self, score: float) -> float:
        """The opacity of an option: the best of the decision is the darkest."""
        known = [option.score for option in self.options if option.score is not None]
        worst, best = (min(known), max(known)) if self.rising else (max(known), min(known))
        return FAINTEST + (MIDDLE - FAINTEST) * ((score - worst) / (best - worst) if best != worst else 0.0)


MIDDLE = 0.55
"""Opacity that leaves the text upon it readable."""
OPTION, GAP = 22, 16
"""Height of an option, and room between columns."""


def stages(parts: Sequence[tuple[str, Sequence[Decision]]]) -> str:
    """Decisions as columns of options, side by side and in as many lines as it takes, under the name of their stage."""
    y, widest, drawn = 0.0, float(NARROWEST), []
    for name, decisions in parts:
        drawn.append(f'<text class="stage" x="4" y="{y + 18:.1f}">{escape(name)}</text>')
        y += 28
        x = lowest = 0.0
        for decision in decisions:
            if x and x + decision.width > MOST_WIDTH:
                x, y, lowest = 0.0, y + lowest + GAP, 0.0
            drawn.append(_decision(decision, x + 4, y))
            x, lowest = x + decision.width + GAP, max(lowest, OPTION * (len(decision.options) + 1))
            widest = max(widest, x)
        y += lowest + GAP
    words = ", ".join(f"{name}: {len(decisions)} decisions" for name, decisions in parts)
    style = f' style="max-width:{widest:.0f}px;min-width:{0.75 * widest:.0f}px"'
    return _figure(words, "".join(drawn), (widest, y), style) if parts else ""


def _decision(decision: Decision, x: float, y: float) -> str:
    parts = [f'<text class="axis-name" x="{x:.1f}" y="{y + 14:.1f}">{escape(decision.name)}</text>']
    for place, option in enumerate(decision.options, start=1):
        parts.append(_option(decision, option, x, y + OPTION * place))
    return "".join(parts)


def _option(decision: Decision, option: Option, x: float, y: float) -> str:
    look, score, strength = "zero", "", 1.0
    if option.score is not None:
        look, score, strength = "above", f"{option.score:.4f}", decision.strength(option.score)
    hint = " ".join([f"{decision.name}: {option.name}", score, "(taken)" if option.taken else ""]).strip()
    name = option.name if len(option.name) <= MOST_LETTERS else f"{option.name[: MOST_LETTERS - 1]}…"
    marks = [
        f"<title>{escape(hint)}</title>",
        f'<rect class="cell {look}" fill-opacity="{strength:.2f}" {_box(x, y, decision.width, OPTION)}/>',
        f'<text class="option" x="{x + 7:.1f}" y="{y + 15:.1f}">{escape(name)}</text>',
        f'<text class="option" x="{x + decision.width - 7:.1f}" y="{y + 15:.1f}" text-anchor="end">{score}</text>',
    ]
    if option.taken:
        marks.append(f'<rect class="outline" {_box(x + 1, y + 1, decision.width - 2, OPTION - 2)}/>')
    return f"<g>{''.join(marks)}</g>"


def _box(x: float, y: float, width: float, height: float) -> str:
    return f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'


# ---- marks and frames -----------------------------------------------------------------------------------------------


def _dot(x: float, y: float, colour: str, hint: str) -> str:
    return f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(hint)}</title></circle>'


def _frame(
    x: Axis, y: Axis, x_name: str, y_name: str, x_text: Callable[[float], str], y_text: Callable[[float], str]
) -> str:
    parts = []
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{y_text(tick)}</text>')
    for tick in dict.fromkeys(round(t) if x_text is _whole else t for t in x.ticks()):
        at = x.at(tick)
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x_text(tick)}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    return "".join(parts) + _axis_name(middle, HEIGHT - 8, x_name, "middle") + _axis_name(4, 14, y_name, "start")


def _axis_name(x: float, y: float, name: str, anchor: str) -> str:
    return f'<text class="axis-name" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(name)}</text>'


def _figure(text: str, content: str, size: tuple[float, float] = (WIDTH, HEIGHT), style: str = "") -> str:
    box = f'viewBox="0 0 {size[0]:.0f} {size[1]:.0f}"{style}'
    return f'<svg class="plot" {box} role="img"><title>{escape(text)}</title>{content}</svg>'


def legend(names: Sequence[str]) -> str:
    """What the colours mean, in the order in which the plots give them out."""
    items = "".join(
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><circle class="dot c{index % COLOURS}" cx="5" cy="5" r="4"/>'
        f"</svg>{escape(name)}</li>"
        for index, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _digits(axis: Axis) -> Callable[[float], str]:
    """As many decimals as the ticks need."""
    exact = (d for d in range(12) if all(math.isclose(round(tick, d), tick, abs_tol=1e-12) for tick in axis.ticks()))
    digits = next(exact, 12)
    return lambda value: f"{value:.{digits}f}"


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
