"""report.html: what `report.json` holds, for people. One file, no network, light and dark, readable without colours."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from components import drawing, plots
from components.settings import METRIC_NAMES as NAMES
from trainer.architecture import Architecture
from trainer.metrics import HIGHER_IS_BETTER, MAIN, NEGATIVES
from trainer.shapes import Counts, count

Facts = Mapping[str, Any]

TASKS = {"ctr": "click prediction", "rating": "rating prediction", "next_item": "next-item prediction"}


def page(facts: Facts) -> str:
    """The page for the content of report.json (`docs/report.md`)."""
    folder = Path(__file__).parent
    title = f"{facts['pipeline']}: {facts['champion']}"
    body = "".join(
        (
            _header(facts),
            _tiles(facts),
            _leaderboard(facts),
            f'<div class="plots">{_history(facts)}{_quality(facts)}</div>',
            _seen(facts),
            _architecture(facts),
            _data(facts),
            _settings(facts),
        )
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{(folder / 'report.css').read_text()}</style></head><body><main>{body}</main>"
        f"<script>{(folder / 'report.js').read_text()}</script></body></html>"
    )


# ---- head -----------------------------------------------------------------------------------------------------------


def _header(facts: Facts) -> str:
    task = TASKS[facts["task"]]
    rows = facts["data"]["rows"]
    when = str(facts["created"]).replace("T", " ").replace("+00:00", " UTC")
    words = f"{task} on {sum(rows.values()):,} rows · evaluated on {rows['test']:,} test rows, {escape(when)}"
    return f"<header><h1>{escape(facts['pipeline'])}</h1><p>{words}</p></header>"


def _tiles(facts: Facts) -> str:
    champion = _champion(facts)
    metric, summary = facts["metric"], champion["metrics"]["test"][facts["metric"]]
    tiles = [
        ("champion", escape(champion["name"]), _verdict(facts)),
        (f"test {NAMES[metric]}", f"{summary['mean']:.4f}", f"± {summary['std']:.4f} over {_seeds(champion)}"),
        ("parameters", _count(_size(champion)), f"{_count(champion['flops'])} multiply-adds per row"),
        ("search", _duration(sum(search["seconds"] for search in facts["searches"])), _effort(facts["searches"])),
    ]
    planted = facts["data"]["statistics"].get("planted") or {}
    if isinstance(planted.get(metric), float):
        gap = (summary["mean"] / planted[metric] - 1) * 100
        tiles.append(
            (f"planted truth's {NAMES[metric]}", f"{planted[metric]:.4f}", f"the champion's is {gap:+.2f}\u00a0%")
        )
    items = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>' for name, value, note in tiles
    )
    return f'<dl class="tiles">{items}</dl>'


def _verdict(facts: Facts) -> str:
    """How the champion stands against the best model of the other origin."""
    champion, metric = _champion(facts), facts["metric"]
    others = [entry for entry in facts["leaderboard"] if entry["origin"] != champion["origin"]]
    if not others:
        return "found by the search" if champion["origin"] == "found" else "hand-made"
    rival = others[0]
    mine, theirs = (entry["metrics"]["test"][metric]["mean"] for entry in (champion, rival))
    gain = (mine - theirs) if metric in HIGHER_IS_BETTER else (theirs - mine)
    kind = "hand-made" if rival["origin"] == "zoo" else "found"
    return f"{abs(gain):.4f} {'better' if gain >= 0 else 'worse'} than {_whole(rival['name'])}, the best {kind} model"


# ---- leaderboard ----------------------------------------------------------------------------------------------------


def _leaderboard(facts: Facts) -> str:
    measures = [
        facts["metric"],
        *(name for name in facts["leaderboard"][0]["metrics"]["test"] if name != facts["metric"]),
    ]
    heads = [
        ("model", "text", ""),
        *((f"test {NAMES[name]}", "", "mean ± standard deviation over seeds") for name in measures),
        ("parameters", "", "tables, maps that align widths, and all other weights"),
        ("FLOPs", "", "multiply-adds per row"),
        ("1 row", "", "milliseconds to predict one encoded row, median"),
        ("rows/s", "", "in batches of 10,000 encoded rows"),
        ("search", "", "training time of all its trials"),
        ("rows searched", "", "rows that its trials learned from, each counted in every pass"),
        ("training", "", "training time of all its seeds"),
        ("beats", "", "models with greater losses by paired t-tests, false discovery rate 5 % over all pairs"),
        ("p", "", "paired t-test of the rows' losses against the champion's, two-sided"),
    ]
    cells = "".join(
        f'<th scope="col" class="{kind}" title="{hint}"><button type="button">{name}</button></th>'
        for name, kind, hint in heads
    )
    rows = "".join(_row(entry, facts["champion"], measures) for entry in facts["leaderboard"])
    return (
        "<section><h2>Leaderboard</h2>"
        f"<p>Sorted by test {NAMES[facts['metric']]}, best first; click a heading to sort by it. The champion is the "
        "model with the best mean on the validation split, so that the test split has no say in its choice. "
        f"“Pareto” marks models that no other one beats with as few parameters.{_ranking(facts)}</p>"
        f'<div class="scroll"><table class="sortable"><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>'
        "</div></section>"
    )


def _ranking(facts: Facts) -> str:
    if facts["task"] != "next_item":
        return ""
    return (
        f" Every item is ranked for each row; “sampled” figures rank the right one among {NEGATIVES} drawn items only, "
        "so they are greater, and comparable to nothing but their like."
    )


def _row(entry: Facts, champion: str, measures: list[str]) -> str:
    chips = f'<span class="chip {entry["origin"]}">{entry["origin"]}</span>'
    chips += '<span class="chip">Pareto</span>' if entry["pareto"] else ""
    chips += '<span class="chip champion">champion</span>' if entry["name"] == champion else ""
    test, against = entry["metrics"]["test"], entry["against_champion"]
    cells = [
        *(
            (test[name]["mean"], f"{test[name]['mean']:.4f} <small>± {test[name]['std']:.4f}</small>")
            for name in measures
        ),
        (_size(entry), _parts(entry["parameters"])),
        (entry["flops"], _count(entry["flops"])),
        (entry["latency"]["row_milliseconds"], f"{entry['latency']['row_milliseconds']:.2f} ms"),
        (entry["latency"]["rows_per_second"], _count(entry["latency"]["rows_per_second"])),
        (entry["search_seconds"], _duration(entry["search_seconds"])),
        (entry["search_samples"], _count(entry["search_samples"])),
        (entry["train_seconds"], _duration(entry["train_seconds"])),
        (len(entry["beats"]), f'<span title="{escape(", ".join(entry["beats"]))}">{len(entry["beats"])}</span>'),
        (against["p"] if against else 2, _p_value(against)),
    ]
    data = "".join(f'<td data-value="{value}">{text}</td>' for value, text in cells)
    mark = ' class="champion"' if entry["name"] == champion else ""
    name = escape(entry["name"])
    return f'<tr{mark}><th scope="row" class="text" data-value="{name}">{name}{chips}</th>{data}</tr>'


def _parts(parameters: Mapping[str, int]) -> str:
    text = ", ".join(f"{name} {size:,}" for name, size in parameters.items())
    return f'<span title="{text}">{_count(sum(parameters.values()))}</span>'


def _p_value(against: Mapping[str, float] | None) -> str:
    if against is None:
        return "–"
    p = against["p"]
    return "&lt; 0.0001" if p < 1e-4 else f"{p:.4f}"


# ---- plots ----------------------------------------------------------------------------------------------------------


def _history(facts: Facts) -> str:
    measure = NAMES[MAIN[facts["task"]]]
    trials = [
        plots.Trial(trial["study"], trial["number"], trial["value"], _trial_hint(trial)) for trial in facts["trials"]
    ]
    picture = plots.history(trials, measure)
    if not picture:
        return ""
    return (
        "<section><h2>Search history</h2>"
        f"<p>Validation {measure} of every trial (points) and the best so far (lines); lower is better.</p>"
        f"{picture}{''.join(_trade_off(facts, search['method'], measure) for search in facts['searches'])}"
        f"{_trial_table(facts['trials'])}</section>"
    )


def _trade_off(facts: Facts, method: str, measure: str) -> str:
    """What the trials of a search led to, against each cost in which these models differ."""
    trials = [trial for trial in facts["trials"] if trial["study"] == method and trial["state"] == "complete"]
    sizes, multiply_adds = [_trial_size(trial) for trial in trials], [int(trial["flops"]) for trial in trials]
    pictures = [
        _trade_off_against(method, trials, sizes, "size", "parameters", measure),
        _trade_off_against(method, trials, multiply_adds, "multiply-adds", "multiply-adds", measure),
    ]
    if not any(pictures):
        return ""
    return (
        f"{''.join(pictures)}<p>Numbers are those of the trials of {escape(method)}, the dashed lines are the Pareto"
        " fronts.</p>"
    )


def _trade_off_against(
    method: str, trials: Sequence[Facts], costs: Sequence[int], title: str, cost: str, measure: str
) -> str:
    places = [(price, trial["value"]) for price, trial in zip(costs, trials, strict=True)]
    if len(set(costs)) < 2:
        return ""
    models = [
        plots.Model(
            f"{trial['number']}",
            "found",
            *place,
            0.0,
            pareto=not any(other != place and other[0] <= place[0] and other[1] <= place[1] for other in places),
        )
        for trial, place in zip(trials, places, strict=True)
    ]
    picture = plots.quality(models, f"validation {measure}", lower_is_better=True, cost=cost)
    return f"<h3>Quality against {title} of what the trials of {escape(method)} led to</h3>{picture}"


def _trial_size(trial: Facts) -> int:
    return int(trial["tables"] + trial["lifts"] + trial["dense"])


def _trial_hint(trial: Facts) -> str:
    value = "no value" if trial["value"] is None else f"{trial['value']:.5f}"
    return f"{trial['study']} trial {trial['number']}: {value} ({trial['state']})"


def _trial_table(trials: Iterable[Facts]) -> str:
    rows = "".join(
        f'<tr><th scope="row" class="text">{escape(trial["study"])} {trial["number"]}</th>'
        f'<td class="text">{_trial_state(trial)}</td><td>{_number(trial["value"])}</td>'
        f"<td>{_count(_trial_size(trial))}</td><td>{_duration(trial['seconds'])}</td>"
        f'<td class="text"><small>{escape(_choices(trial["params"]))}</small></td></tr>'
        for trial in trials
    )
    return (
        '<details><summary>All trials as a table</summary><div class="scroll"><table><thead><tr>'
        '<th scope="col">trial</th><th scope="col" class="text">state</th><th scope="col">validation</th>'
        '<th scope="col">parameters</th><th scope="col">time</th><th scope="col" class="text">choices</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _trial_state(trial: Facts) -> str:
    original = trial["duplicate_of"]
    return escape(str(trial["state"])) if original is None else f"same as {original}"


def _choices(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.items())


def _quality(facts: Facts) -> str:
    metric = facts["metric"]
    models = [
        plots.Model(
            entry["name"],
            entry["origin"],
            _size(entry),
            entry["metrics"]["test"][metric]["mean"],
            entry["metrics"]["test"][metric]["std"],
            entry["pareto"],
        )
        for entry in facts["leaderboard"]
    ]
    better = "higher" if metric in HIGHER_IS_BETTER else "lower"
    return (
        "<section><h2>Quality against size</h2>"
        f"<p>Test {NAMES[metric]} ({better} is better) against parameters; bars are one standard deviation over seeds, "
        "the dashed line is the Pareto front.</p>"
        f"{plots.quality(models, f'test {NAMES[metric]}', better == 'lower')}"
        f"{plots.legend([name for name in ('found', 'zoo') if any(m.origin == name for m in models)])}</section>"
    )


# ---- what the search saw --------------------------------------------------------------------------------------------


def _seen(facts: Facts) -> str:
    return "".join(_seen_by(search, facts) for search in facts["searches"])


def _seen_by(search: Facts, facts: Facts) -> str:
    """The figures of a method that has some, and what it found, unless that is shown as the champion."""
    found = _found(search, facts)
    loser = found if found is not None and found["name"] != facts["champion"] else None
    figures = [*search.get("figures", ()), *(loser.get("figures", ()) if loser else ())]
    if not figures and not (loser and search.get("backbone")):
        return ""
    whose = f" that found {escape(found['name'])}" if found else ""
    drawings = f"<h3>The architecture it found: {escape(loser['name'])}</h3>{_drawings(facts, loser)}" if loser else ""
    return (
        f"<section><h2>What {escape(search['method'])} saw</h2><p>Figures from the search{whose}.</p>"
        f"{_figures(figures)}{drawings}</section>"
    )


def _figures(figures: Iterable[Facts]) -> str:
    shown = {"heatmap": _heatmap, "curves": _curves, "scatter": _scatter, "table": _table, "stages": _stages}
    items = [_captioned(figure["title"], figure["note"], shown[figure["kind"]](figure)) for figure in figures]
    return f'<div class="figures">{"".join(items)}</div>' if items else ""


def _captioned(title: str, note: str, content: str) -> str:
    return f"<figure><figcaption><h3>{escape(title)}</h3>{escape(note)}</figcaption>{content}</figure>"


def _heatmap(figure: Facts) -> str:
    names = figure.get("row_name", ""), figure.get("column_name", "")
    picture = plots.heatmap(figure["rows"], figure["columns"], figure["values"], *names, figure.get("marked", ()))
    lines = [[name, *line] for name, line in zip(figure["rows"], figure["values"], strict=True)]
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(figure["title"])}">{picture}</div>'
        f"<details><summary>As a table</summary>{_grid([names[0], *figure['columns']], lines)}</details>"
    )


def _curves(figure: Facts) -> str:
    series = [plots.Series(one["name"], one["values"]) for one in figure["series"]]
    ends = [[one.name, *_ends(one.known)] for one in series]
    return (
        f"{plots.curves(figure['x'], series, figure['x_name'], figure['y_name'])}"
        "<details><summary>Where each curve starts and ends, as a table</summary>"
        f"{_grid(['curve', 'first', 'last', 'least', 'greatest'], ends)}</details>"
    )


def _scatter(figure: Facts) -> str:
    points = [plots.Point(one["name"], one["x"], one["y"]) for one in figure["points"]]
    names = figure["x_name"], figure["y_name"]
    rows = [[point.name, point.x, point.y] for point in points]
    return (
        f"{plots.scatter(points, *names)}"
        f"<details><summary>As a table</summary>{_grid(['point', *names], rows)}</details>"
    )


def _stages(figure: Facts) -> str:
    parts = [
        (
            stage["name"],
            [
                plots.Decision(one["name"], [plots.Option(**option) for option in one["options"]], stage["rising"])
                for one in stage["columns"]
            ],
        )
        for stage in figure["stages"]
    ]
    rows = [
        [stage, decision.name, option.name, option.score, "taken" if option.taken else ""]
        for stage, decisions in parts
        for decision in decisions
        for option in decision.options
    ]
    picture = plots.stages(parts)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(figure["title"])}">{picture}</div>'
        "<details><summary>As a table</summary>"
        f"{_grid(['stage', 'decision', 'option', 'score', 'taken'], rows)}</details>"
    )


def _ends(values: Sequence[float]) -> Sequence[float | None]:
    return (values[0], values[-1], min(values), max(values)) if values else [None] * 4


def _table(figure: Facts) -> str:
    return _grid(figure["columns"], figure["rows"])


def _grid(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table to sort by a click on a heading; the first column names the rows, others with words are set left."""
    kinds = ["text" if any(isinstance(row[place], str) for row in rows) else "" for place in range(len(columns))]
    heads = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{escape(name)}</button></th>'
        for name, kind in zip(columns, kinds, strict=True)
    )
    lines = "".join(f"<tr>{_grid_row(row, kinds)}</tr>" for row in rows)
    return (
        '<div class="scroll tall" tabindex="0" role="group" aria-label="table"><table class="sortable"><thead>'
        f"<tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _grid_row(row: Sequence[str | float | None], kinds: Sequence[str]) -> str:
    cells = [(kind, *_sortable(value)) for value, kind in zip(row, kinds, strict=True)]
    (kind, order, text), *others = cells
    head = f'<th scope="row" class="{kind}" data-value="{order}">{text}</th>'
    return head + "".join(f'<td class="{kind}" data-value="{order}">{text}</td>' for kind, order, text in others)


def _sortable(value: str | float | None) -> tuple[str, str]:
    """What report.js sorts by, with what is missing behind all numbers, and what is shown."""
    if isinstance(value, str):
        return escape(value), escape(value)
    if value is None or not math.isfinite(value):
        return "Infinity", "–"
    return f"{value:.9g}", format(value, ",") if isinstance(value, int) else _number(value)


# ---- drawings -------------------------------------------------------------------------------------------------------


def _drawings(facts: Facts, entry: Facts) -> str:
    """The architecture of a model, next to its backbone if the search derived it from one."""
    derived = Architecture.from_dict(entry["architecture"])
    search: Facts = next((one for one in facts["searches"] if _found(one, facts) is entry), {})
    if not search.get("backbone"):
        return _drawing(derived)
    backbone = Architecture.from_dict(search["backbone"])
    drawings = _captioned("The backbone", "What the search starts from.", _drawing(backbone))
    drawings += _captioned("What was derived", f"{entry['name']}, as it was trained anew.", _drawing(derived))
    return f'<p>{_change(count(backbone), count(derived))}</p><div class="figures">{drawings}</div>'


def _change(before: Counts, after: Counts) -> str:
    share = 100 * (after.total / before.total - 1)
    return (
        f"The search derived it from a backbone: {before.total:,} parameters before, {after.total:,} after "
        f"({share:+.1f}\u00a0%); {before.flops:,} multiply-adds per row before, {after.flops:,} after."
    )


def _drawing(architecture: Architecture) -> str:
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="drawing of the architecture">'
        f"{drawing.draw(architecture)}</div>"
        f"<details><summary>In words</summary><p>{escape(drawing.describe(architecture))}</p></details>"
    )


# ---- the champion ---------------------------------------------------------------------------------------------------


def _architecture(facts: Facts) -> str:
    champion = _champion(facts)
    training = "".join(
        f'<tr><th scope="row" class="text">{escape(name.replace("_", " "))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in champion["training"].items()
    )
    return (
        f"<section><h2>The champion’s architecture: {escape(champion['name'])}</h2>"
        f"<p>From left to right: fields, the views that encode them, nodes, and the head. Sizes are per row. "
        f"{_parameters(champion['parameters'])}.</p>"
        f"{_drawings(facts, champion)}{_figures(champion.get('figures', ()))}"
        f"<details><summary>How it was trained</summary><table><tbody>{training}</tbody></table></details>"
        f"<details><summary>As a description file</summary><pre>{_yaml(champion['architecture'])}</pre></details>"
        "</section>"
    )


def _parameters(parameters: Mapping[str, int]) -> str:
    return (
        f"{sum(parameters.values()):,} parameters: {parameters['tables']:,} in tables, {parameters['lifts']:,} in maps "
        f"that align widths, {parameters['dense']:,} elsewhere"
    )


# ---- data and settings ----------------------------------------------------------------------------------------------


def _data(facts: Facts) -> str:
    data = facts["data"]
    rows = ", ".join(f"{count:,} {split}" for split, count in data["rows"].items())
    statistics = data["statistics"].get("fields", {})
    lines = "".join(_field(field, statistics.get(field["name"], {})) for field in data["fields"])
    return (
        f"<section><h2>Data</h2><p>{rows}; {data['rejected']:,} rejected. {_predicted(data)} Figures are of the "
        "training rows.</p>"
        '<div class="scroll"><table><thead><tr><th scope="col">field</th><th scope="col" class="text">kind</th>'
        '<th scope="col">categories</th><th scope="col">missing</th><th scope="col">most frequent</th>'
        '<th scope="col">mean</th><th scope="col">range</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div></section>"
    )


def _predicted(data: Facts) -> str:
    label, unknown = data["label"], data["statistics"].get("unknown_target")
    if unknown is None:
        return f"Label “{escape(label['name'])}”: mean {label['mean']:.4f}, from {label['min']:g} to {label['max']:g}."
    counts = ", ".join(f"{count:,} {split}" for split, count in unknown.items())
    return f"Predicted: the next “{escape(label['name'])}”; left out are rows where it is unknown ({counts})."


def _field(field: Facts, statistics: Facts) -> str:
    low, high = statistics.get("min"), statistics.get("max")
    spread = f"{_number(low)} … {_number(high)}" if low is not None and high is not None else "–"
    kind = f"last {field['max_len']} of {field['of']}" if field["kind"] == "sequence" else field["kind"]
    if field["kind"] == "numeric" and field["transform"] != "none":
        kind += f", {field['transform']}"
    return (
        f'<tr><th scope="row" class="text">{escape(field["name"])}</th><td class="text">{escape(kind)}</td>'
        f"<td>{format(field['cardinality'], ',') if field['cardinality'] else '–'}</td>"
        f"<td>{_share(statistics.get('missing_share'))}</td><td>{_share(statistics.get('most_frequent_share'))}</td>"
        f"<td>{_number(statistics.get('mean'))}</td><td>{spread}</td></tr>"
    )


def _settings(facts: Facts) -> str:
    return (
        "<section><h2>Settings</h2><p>Every setting of this run, defaults included.</p>"
        f"<details><summary>Show</summary><pre>{_yaml(facts['settings'])}</pre></details></section>"
    )


# ---- words and numbers ----------------------------------------------------------------------------------------------


def _champion(facts: Facts) -> Facts:
    return next(entry for entry in facts["leaderboard"] if entry["name"] == facts["champion"])


def _found(search: Facts, facts: Facts) -> Facts | None:
    """The model that the figures of a search belong to."""
    return next((entry for entry in facts["leaderboard"] if entry["name"] == search.get("found")), None)


def _size(entry: Facts) -> int:
    return int(sum(entry["parameters"].values()))


def _seeds(entry: Facts) -> str:
    count = len(entry["seeds"])
    return f"{count} seed{'' if count == 1 else 's'}"


def _whole(name: str) -> str:
    return f'<span class="whole">{escape(name)}</span>'


def _effort(searches: Sequence[Facts]) -> str:
    trials = sum(search["trials"] for search in searches)
    named = [f"{search['method']}, {search['sampler']}" for search in searches]
    return f"{trials} trials, {escape(named[0]) if len(named) == 1 else f'{len(named)} methods'}" if named else "none"


def _yaml(data: Any) -> str:
    return escape(yaml.safe_dump(json.loads(json.dumps(data, default=str)), sort_keys=False, width=110))


def _count(value: float) -> str:
    """12,345 → 12.3 k"""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:,.0f} {unit}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} m"


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.5g}"


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if value else "0"
