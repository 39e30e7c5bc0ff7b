"""Takes a command line, gives an exit code: 0 finished, 2 something to change, 75 saved and resumable, 141 output unread.

No command is imported before it runs, so that `--help` answers at once and takes no accelerator.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from jaxselftrain import __version__
from jaxselftrain.errors import Resumable, UserError
from jaxselftrain.huge_pages import restart_with_huge_pages

WRONG, RESUMABLE, INTERRUPTED = 2, Resumable.code, 130
CLOSED_PIPE = 141  # 128 + SIGPIPE, as a shell reports a program that stops because nobody reads its output

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,  # an unexpected error keeps Python's own traceback
    rich_markup_mode="markdown",
    help=(
        "A language model teaches itself to reason, from questions without answers.\n\n"
        "Self-Rewarded Training (arXiv 2505.21444): sample several answers to a question, take the answer that most of them "
        "agree on as the label, reward the samples that match it, update the model, repeat. The metrics show what that reward "
        "is really doing: agreement is not correctness.\n\n"
        "Examples:\n\n"
        "- `jaxselftrain train configs/quickstart.yaml`\n\n"
        "- `jaxselftrain train configs/quickstart.yaml vote.samples=32 train.folder=runs/wide`\n\n"
        "- `jaxselftrain evaluate runs/quickstart --questions held_out.jsonl --samples 8`\n\n"
        "- `jaxselftrain report runs/quickstart --watch`\n\n"
        "- `jaxselftrain export runs/quickstart my-model`\n\n"
        "- `jaxselftrain vote completions.jsonl --output votes.jsonl`"
    ),
    epilog=(
        "Settings: `jaxselftrain train CONFIG --print-config` shows every field with its value; jaxselftrain/sections.py "
        "explains them. How it works: README.md and docs/. Exit codes: 0 finished, 2 something to change (one sentence says "
        "what), 75 stopped with everything saved (the same command resumes)."
    ),
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.FIELD=VALUE", help="Settings that replace those of the config, such as vote.samples=32."),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jaxselftrain {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(WRONG)


@app.command(
    epilog="Example: `jaxselftrain train configs/quickstart.yaml train.steps=50 train.seed=1 train.folder=runs/seed-{seed}`"
)
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the settings of the run.")],
    overrides: Overrides = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved settings as YAML and stop.")] = False,
) -> None:
    """Train, or resume the run that the run folder already holds.

    The run folder (train.folder) receives the resolved config, metrics.jsonl, TensorBoard events, samples of responses,
    checkpoints and summary.json. Ctrl-C and SIGTERM save everything first; the same command then goes on as if it had
    never stopped.
    """
    from jaxselftrain.config import load_config, to_yaml
    from jaxselftrain.remote import place_of
    from jaxselftrain.run_folder import run_folder
    from jaxselftrain.stages import plan as plan_stages
    from jaxselftrain.stages import run_stages

    resolved = load_config(config, overrides or ())
    folder = run_folder(resolved, config.stem)
    plan_stages(resolved, folder)  # says what is wrong with a stage
    if resolved.stages and place_of(resolved.train.folder) is not None:
        raise UserError(f"train.folder = {resolved.train.folder}: the stages of a config are kept on a local disk so far")
    if print_config:
        typer.echo(to_yaml(resolved), nl=False)
        return
    from jaxselftrain.processes import several_by
    from jaxselftrain.training import run

    try:
        if resolved.stages:
            run_stages(resolved, folder=folder)
        else:
            run(resolved, config.stem)
    except Resumable as stopped:
        again = shlex.join(["jaxselftrain", "train", str(config), *(overrides or ())])
        raise Resumable(f"{stopped}; resume with: {again}{', in all processes' if several_by(os.environ) else ''}") from None


@app.command(
    epilog="Examples: `jaxselftrain plan configs/qwen2.5_math_7b_v5e-64.yaml --topology v5e:8x8`, "
    "`jaxselftrain plan configs/qwen2.5_1.5b_24gb.yaml --topology gpu:l4x1 rollout.rows=32`"
)
def plan(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the settings of the run.")],
    topology: Annotated[
        str,
        typer.Option(
            help="Devices to plan for: KIND:SHAPE with v4, v5e, v5p, v6e or tpu7x (v5e:4x4), a cloud's slice (v5p-128), "
            "gpu:KINDxNUMBER with h200, h100, a100-80g, l4 or rtx4090 (gpu:h200x1), or cpu.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    architecture: Annotated[
        Path | None,
        typer.Option(
            help="The model's config.json; without it, that of the model's folder, the one in `architectures` beside CONFIG, or "
            "the hub's.",
            show_default=False,
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of the longest prompt; without it, prompt.max_tokens.", show_default=False)
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the same figures as JSON.", show_default=False)] = None,
    search: Annotated[
        bool, typer.Option("--search/--no-search", help="Where it does not fit, look for the smallest change that does.")
    ] = True,
) -> None:
    """Say what a step will need on devices that are not here: memory, operations, transfers, time at the least.

    For TPUs the real training step is compiled by the real compiler, which runs on any x86 machine (`pip install -e
    '.[plan]'`); for GPUs and CPUs it is worked out. Needs no weights, no tokenizer and no questions.
    """
    from jaxselftrain.plan.command import run_plan

    run_plan(
        config_path=config,
        overrides=tuple(overrides or ()),
        topology=topology,
        architecture=architecture,
        prompt_tokens=prompt_tokens,
        out=json,
        search=search,
    )


@app.command(
    epilog="Example: `jaxselftrain evaluate HuggingFaceTB/SmolLM2-135M-Instruct --config configs/quickstart.yaml --samples 8`"
)
def evaluate(
    target: Annotated[
        str,
        typer.Argument(metavar="MODEL_OR_RUN", help="Run folder, Hugging Face folder, hub id, .gguf file or package:// path."),
    ],
    overrides: Overrides = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            help="JSONL or Parquet file with gold answers; several may be given, and are averaged as well. Without it, the "
            "config's evaluate.questions.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples per question (k); without it, the config's evaluate.samples.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file that says how to prompt and where the answer stands; a run folder has its own.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results as JSON and every response as JSONL.")] = None,
) -> None:
    """Measure avg@k, maj@k and pass@k on questions with gold answers, each with a bootstrap interval."""
    from jaxselftrain.evaluate_command import run_evaluation

    run_evaluation(
        target=target,
        questions=questions or (),
        samples=samples,
        overrides=tuple(overrides or ()),
        config_path=config,
        out=out,
    )


@app.command(
    epilog="Examples: `jaxselftrain label HuggingFaceTB/SmolLM2-135M-Instruct questions.jsonl labels.jsonl --samples 64`, "
    "`jaxselftrain label runs/quickstart configs/quickstart.yaml labels.jsonl`"
)
def label(
    target: Annotated[
        str,
        typer.Argument(metavar="MODEL_OR_RUN", help="Run folder, Hugging Face folder, hub id, .gguf file or package:// path."),
    ],
    questions: Annotated[
        Path, typer.Argument(metavar="QUESTIONS", help="JSONL or Parquet file, or a YAML config whose questions are meant.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="JSONL file for the labels; a half-finished one is gone on with.")],
    overrides: Overrides = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Votes per question; without it, the config's vote.samples.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file that says how to prompt and where the answer stands; a run folder has its own.")
    ] = None,
) -> None:
    """Vote on questions once and keep the labels: with all answers, their histogram and the majority share."""
    from jaxselftrain.label_file import run_label

    run_label(target=target, questions=questions, out=out, samples=samples, overrides=tuple(overrides or ()), config_path=config)


@app.command(epilog="Example: `jaxselftrain export runs/quickstart my-model --step 40`")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the model.")],
    overrides: Overrides = None,
    step: Annotated[
        int | None,
        typer.Option(min=0, help="Checkpoint to export; the best evaluated one when it is not given.", show_default=False),
    ] = None,
    newest: Annotated[bool, typer.Option("--newest", help="Export the newest checkpoint, however it was evaluated.")] = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder that transformers and vLLM load as it is."""
    from jaxselftrain.exporting import export_run

    export_run(run=run, out=out, step=step, newest=newest, overrides=tuple(overrides or ()))


@app.command(
    epilog="Example: `jaxselftrain vote completions.jsonl --format hash --output votes.jsonl vote.ties=abstain`. A line of the "
    'file: `{"id": "q1", "completions": ["so it is \\\\boxed{4}", "..."]}`'
)
def vote(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL file; each line holds id and completions.")],
    overrides: Overrides = None,
    format: Annotated[
        str | None, typer.Option(help="Where the answer stands: boxed (default), hash, first_line, last_line, letter or regex.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="Regular expression whose first group is the answer.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSONL file for the votes, with a reward for each completion.")] = None,
) -> None:
    """Vote on completions from any source: the majority answer of each question and its share."""
    from jaxselftrain.vote_file import run_vote

    run_vote(file=file, format=format, pattern=pattern, overrides=tuple(overrides or ()), output=output)


@app.command(
    epilog="Examples: `jaxselftrain compare runs/quickstart runs/quickstart-random --picture compared.png`, "
    "`jaxselftrain compare results/base/model.jsonl results/trained/step_12.jsonl`"
)
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders, or evaluations (.jsonl) of one set of questions.")
    ],
    picture: Annotated[Path | None, typer.Option(help="PNG file for all their curves in one picture.")] = None,
) -> None:
    """Print one table of what runs measured before and after training, or models on the same questions; draw the runs."""
    from rich.console import Console

    from jaxselftrain.compare import comparison, read_thresholds
    from jaxselftrain.plots import plot_run, plot_thresholds
    from jaxselftrain.run_folder import make_folder

    if picture is not None:
        if picture.suffix != ".png" or picture.is_dir():
            raise UserError(f"--picture {picture}: name a file that ends in .png")
        make_folder(picture.absolute().parent)
    Console().print(comparison(runs))
    if picture is not None:
        title = f"{runs[0]} and what it is compared with"
        if runs[0].is_file():
            plot_thresholds({str(file): read_thresholds(file) for file in runs}, picture, title=title)
        else:
            plot_run({str(run): run for run in runs}, picture, title=title)
        typer.echo(f"picture: {picture}")


@app.command(
    epilog="Examples: `jaxselftrain report runs/quickstart`, `jaxselftrain report runs/vote-* runs/random-* --out compared`, "
    "`jaxselftrain report runs/quickstart --watch`"
)
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders; those that differ in their seed alone are one line.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.html and the pictures; without it, `report` in the run folder, or here for several runs.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Make the page anew while the runs train, until they end or Ctrl-C.")
    ] = False,
    seconds: Annotated[int, typer.Option(min=1, help="With --watch: how often to look for something new.")] = 15,
) -> None:
    """Write one HTML page that shows what happened in runs: curves, alarms, what was asked and answered, settings."""
    from jaxselftrain.report.command import run_report

    run_report(runs=runs, out=out, watch=watch, seconds=seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (sys.argv when None) and returns its exit code; unexpected exceptions pass through."""
    try:
        code = app(args=arguments, prog_name="jaxselftrain", standalone_mode=False)
        sys.stdout.flush()  # here, where what it raises is understood, and not while Python shuts down
    except UserError as error:
        return _complain(str(error))
    except typer.TyperException as error:  # a wrong command line
        return _complain(f"{' '.join(error.format_message().split()).rstrip('.')} (jaxselftrain --help shows the usage)")
    except Resumable as stopped:
        print(f"jaxselftrain: {stopped}", file=sys.stderr)
        return RESUMABLE
    except typer.Abort:
        return INTERRUPTED
    except OSError as error:
        return _unwritten(error)
    except SystemExit as stopped:  # rich and typer make one of a closed pipe
        if not isinstance(stopped.__context__, BrokenPipeError):
            raise
        return _unwritten(stopped.__context__)
    return code if isinstance(code, int) else 0


def console() -> int:
    """`main` as the command jaxselftrain: in a process of its own, which may be started again with other settings."""
    if sys.argv[1:2] in (["train"], ["evaluate"], ["label"]):
        restart_with_huge_pages()
    try:
        code = main()
    except Exception:
        if not _one_of_several():
            raise
        traceback.print_exc()
        code = 1
    if code and _one_of_several():
        from jaxselftrain.processes import leave

        leave(code)
    return code


def _one_of_several() -> bool:
    """Whether this process has joined others. Without `train` it has not, and JAX need not be imported to know it."""
    processes = sys.modules.get("jaxselftrain.processes")
    return processes is not None and processes.are_several()


def _unwritten(error: OSError) -> int:
    """The exit code for output that nobody reads any more, or that has no room; every other error passes through."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not full and not isinstance(error, BrokenPipeError):
        raise error
    if error.filename is None:  # what is still to be printed would raise once more at Python's exit
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (OSError, io.UnsupportedOperation):
            pass
    if not full:
        return CLOSED_PIPE
    where = "the output" if error.filename is None else str(error.filename)
    return _complain(f"{where} cannot be written: {error.strerror}; free some space or write elsewhere")


def _complain(sentence: str) -> int:
    print(f"jaxselftrain: error: {sentence}", file=sys.stderr)
    return WRONG


if __name__ == "__main__":
    sys.exit(console())
