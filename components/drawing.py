"""An architecture drawn as SVG: fields, views, nodes and head from left to right, with sizes.

Layers by longest path, edges through free lanes of the layers they pass, boxes ordered by the mean height of what feeds
them (Sugiyama, Tagawa and Toda 1981). Colours come from the page's style sheet (`components/report.css`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

from trainer.architecture import (
    Architecture,
    FieldSpec,
    ItemsHead,
    Node,
    QuantizedEncoder,
    RoutedHead,
    RowsEncoder,
    ValueHead,
    head_refs,
)
from trainer.shapes import F, P, Q, Shape, V, count, infer

NARROWEST, WIDEST = 96, 230
GAP_X, GAP_Y, MARGIN = 56, 14, 8
LINE, PAD = 16, 9
NAME_LETTER, LETTER = 7.6, 6.9
"""Pixels that a letter takes on average, in bold and in plain."""
MOST_FIELDS = 18
"""With more fields than this, fields that are encoded alike share one box."""


@dataclass
class Box:
    """One box of the drawing, or (without lines) a lane that an edge passes through."""

    kind: str
    lines: tuple[str, ...] = ()
    hint: str = ""
    sources: list[tuple["Box", str]] = field(default_factory=list)
    """Boxes that feed this one, each with the edge's label."""
    layer: int = 0
    x: float = 0.0
    y: float = 0.0
    width: int = 0

    @property
    def height(self) -> int:
        return 2 * PAD + LINE * len(self.lines) if self.lines else 2

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


def draw(architecture: Architecture) -> str:
    """The drawing as an `<svg>` element, with a title and a description in words for those who cannot see it."""
    live = architecture.live()
    layers = _with_lanes(_boxes(live))
    _place(layers)
    width = max(box.x + box.width for box in layers[-1]) + MARGIN
    height = max(box.y + box.height for layer in layers for box in layer) + MARGIN
    boxes = [box for layer in layers for box in layer]
    edges = "".join(_edge(source, box) for box in boxes for source, _ in box.sources)
    drawn = "".join(_box(box) for box in boxes if box.lines)
    labels = "".join(_edge_label(source, box, label) for box in boxes for source, label in box.sources if label)
    return (
        f'<svg class="drawing" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="max-width:{width:.0f}px;min-width:{0.75 * width:.0f}px" role="img"'
        f"><title>Architecture</title><desc>{escape(describe(live))}</desc>{edges}{drawn}{labels}</svg>"
    )


def describe(architecture: Architecture) -> str:
    """The architecture in words, one sentence per view and node."""
    live, shapes = architecture.live(), infer(architecture.live())
    sentences = []
    for name, view in live.views.items():
        encoded = ", ".join(f"{field} ({_encoder_words(encoder)})" for field, encoder in view.encoders.items())
        sentences.append(f"View {name} encodes {encoded}.")
    for node in live.nodes:
        inputs = " and ".join(node.inputs)
        sentences.append(f"Node {node.id} is {_title(node)} of {inputs} and gives {_shape_words(shapes[node.id])}.")
    if isinstance(live.head, RoutedHead):
        fields = " and ".join(live.head.router)
        sentences.append(f"The head sends each row to one of {len(live.head.parts)} parts, by votes of {fields}.")
        sentences += [f"Part {number} {_head_words(part)}." for number, part in enumerate(live.head.parts)]
    else:
        sentences.append(f"The head {_head_words(live.head)}.")
    return " ".join(sentences)


def _head_words(head: ValueHead | ItemsHead) -> str:
    how = {"sum": "adds", "linear": "maps linearly", "items": "compares"}[head.mode]
    what = f"with every row of {head.items}" if isinstance(head, ItemsHead) else "to one number per row"
    return f"{how} {' and '.join(head.inputs)} {what}"


# ---- boxes ----------------------------------------------------------------------------------------------------------


def _boxes(architecture: Architecture) -> list[Box]:
    """Boxes with sources and layers, lanes not yet inserted; sources stand before what they feed."""
    shapes = infer(architecture)
    fields = _field_boxes(architecture)
    by_ref: dict[str, Box] = {}
    for name in architecture.views:
        by_ref[name] = _view_box(architecture, name, shapes, fields)
    for node in architecture.nodes:
        lines = (f"{_title(node)} · {node.id}", *_settings(node), f"→ {_shape_words(shapes[node.id])}")
        by_ref[node.id] = Box("node", lines, sources=_sources(architecture, node.inputs, by_ref))
        by_ref[node.id].layer = 1 + max(source.layer for source, _ in by_ref[node.id].sources)
    total, head_sources = count(architecture), _sources(architecture, head_refs(architecture), by_ref)
    if isinstance(architecture.head, RoutedHead):
        routed = _routed_boxes(architecture, architecture.head, fields, by_ref)
        head_sources = [(box, "") for box in routed]
        by_ref |= {f"head {number}": box for number, box in enumerate(routed)}
    unit = {"ctr": "click probability", "rating": "rating", "next_item": "probability per item"}[architecture.task]
    lines = (f"head · {_HEADS[architecture.head.mode]}", f"→ {unit}", f"{total.total:,} parameters")
    head = Box("head", lines, sources=head_sources)
    boxes = [*_unique(fields.values()), *by_ref.values()]
    head.layer = 1 + max(box.layer for box in boxes)
    return [*boxes, head]


_HEADS = {"sum": "sum of logits", "linear": "linear", "items": "every item", "routed": "one part per row"}


def _routed_boxes(
    architecture: Architecture, head: RoutedHead, fields: dict[str, Box], by_ref: dict[str, Box]
) -> list[Box]:
    """What a routed head reads: its parts' own heads, and the router."""
    votes = sum(architecture.fields[field].cardinality for field in head.router) * (len(head.parts) - 1)
    voters = [(box, "") for box in _unique(fields[field] for field in head.router)]
    hint = ", ".join(head.router)
    boxes = [Box("view", ("router", f"{votes:,} votes", f"→ 1 of {len(head.parts)} parts"), hint, voters, layer=1)]
    for number, part in enumerate(head.parts):
        sources = _sources(architecture, part.inputs, by_ref)
        layer = 1 + max(source.layer for source, _ in sources)
        boxes.append(Box("node", (f"part {number}", _HEADS[part.mode]), sources=sources, layer=layer))
    return boxes


def _field_boxes(architecture: Architecture) -> dict[str, Box]:
    """The box of each field that a view encodes or that votes; many fields that are encoded alike share one."""
    read = {name for view in architecture.views.values() for name in view.encoders}
    read |= set(architecture.head.router) if isinstance(architecture.head, RoutedHead) else set()
    used = [name for name in architecture.fields if name in read]
    if len(used) <= MOST_FIELDS:
        return {name: Box("field", (name, _field_words(architecture.fields[name]))) for name in used}
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in used:
        encoders = [
            _encoder_words(view.encoders[name]) for view in architecture.views.values() if name in view.encoders
        ]
        groups.setdefault((architecture.fields[name].kind, *encoders), []).append(name)
    boxes: dict[str, Box] = {}
    for (kind, *_), names in groups.items():
        rows = sum(architecture.fields[name].cardinality for name in names)
        size = f"{rows:,} categories" if rows else "values"
        lines = (f"{len(names)} {kind} fields", size) if len(names) > 1 else (names[0], size)
        boxes |= dict.fromkeys(names, Box("field", lines, hint=", ".join(names)))
    return boxes


def _view_box(architecture: Architecture, name: str, shapes: dict[str, Shape], fields: dict[str, Box]) -> Box:
    view = architecture.views[name]
    counted: dict[str, int] = {}
    for encoder in view.encoders.values():
        counted[_encoder_words(encoder)] = counted.get(_encoder_words(encoder), 0) + 1
    encoders = [f"{words} × {times}" if times > 1 else words for words, times in counted.items()]
    shape = f"→ {_shape_words(shapes[name])}" if name in shapes else "→ one vector per partner field"
    hint = ", ".join(f"{field}: {_encoder_words(encoder)}" for field, encoder in view.encoders.items())
    sources = [(box, "") for box in _unique(fields[field] for field in view.encoders)]
    return Box("view", (f"view · {name}", *encoders, shape), hint, sources, layer=1)


def _sources(architecture: Architecture, refs: Iterable[str], by_ref: dict[str, Box]) -> list[tuple[Box, str]]:
    """One edge per view or node; several fields of one view, unless they are all, share an edge that names them."""
    labels: dict[str, list[str]] = {}
    for ref in refs:
        name, part = architecture.resolve(ref)
        labels.setdefault(name, []).extend([part] if part else [])
    whole = {name: len(view.encoders) for name, view in architecture.views.items()}
    return [(by_ref[name], "" if len(parts) == whole.get(name) else ", ".join(parts)) for name, parts in labels.items()]


def _unique(boxes: Iterable[Box]) -> list[Box]:
    return list({id(box): box for box in boxes}.values())


def _field_words(spec: FieldSpec) -> str:
    match spec.kind:
        case "categorical":
            return f"{spec.cardinality:,} categories"
        case "numeric":
            return "number or missing" if spec.missing else "number"
        case "sequence":
            return f"last {spec.max_len} of {spec.of}"


def _encoder_words(encoder: object) -> str:
    kind = getattr(encoder, "kind", "")
    if kind == "share":
        return f"table of view {getattr(encoder, 'view', '')}"
    if isinstance(encoder, RowsEncoder):
        kind = "chain" if encoder.align == "chain" else "rows"
        return f"{kind} {', '.join(f'{block.rows:,} × {block.dim}' for block in encoder.blocks)}"
    if isinstance(encoder, QuantizedEncoder):
        tail = f" ({encoder.tail.centroids} for rare)" if encoder.tail else ""
        width = encoder.dim // encoder.subspaces
        return f"quantized {encoder.subspaces} × 1 of {encoder.centroids} × {width}{tail}"
    dim = getattr(encoder, "dim", None)
    return f"{kind.replace('_', ' ')} {dim}" if dim else str(kind)


_TITLES = {
    "mlp": "MLP",
    "fm": "FM",
    "ffm": "FFM",
    "mha": "self-attention",
    "cross": "cross network",
    "hadamard": "products",
    "se": "squeeze and excitation",
    "seq": "sequence block",
}


def _title(node: Node) -> str:
    return _TITLES.get(node.op, node.op.replace("_", " "))


def _settings(node: Node) -> list[str]:
    """The node's own settings, without those at their defaults, in lines that fit the box."""
    shown = node.model_dump(mode="json", exclude={"id", "op", "inputs"}, exclude_defaults=True)
    units = shown.pop("units", None)
    words = [" – ".join(str(unit) for unit in units)] if units else []
    words += [_setting_words(name, value) for name, value in shown.items()]
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) < 26:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    return lines


def _setting_words(name: str, value: object) -> str:
    if isinstance(value, dict):
        kind = str(value.pop("kind", "")).replace("_", " ")
        return ", ".join([*([kind] if kind else []), *(f"{key} {inner}" for key, inner in value.items())])
    if name == "activation" and isinstance(value, list):
        return " – ".join(value)
    if isinstance(value, list):
        what = {"keep": "kept"}.get(name, name if len(value) > 1 else name.removesuffix("s"))
        return f"{len(value)} {what}"
    return f"{name.replace('_', ' ')} {value}"


def _shape_words(shape: Shape) -> str:
    match shape:
        case V(width=1):
            return "1 number"
        case V(width=width):
            return f"{width} numbers"
        case F(widths=widths) if len(set(widths)) == 1:
            return f"{len(widths)} × {widths[0]}"
        case F(widths=widths):
            return f"{len(widths)} fields, {sum(widths)} wide"
        case Q(length=length, width=width):
            return f"{length} steps × {width}"
        case P(fields=fields, dim=dim):
            return f"{fields} × {fields - 1} × {dim}"


# ---- places ---------------------------------------------------------------------------------------------------------


def _with_lanes(boxes: list[Box]) -> list[list[Box]]:
    """The boxes by layer; an edge over several layers gets a lane in each that it passes."""
    layers: list[list[Box]] = [[] for _ in range(1 + max(box.layer for box in boxes))]
    for box in boxes:
        layers[box.layer].append(box)
    for box in boxes:
        box.sources = [(_lanes(layers, source, box.layer), label) for source, label in box.sources]
    return layers


def _lanes(layers: list[list[Box]], source: Box, until: int) -> Box:
    for layer in range(source.layer + 1, until):
        lane = Box("lane", sources=[(source, "")], layer=layer)
        layers[layer].append(lane)
        source = lane
    return source


def _place(layers: list[list[Box]]) -> None:
    x = float(MARGIN)
    for number, layer in enumerate(layers):
        if number:
            layer.sort(key=_pull)
        _stack(layer)
        column = max(_text_width(box) for box in layer)
        for box in layer:
            box.x, box.width = x, column  # a lane runs straight through its column
        x += column + GAP_X
    top = min(box.y for layer in layers for box in layer) - MARGIN
    for box in (box for layer in layers for box in layer):
        box.y -= top


def _text_width(box: Box) -> int:
    letters = (len(line) * (LETTER if row else NAME_LETTER) for row, line in enumerate(box.lines))
    return int(min(max(20 + max(letters, default=0.0), NARROWEST), WIDEST))


def _pull(box: Box) -> float:
    """The mean height of what feeds the box."""
    return sum(source.middle for source, _ in box.sources) / len(box.sources)


def _stack(layer: list[Box]) -> None:
    """Each box at the height of what feeds it, moved down as far as it would overlap, and all up by half of that."""
    wanted = [(_pull(box) if box.sources else 0.0) - box.height / 2 for box in layer]
    bottom = float("-inf")
    for box, y in zip(layer, wanted, strict=True):
        box.y = max(y, bottom)
        bottom = box.y + box.height + GAP_Y
    shift = sum(box.y - y for box, y in zip(layer, wanted, strict=True)) / len(layer)
    for box in layer:
        box.y -= shift


# ---- strokes --------------------------------------------------------------------------------------------------------


def _edge(source: Box, target: Box) -> str:
    x1, y1, x2, y2 = source.x + source.width, source.middle, target.x, target.middle
    bend = (x2 - x1) / 2
    through = f"H{target.x + target.width:.0f}" if not target.lines else ""
    curve = f"C{x1 + bend:.0f} {y1:.1f} {x2 - bend:.0f} {y2:.1f} {x2:.0f} {y2:.1f}"
    return f'<path class="edge" d="M{x1:.0f} {y1:.1f}{curve}{through}"/>'


def _edge_label(source: Box, target: Box, label: str) -> str:
    x = (source.x + source.width + target.x) / 2
    room = int((target.x - source.x - source.width) / LETTER)
    y = (source.middle + target.middle) / 2
    return f'<text class="edge-label" x="{x:.0f}" y="{y + 4:.1f}">{escape(_short(label, room))}</text>'


def _box(box: Box) -> str:
    room = [int((box.width - 14) / letter) for letter in (NAME_LETTER, LETTER)]
    texts = "".join(
        f'<text class="{"name" if row == 0 else "line"}" x="{box.x + 10:.0f}" y="{box.y + PAD + 12 + LINE * row:.1f}">'
        f"{escape(_short(line, room[row > 0]))}</text>"
        for row, line in enumerate(box.lines)
    )
    hint = box.hint or " · ".join(box.lines)
    return (
        f'<g class="box {box.kind}"><title>{escape(hint)}</title>'
        f'<rect x="{box.x:.0f}" y="{box.y:.1f}" width="{box.width}" height="{box.height}" rx="7"/>{texts}</g>'
    )


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"
