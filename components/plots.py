"""Two plots as inline SVG: the search history, and quality against size. Colours come from the page's style sheet."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 540, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 46
COLOURS = 8


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
    parameters: int
    mean: float
    std: float
    pareto: bool


def quality(models: Sequence[Model], metric: str, lower_is_better: bool) -> str:
    """Test metric against the number of parameters (log scale), with one standard deviation and the Pareto front."""
    ends = [model.mean + sign * model.std for model in models for sign in (-1, 1)]
    y = Axis(*_span(ends), HEIGHT - BOTTOM, TOP)
    sizes = [max(model.parameters, 1) for model in models]
    x = Axis(min(sizes) / 1.6, max(sizes) * 1.6, LEFT, WIDTH - RIGHT, log=True)
    front = sorted((model for model in models if model.pareto), key=lambda model: model.parameters)
    marks = [_front_line(front, x, y)] + [_model_mark(model, x, y) for model in models] + _names(models, x, y)
    frame = _frame(x, y, "parameters", f"test {metric}", _count, _digits(y))
    better = "lower" if lower_is_better else "higher"
    text = f"Test {metric} ({better} is better) against parameters. On the Pareto front: " + ", ".join(
        f"{model.name} ({model.mean:.4f}, {model.parameters:,} parameters)" for model in front
    )
    return _figure(text, frame + "".join(marks))


def _front_line(front: Sequence[Model], x: Axis, y: Axis) -> str:
    points = [(x.at(max(model.parameters, 1)), y.at(model.mean)) for model in front]
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    path += "".join(f"H{px:.1f}V{py:.1f}" for px, py in points[1:]) + f"H{x.end}"
    return f'<path class="front" d="{path}"/>'


def _model_mark(model: Model, x: Axis, y: Axis) -> str:
    px, colour = x.at(max(model.parameters, 1)), "c0" if model.origin == "found" else "c1"
    low, high = y.at(model.mean - model.std), y.at(model.mean + model.std)
    bar = f'<path class="error {colour}" d="M{px:.1f} {low:.1f}V{high:.1f}"/>' if model.std else ""
    hint = f"{model.name}: {model.mean:.5f} ± {model.std:.5f}, {model.parameters:,} parameters"
    return bar + _dot(px, y.at(model.mean), colour, hint)


def _names(models: Sequence[Model], x: Axis, y: Axis) -> list[str]:
    """Each name at the first of a few places around its point where it covers no point and no other name."""
    points = [(x.at(max(model.parameters, 1)), y.at(model.mean)) for model in models]
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in points]
    texts = []
    for model, (px, py) in zip(models, points, strict=True):
        width = 6.8 * len(model.name)
        places = [(px + dx, py + dy, width) for dy in _OFFSETS for dx in (10, -10 - width)]
        inside = [
            place for place in places if LEFT < place[0] < WIDTH - RIGHT - width and TOP < place[1] < HEIGHT - BOTTOM
        ]
        left, middle, _ = next((place for place in inside if _free(place, taken)), inside[0] if inside else places[0])
        taken.append(_covered((left, middle, width)))
        texts.append(f'<text class="mark" x="{left:.1f}" y="{middle + 4:.1f}">{escape(model.name)}</text>')
    return texts


_OFFSETS = (0, -10, 10, -20, 20, -32, 32, -44, 44)


def _covered(place: tuple[float, float, float]) -> tuple[float, float, float, float]:
    left, middle, width = place
    return left, middle - 6, left + width, middle + 6


def _free(place: tuple[float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> bool:
    left, top, right, bottom = _covered(place)
    return all(right < x1 or left > x2 or bottom < y1 or top > y2 for x1, y1, x2, y2 in taken)


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
    parts.append(f'<text class="axis-name" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(f'<text class="axis-name" x="4" y="14">{escape(y_name)}</text>')
    return "".join(parts)


def _figure(text: str, content: str) -> str:
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(text)}</title>{content}</svg>'


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
