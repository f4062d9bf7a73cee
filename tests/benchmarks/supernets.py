"""Searches on supernets against their baselines: `python tests/benchmarks/supernets.py TABLE --source FILE`.

    autofis     MovieLens-1M as clicks: gates on FM and DeepFM against five models, no pruning, and a random mask
    autodim     MovieLens-1M as clicks: FM, Wide & Deep, DeepFM with full, power-law, random and searched widths
    autogroup   MovieLens-1M as clicks: groups on FM and DeepFM against both
    nis         MovieLens-1M as clicks: DeepFM with half, a quarter and a tenth of the tables, chosen in six ways
    ihas        MovieLens-1M as clicks: groups of rows found on DLRM, trained as DLRM, DeepFM and DCNv2
    autodis     a Criteo sample as CSV with header: soft bins against fixed encodings, and a choice per field
    cost        MovieLens-1M as clicks: wall time of one search over that of one training of the same DeepFM

Every row of a table is a pipeline of its own, with the same rows, splits, seeds and number of trials over the same
values of the tables' L2. Blind masks and widths get the L2 that was best for what was searched, and twice as many
trials as that, all for another draw: a trial of a search on a supernet trains twice (the supernet, then what was
derived).
A killed command goes on where it stood when it is given again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from results import CRITEO_CSV, run

SEEDS, TRIALS = 5, 4
EPOCHS = 40
"""At most, on MovieLens-1M: with a strong L2 DeepFM learns until the 37th; held at 20, it lost to gated models."""
PINNED_WIDTH = 16
PINNED: dict[str, Any] = {
    "embedding.dim": PINNED_WIDTH,
    "mlp.units": [128, 128],
    "mlp.dropout": 0.0,
    "top.units": [128, 128],
    "top.dropout": 0.0,
    "cross.layers": 3,
}
COMMON = {
    "search.tune": {"table_l2": [1e-4, 4e-4, 1e-3, 1e-5]},
    "train.table_l2": 1e-4,
    "search.sampler": "random",
    "search.trials": TRIALS,
    "search.workers": 2,
    "train.seeds": SEEDS,
    "train.baselines": [],
}
OWN: dict[str, dict[str, Any]] = {
    "autodis": CRITEO_CSV,
    # Less steep steps on smaller batches: half the epochs, after which DeepFM has .001 to .002 less AUC.
    "nis": {
        "search.tune": {"table_l2": [4e-4, 1e-3]},
        "train.table_l2": 1e-3,
        "search.sampler": "grid",
        "search.trials": 2,
        "train.batch_size": 2048,
        "train.learning_rate": 1e-3,
        "train.average": 0.999,
        "train.epochs": 30,
    },
}
"""What a table has of its own."""
OWN_CHOICES = {
    "fm": ("embedding.dim",),
    "fwfm": ("embedding.dim",),
    "afm": ("embedding.dim",),
    "wide_deep": ("mlp.units", "mlp.dropout", "embedding.dim"),
    "deepfm": ("mlp.units", "mlp.dropout", "embedding.dim"),
    "dlrm": ("top.units", "top.dropout", "embedding.dim"),
    "dcnv2": ("mlp.units", "mlp.dropout", "cross.layers", "embedding.dim"),
}

Changes = dict[str, Any]
Reports = dict[str, Mapping[str, Any]]
Row = tuple[str, Changes | Callable[[Reports], Changes]]
"""A label, and what the pipeline changes of the file; it may follow from the reports of the rows before it."""


def choices(model: str, *, without: str = "") -> dict[str, Any]:
    """What is pinned of a model of the zoo."""
    return {name: PINNED[name] for name in OWN_CHOICES[model] if name != without}


def zoo(model: str) -> Row:
    pinned = choices(model) if model in OWN_CHOICES else {"embedding.dim": 4}
    settings = {model: {"choices": pinned}}
    return model, {"search.methods": [], "train.baselines": [model], "train.baseline_settings": settings}


def opened(name: str, method: str, backbone: str, **settings: Any) -> tuple[str, Changes]:
    """A method on a backbone. Methods that set widths leave the embedding's open."""
    sized = method in ("autodim", "field_dims", "mde", "nis", "dpq", "mgqe", "autoemb")
    section = {"backbone": backbone, "choices": choices(backbone, without="embedding.dim" if sized else "")}
    return f"{name} ({backbone})", {
        "search.methods": [method],
        f"search.{method}": section | settings,
    }


def blind(name: str, like: str, method: str, backbone: str, **settings: Any) -> Row:
    """A method that draws what the row `like` has searched: as many pairs, with the L2 that was best there."""

    def changes(reports: Reports) -> Changes:
        searched = reports[f"{like} ({backbone})"]
        best = searched["leaderboard"][0]["training"]["table_l2"]
        share = {"keep": [kept_share(searched)]} if method == "autofis" else {}
        _, made = opened(name, method, backbone, select="random", **settings, **share)
        return {**made, **drawn(best, 2 * searched["leaderboard"][0]["search_trials"])}

    return f"{name} ({backbone})", changes


def drawn(table_l2: float, trials: int) -> Changes:
    """Blind draws, all with one L2."""
    search = {"search.tune": {"table_l2": [table_l2]}, "search.sampler": "random", "search.trials": trials}
    return {**search, "train.table_l2": table_l2}


THRESHOLDS = {"fm": 2.8, "deepfm": 1.15}
"""Where about half of the 28 pairs are closed, by supernets of 16 epochs with one to three seeds."""


def autofis(backbone: str) -> list[Row]:
    return [
        opened("AutoFIS", "autofis", backbone, threshold=[THRESHOLDS[backbone]], epochs=16),
        opened("no pruning", "autofis", backbone, threshold=[0.0], epochs=1),
        blind("random mask", "AutoFIS", "autofis", backbone),
    ]


DIMS = [2, 4, 8, 16]
SUPERNET = {"table_l2": 2e-3}
"""Normalised candidates bear more L2; without it every field looks as if it needed the full width."""


def autodim(backbone: str) -> list[Row]:
    """The model itself has the full dimension everywhere (FDE).

    MDE's power makes it about as large as half of the full tables, which is the budget of blind widths. Narrow
    tables are lifted for FM and padded for layers: the better of the two in one look each at validation rows. DPQ and
    MGQE quantise user, item and zip, which have more categories than centroids.
    """
    align = ["lift" if backbone == "fm" else "pad"]
    half = {"dims": DIMS, "align": align, "budget": [0.5]}
    return [
        zoo(backbone),
        opened("MDE", "mde", backbone, base=16, temperature=[0.1], align=align),
        opened("DPQ", "dpq", backbone, dim=16),
        opened("MGQE", "mgqe", backbone, dim=16),
        opened("AutoEmb", "autoemb", backbone, dims=DIMS, align=align, **SUPERNET),
        opened("AutoDim", "autodim", backbone, dims=DIMS, align=align, **SUPERNET),
        opened("AutoDim, half", "autodim", backbone, **half, **SUPERNET),
        blind("random widths", "AutoDim, half", "autodim", backbone, **half),
    ]


BUDGETS = (0.5, 0.25, 0.1)
WIDEST = 20
"""Of which each budget leaves a whole number to a uniform width."""


def nis(backbone: str, budget: float) -> list[Row]:
    """One budget, kept by a uniform width, by a width per field, and on the block grid by NIS, chance and frequency.

    The policy takes a step for every fourth of the weights, whose batches are small here.
    """
    half = {"dims": [2, 5, 10, WIDEST], "align": ["pad"], "budget": [budget]}
    grid = {"dim": WIDEST, "columns": 10, "align": ["pad"], "budget": [budget], "sample": 0, "every": 4}
    share = f"{budget:.0%}"
    return [
        uniform(backbone, round(budget * WIDEST)),
        opened(f"AutoDim {share}", "autodim", backbone, **half, **SUPERNET),
        opened(f"NIS single {share}", "nis", backbone, sizes="single", **grid),
        opened(f"NIS multi {share}", "nis", backbone, sizes="multi", **grid),
        blind(f"random blocks {share}", f"NIS multi {share}", "nis", backbone, **grid),
        opened(f"by frequency {share}", "nis", backbone, select="frequency", **grid),
    ]


def uniform(backbone: str, width: int) -> Row:
    pinned = {backbone: {"choices": choices(backbone) | {"embedding.dim": width}}}
    changes = {"search.methods": [], "train.baselines": [backbone], "train.baseline_settings": pinned}
    return f"{backbone}, width {width}", changes


def ihas(model: str) -> list[Row]:
    """Groups are found on DLRM, whatever they are trained as: the transfer that the paper claims."""
    groups = {"sparse": [0.05], "into": None if model == "dlrm" else model}
    return [
        zoo(model),
        grouped(f"iHAS as {model}", groups=[1, 2, 3, 4], **groups),
        grouped(f"one group as {model}", trials=TRIALS, groups=[1], **groups),
        random_groups(model, **groups),
        as_large(model),
    ]


def grouped(name: str, *, trials: int = 2 * TRIALS, **settings: Any) -> tuple[str, Changes]:
    """iHAS on DLRM: each number of groups with some values of the tables' L2."""
    name, changes = opened(name, "ihas", "dlrm", **settings)
    return name, {**changes, "search.trials": trials}


def random_groups(model: str, **settings: Any) -> Row:
    """As many groups as were found, drawn; with the L2 that was best for what was found."""

    def changes(reports: Reports) -> Changes:
        searched = reports[f"iHAS as {model} (dlrm)"]["leaderboard"][0]
        count = max(len(searched["architecture"]["head"].get("parts", [])), 2)
        best = searched["training"]["table_l2"]
        _, made = grouped("random groups", select="random", groups=[count], **settings)
        return {**made, **drawn(best, 2 * TRIALS)}

    return f"random groups as {model} (dlrm)", changes


def as_large(model: str) -> Row:
    """The plain model whose width makes its tables about as large as those of all groups together."""

    def changes(reports: Reports) -> Changes:
        plain, found = (reports[label]["leaderboard"][0] for label in (model, f"iHAS as {model} (dlrm)"))
        share = embedding_parameters(found["architecture"]) / embedding_parameters(plain["architecture"])
        return dict(uniform(model, max(round(share * PINNED_WIDTH), 1))[1])  # type: ignore[arg-type]

    return f"{model}, as large as iHAS", changes


ENCODERS = ("scale", "equal_width", "equal_frequency", "logarithm", "tree", "bins")
TABLES: dict[str, list[Row]] = {
    "autofis": [
        *[zoo(name) for name in ("fm", "fwfm", "afm", "ffm", "deepfm")],
        *[row for backbone in ("fm", "deepfm") for row in autofis(backbone)],
    ],
    "autodim": [
        *[row for backbone in ("fm", "wide_deep", "deepfm") for row in autodim(backbone)],
        # So little narrower than the full width (15 of 16) that what it gains is what the lifts do.
        opened("lifts alone", "mde", "fm", base=16, temperature=[0.01]),
        opened("AutoDim-s", "autodim", "fm", dims=DIMS, update="training", **SUPERNET),
    ],
    "nis": [uniform("deepfm", WIDEST), *[row for budget in BUDGETS for row in nis("deepfm", budget)]],
    "ihas": [row for model in ("dlrm", "deepfm", "dcnv2") for row in ihas(model)],
    "autogroup": [
        *[zoo(name) for name in ("fm", "deepfm")],
        *[opened("AutoGroup", "autogroup", backbone, dims=[16]) for backbone in ("fm", "deepfm")],
    ],
    "autodis": [
        *[opened(kind, "autodis", "deepfm", encoders=[kind], bins=[20], temperature=[1.0]) for kind in ENCODERS],
        opened("choice per field", "autodis", "deepfm", encoders=list(ENCODERS), bins=[20], temperature=[1.0]),
    ],
}


def main() -> None:
    """Run the pipelines of a table and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*TABLES, "cost"])
    parser.add_argument("--source", required=True, help="URL of the rows")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    arguments = parser.parse_args()
    started = time.monotonic()
    if arguments.table == "cost":
        cost(arguments.source, arguments.output)
    else:
        lines = table(arguments.table, arguments.source, arguments.output)
        print("\n".join(["", f"{arguments.table}: {SEEDS} seeds", "", *lines]))
    print(f"\nwall time {(time.monotonic() - started) / 60:.1f} min")


def table(name: str, source: str, output: Path) -> list[str]:
    file = "criteo.yaml" if name == "autodis" else "movielens-ctr.yaml"
    own = OWN.get(name, {"train.epochs": EPOCHS})
    reports: Reports = {}
    for label, row in TABLES[name]:
        changes = row(reports) if callable(row) else row
        folder = output / "".join(c if c.isalnum() else "-" for c in label)  # rows that tables share are made once
        reports[label] = run(file, folder, {**COMMON, **own, "dataset.source": source, **changes})
    return markdown(list(reports.items()))


def kept_share(report: Mapping[str, Any]) -> float:
    architecture = report["leaderboard"][0]["architecture"]
    node = next(node for node in architecture["nodes"] if node["op"] == "pairs")
    fields = len(architecture["views"]["e"]["encoders"])
    return 1.0 if node["keep"] == "all" else len(node["keep"]) / (fields * (fields - 1) / 2)


def markdown(reports: list[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """A line per row; columns that say nothing in this table are left out."""
    lines = [_cells(label, report["leaderboard"][0]) for label, report in reports]
    heads = [head for head in lines[0] if any(line[head] for line in lines)]
    rule = "|".join(" --- " if head in ("model", "widths") else " ---: " for head in heads)
    rows = [" | ".join(line[head] for head in heads) for line in lines]
    return [f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {row} |" for row in rows)]


def _cells(label: str, entry: Mapping[str, Any]) -> dict[str, str]:
    auc, loss = entry["metrics"]["test"]["auc"], entry["metrics"]["test"]["logloss"]
    return {
        "model": label,
        "AUC": f"{auc['mean']:.4f} ± {auc['std']:.4f}",
        "log loss": f"{loss['mean']:.4f} ± {loss['std']:.4f}",
        "embedding parameters": f"{embedding_parameters(entry['architecture']):,}",
        "pairs": pairs(entry["architecture"]),
        "widths": widths(entry["architecture"]),
        "search s": f"{entry['search_seconds']:.0f}",
        "train s": f"{entry['train_seconds']:.0f}",
    }


def embedding_parameters(architecture: Mapping[str, Any]) -> int:
    """Without first-order weights, as the papers count; with what the description says of categories."""
    from trainer.architecture import Architecture
    from trainer.shapes import count, encoder_parameters

    made = Architecture.from_dict(architecture)
    return count(made).codes + sum(
        encoder_parameters(made, view, field)
        for name, view in made.views.items()
        if _of_all_parts(name) != "first"
        for field in view.encoders
    )


def pairs(architecture: Mapping[str, Any]) -> str:
    kept = [node["keep"] for node in architecture["nodes"] if node["op"] == "pairs"]
    return "" if not kept else "all" if kept[0] == "all" else str(len(kept[0]))


def widths(architecture: Mapping[str, Any]) -> str:
    """Of the fields of each part."""
    parts = [
        [_width(encoder) for encoder in view["encoders"].values() if encoder["kind"] in ("table", "rows", "quantized")]
        for name, view in architecture["views"].items()
        if _of_all_parts(name) == "e"
    ]
    return "" if all(len(set(dims)) < 2 for dims in parts) else "; ".join(" ".join(dims) for dims in parts)


def _of_all_parts(view: str) -> str:
    """The name of a view without the number of the part that it belongs to."""
    return view.rpartition("-")[2]


def _width(encoder: Mapping[str, Any]) -> str:
    """The width of a table, those of its blocks, or how many codes a category has and for how many centroids."""
    if encoder["kind"] == "quantized":
        return f"{encoder['subspaces']}×{encoder['centroids']}"
    blocks = encoder.get("blocks", [encoder])
    return "-".join(str(block["dim"]) for block in blocks)


def cost(source: str, output: Path) -> None:
    """One training of DeepFM, one AutoFIS search, one AutoDim search: one thread, one process, one after the other."""
    import torch

    from trainer import data
    from trainer.architecture import Architecture
    from trainer.build import build
    from trainer.engines import gradient
    from trainer.fit import fit
    from trainer.methods.base import Opening
    from trainer.methods.settings import AutoDimSettings, AutoFISSettings
    from trainer.methods.table import METHODS
    from trainer.schema import DatasetSchema
    from trainer.settings import TrainSettings
    from trainer.space import fill_params

    once = {"search.methods": [], "train.baselines": ["fm"], "search.trials": 1, "train.seeds": 1, "train.epochs": 1}
    run("movielens-ctr.yaml", output / "cost", {"dataset.source": source, **once})
    folder = output / "cost" / "ingest"
    schema = DatasetSchema.load(folder)
    train, valid = (data.load(folder, split, schema) for split in ("train", "valid"))
    training = TrainSettings(batch_size=8192, epochs=20, learning_rate=3e-3, table_l2=4e-4, average=0.996)
    torch.set_num_threads(1)
    seconds = {}
    for name, settings in (("autofis", AutoFISSettings()), ("autodim", AutoDimSettings())):
        method = METHODS[name]
        assert method.plan is not None
        assert method.supernet is not None
        backbone = Architecture.from_dict(fill_params(method.space(schema, settings), {}))
        if "training" not in seconds:
            model = build(backbone, label_mean=schema.label_mean, table_init=training.table_init, seed=1)
            seconds["training"] = fit(model, train, valid, training, task="ctr", seed=1).seconds
        opening = Opening(backbone, fill_params(method.plan(settings), {}), training, train, valid, 1)
        seconds[name] = gradient.search(method.supernet(opening), train, valid, training, seed=1).seconds
    for name in ("autofis", "autodim"):
        print(f"{name}: {seconds[name]:.0f} s, {seconds[name] / seconds['training']:.2f} of a training's")
    print(f"training: {seconds['training']:.0f} s")


if __name__ == "__main__":
    main()
