"""The `dalil` command. Every import that takes time stands inside the command that needs it."""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from pipelines.spec import SearchPipeline

INTERRUPTED = "interrupted; the same command again continues where it stopped"

app = typer.Typer(
    help="Searches, trains and ships recommender models: one file in, a registered MLflow model out.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _overview(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


File = Annotated[Path, typer.Argument(help="pipeline file, such as pipelines/gallery/quickstart.yaml")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a key below spec, such as dataset.source=logs.csv"),
]


@app.command()
def run(
    file: File,
    overrides: Set = None,
    output: Annotated[
        Path | None, typer.Option(help="folder of the run and its report; runs/NAME if not given")
    ] = None,
) -> None:
    """Run a pipeline here; run it again to continue."""
    from pipelines.spec import load

    pipeline = load(file, tuple(overrides or ()))
    _run(pipeline, file, output or Path("runs") / pipeline.metadata.name)


@app.command()
def compare(
    file: File,
    budget: Annotated[
        str, typer.Option(help="what each method and model may spend: seconds (3600s) or rows learned from (20M)")
    ],
    methods: Annotated[str, typer.Option(help="methods with commas between them, or all")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="final trainings of each model")] = 3,
    overrides: Set = None,
    output: Annotated[
        Path | None, typer.Option(help="folder of the comparison; runs/NAME-compare if not given")
    ] = None,
) -> None:
    """Compare search methods and the tuned zoo at one budget."""
    from pipelines.comparison import comparison
    from pipelines.spec import render as as_text

    pipeline = comparison(file, methods, budget, seeds, tuple(overrides or ()))
    folder = output or Path("runs") / pipeline.metadata.name
    whole = folder / "pipeline.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    whole.write_text(as_text(pipeline))
    _run(pipeline, whole, folder)


def _run(pipeline: "SearchPipeline", file: Path, folder: Path) -> None:
    from components.shipping import tracking_uri
    from pipelines import leaderboard, local
    from pipelines.progress import Display

    with Display() as display:
        report = local.run(pipeline, folder, display)
    uri = tracking_uri(folder, pipeline.spec.tracking.uri)
    commands = leaderboard.next_commands(pipeline, file, folder, uri)
    leaderboard.show(display.console, report, commands, folder)


@app.command()
def validate(file: File, overrides: Set = None) -> None:
    """Check a pipeline file, one line per mistake."""
    from pipelines.spec import load

    pipeline = load(file, tuple(overrides or ()))
    print(f"{file}: valid ({pipeline.metadata.name})")


@app.command()
def render(file: File, overrides: Set = None) -> None:
    """Print a pipeline file with all its defaults."""
    from pipelines import spec

    print(spec.render(spec.load(file, tuple(overrides or ()))), end="")


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="the reference page docs/pipeline.md instead")] = False,
) -> None:
    """Print the CustomResourceDefinition that has the file's schema."""
    if markdown:
        from pipelines.reference import reference_page

        print(reference_page(), end="")
        return
    import yaml

    from pipelines.crd import definition

    print(yaml.safe_dump(definition(), sort_keys=False, allow_unicode=True, width=120), end="")


@app.command()
def plan(
    file: File,
    nodes: Annotated[int, typer.Option(min=1, help="machines")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each machine")] = 8,
    hbm: Annotated[str, typer.Option(help="memory of each GPU; GB and GiB are both 1024^3 bytes")] = "80GB",
    host_memory: Annotated[
        str | None, typer.Option(help="memory of each machine that tables may take (UVM); none if not given")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="model of the zoo; if not given, what the run found, or the first baseline")
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=N", help="rows of a field's table, where the run does not know them yet"),
    ] = None,
    table_precision: Annotated[str, typer.Option(help="fp32, fp16, bf16 or int8 tables; training knows fp32")] = "fp32",
    overrides: Set = None,
    output: Annotated[Path | None, typer.Option(help="folder of the run; runs/NAME if not given")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON: bytes and milliseconds")] = False,
) -> None:
    """Plan a training on many GPUs, without them."""
    from pipelines.spec import load

    pipeline = load(file, tuple(overrides or ()))

    from pipelines import capacity

    gpu, host = capacity.size("--hbm", hbm), capacity.size("--host-memory", host_memory) if host_memory else 0
    folder = output or Path("runs") / pipeline.metadata.name
    subject = capacity.subject(pipeline, folder, model, capacity.table_rows(rows or []), table_precision)

    from rich.console import Console

    from pipelines import capacity_report
    from trainer.advice import advise
    from trainer.capacity import Cluster
    from trainer.capacity import plan as made

    found = made(subject.problem, Cluster(nodes, gpus, gpu, host))
    advice = [] if found.fits else list(advise(subject.problem, found))
    if as_json:
        import json

        print(json.dumps(capacity_report.as_data(subject, found, advice)))
    else:
        capacity_report.show(Console(), subject, found, advice)
    raise typer.Exit(0 if found.fits else 1)


@app.command()
def infer(file: Annotated[str, typer.Argument(help="a csv or parquet file, any URL")]) -> None:
    """Propose a dataset section for a csv or parquet file."""
    from components.infer import infer as propose

    print(propose(file), end="")


def main() -> NoReturn:
    """Entry point: a user's mistake is one line and exit code 2, Ctrl-C one line and 130."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = app(prog_name="dalil", standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except _Terminated:
        _fail(INTERRUPTED, 143)
    except typer.TyperException as error:  # a wrong option or argument
        _fail(f"error: {error.format_message().rstrip('.')}; `dalil --help` shows what there is", error.exit_code)
    except Exception as error:
        _explain(error)
    if code == 130:  # typer's own way to say KeyboardInterrupt
        _fail(INTERRUPTED, 130)
    sys.exit(code or 0)


def _explain(error: Exception) -> NoReturn:
    from trainer.errors import UserError

    if isinstance(error, UserError):
        from pipelines.messages import SpecError

        _fail(str(error) if isinstance(error, SpecError) else f"error: {error}", 2)
    if type(error).__name__ == "StepError":
        _fail(f"error: {error}; the same command again continues where it stopped", 1)
    raise error


class _Terminated(BaseException):
    """SIGTERM, such as from `kill` or at shutdown."""


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _fail(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
