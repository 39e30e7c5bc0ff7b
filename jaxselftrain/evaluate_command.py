"""`jaxselftrain evaluate`: takes a run or a model and sets of questions, gives tables, files and a picture of how it does."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from tqdm.auto import tqdm

from jaxselftrain.answer_key import load_answer_key
from jaxselftrain.assembly import Parts, open_parts
from jaxselftrain.checkpoints import checkpoint_params
from jaxselftrain.config import Config, load_config, override_config, parse_config
from jaxselftrain.errors import UserError
from jaxselftrain.evaluate import Evaluation, Evaluator
from jaxselftrain.plots import plot_thresholds
from jaxselftrain.prompts import prompt_width
from jaxselftrain.questions import load_questions
from jaxselftrain.resources import told_of_limits
from jaxselftrain.run_folder import CONFIG, EVALUATIONS, make_folder, read_config, replace_text
from jaxselftrain.sections import Mesh, Questions
from jaxselftrain.sharding import check_mesh
from jaxselftrain.statistics import BOOTSTRAP_SEED, macro_average, render
from jaxselftrain.voter import Voter

BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
MACRO = "macro-average"


def run_evaluation(
    *,
    target: str,
    questions: Sequence[Path],
    samples: int | None,
    overrides: tuple[str, ...],
    config_path: Path | None,
    out: Path | None,
) -> dict[str, Evaluation]:
    """`jaxselftrain evaluate`: a run's newest checkpoint or any model, with a progress bar, a table and files.

    Several files of questions are sets of their own, and their macro-average, in which each set counts the same, stands beside
    them. Without `out`, a run's results go to its evaluations folder and a model's are only shown.
    """
    run = Path(target) if (Path(target) / CONFIG).is_file() else None
    config = _evaluation_config(target, run, questions[0] if questions else None, samples, overrides, config_path)
    folder = out or (run / EVALUATIONS if run else None)
    sets = _sets(config, questions)
    asked = {name: (load_questions(source), load_answer_key(source)) for name, source in sets.items()}
    parts = open_parts(config, cache=None)
    encoded = {name: parts.encode(found, sets[name].too_long) for name, (found, _) in asked.items()}
    for name, prompts in encoded.items():
        if prompts.dropped_ids:
            print(prompts.dropped() if len(sets) == 1 else f"{name}: {prompts.dropped()}", file=sys.stderr)
    width = prompt_width(max(prompts.longest for prompts in encoded.values()))
    parts.check_context(width)
    check_mesh(parts.mesh, parts.architecture, rows={"evaluate.batch": config.evaluate.batch})
    if folder is not None:
        make_folder(folder)  # before what takes long, after what may be refused
    limits_told = partial(told_of_limits, settings=f"lower evaluate.batch (now {config.evaluate.batch}) or evaluate.samples")
    found: dict[str, Evaluation] = {}
    total = sum(len(prompts.questions) for prompts in encoded.values())
    with Voter(config.answer, config.vote) as voter:
        evaluators: dict[str, Evaluator] = {}
        for name, prompts in encoded.items():
            first = next(iter(evaluators.values()), None)
            evaluators[name] = Evaluator(parts, prompts, asked[name][1], voter, width, like=first)
        params, weights = _weights(parts, run)
        with (
            limits_told(out or Path(target)),
            tqdm(total=total, desc="evaluating", unit="question", dynamic_ncols=True) as bar,
        ):
            for name, evaluator in evaluators.items():
                before = int(bar.n)
                found[name] = evaluator.run(params, tick=partial(_show, bar, before))
    columns = {name: evaluation.summary for name, evaluation in found.items()}
    if len(found) == 1:
        columns = dict(zip([weights], columns.values(), strict=True))
    else:
        columns[MACRO] = macro_average([evaluation.per_question for evaluation in found.values()], seed=BOOTSTRAP_SEED)
    title = f"{target}: {total} questions, k = {config.evaluate.samples}, T = {config.evaluate.temperature:g}"
    Console().print(render(columns, title=title))
    for name, evaluation in found.items():
        _tell_cross_check(name if len(found) > 1 else None, evaluation)
    if folder is not None:
        label = weights.replace(" ", "_") if out else f"{weights.replace(' ', '_')}_command"
        with limits_told(folder):
            for name, evaluation in found.items():
                own = label if len(found) == 1 else f"{label}_{name}"
                evaluation.write(folder, own)
                picture = plot_thresholds({weights: evaluation.thresholds}, folder / f"{own}.thresholds.png", title=target)
                print(f"results: {folder / own}.json, responses: {folder / own}.jsonl, accuracy over agreement: {picture}")
            if len(found) > 1:
                replace_text(folder / f"{label}_{MACRO}.json", json.dumps(columns[MACRO], indent=2) + "\n")
                print(f"macro-average: {folder / label}_{MACRO}.json")
    return found


def _show(bar: tqdm, before: int, done: int) -> None:
    bar.update(before + done - bar.n)


def _sets(config: Config, questions: Sequence[Path]) -> dict[str, Questions]:
    """The sets to evaluate on, by name: the config's, or one for each file, otherwise like it."""
    like = config.evaluate.questions
    if like is None:
        raise UserError("the config has no evaluate.questions; name a file with --questions")
    if len(questions) < 2:
        return {"questions": like}
    sets: dict[str, Questions] = {}
    for path in questions:
        if path.stem in sets or path.stem == MACRO:
            raise UserError(f"--questions {path}: another set is called {path.stem} already; rename the file")
        sets[path.stem] = like.model_copy(update=_file_source(path))
    return sets


def _tell_cross_check(name: str | None, evaluation: Evaluation) -> None:
    checked = evaluation.cross_check
    if checked is not None:
        of = "" if name is None else f"{name}: "
        print(
            f"{of}math-verify judges {checked.differs} of {checked.compared} answers differently; it failed on {checked.failed}"
        )


def _evaluation_config(target, run, questions, samples, overrides, config_path) -> Config:
    """What to evaluate and how: a run's own config, or the given one, or for any other model a chat with an answer in a box.

    The model is the run's whatever the config says, on a mesh of its own; overrides come last.
    """
    if config_path is not None:
        values = load_config(config_path, ()).model_dump()
    elif run is not None:
        values = read_config(run).model_dump()
    elif questions is not None:
        prompt = {"format": "chat", "instruction": BOXED}
        values = parse_config({"questions": _file_source(questions), "prompt": prompt}).model_dump()
    elif target.startswith(("/", ".")) and not Path(target).exists():
        raise UserError(f"{target} does not exist: name a run folder or a model")
    else:
        raise UserError("name the questions to evaluate on: --questions FILE, or --config with evaluate.questions")
    evaluate = values["evaluate"]
    if questions is not None:
        like = evaluate["questions"] or values["questions"]
        fields = like["fields"] | {"answer": like["fields"]["answer"] or "answer"}
        evaluate["questions"] = _file_source(questions) | {"fields": fields, "too_long": like["too_long"]}
    if evaluate["questions"] is None:
        raise UserError("the config has no evaluate.questions; name a file with --questions")
    if samples is not None:
        evaluate["samples"] = samples
    if run is not None:
        values |= {"model": read_config(run).model.model_dump(), "mesh": Mesh().model_dump()}
    else:
        values["model"]["path"] = target
    return override_config(parse_config(values, "evaluate"), overrides)


def _file_source(path: Path) -> dict[str, Any]:
    if path.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--questions {path}: the file must end in .jsonl or .parquet")
    return {"source": path.suffix[1:], "path": str(path)}


def _weights(parts: Parts, run: Path | None) -> tuple[dict[str, jax.Array], str]:
    if run is None:
        return parts.params(), "model"
    params, step = checkpoint_params(parts, run, step=None)
    return params, f"step {step}"
