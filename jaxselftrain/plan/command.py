"""Takes the command line of `jaxselftrain plan`, gives the tables: memory, phases, collectives, and what to change."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxselftrain.config import Config, load_config
from jaxselftrain.errors import UserError
from jaxselftrain.model.architecture import Architecture, from_huggingface
from jaxselftrain.plan.topologies import parse_topology

ARCHITECTURES = "architectures"  # the folder beside a config that holds config.json files by the last part of a hub id


def run_plan(
    *,
    config_path: Path,
    overrides: tuple[str, ...],
    topology: str,
    architecture: Path | None,
    prompt_tokens: int | None,
    out: Path | None,
    search: bool,
) -> None:
    """`jaxselftrain plan`. Raises UserError for what the user can change."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the devices planned for are not here, and those that are here stay free
    config = load_config(config_path, overrides)
    place = parse_topology(topology)
    if config.stages:
        raise UserError(f"{config_path} has stages, each of them a run of its own; plan one as a config without `stages`")
    if out is not None:
        _check_writable(out)
    model, where = find_architecture(config, config_path, architecture)
    from jaxselftrain.plan.fit import smallest_change
    from jaxselftrain.plan.planning import make_plan, open_job
    from jaxselftrain.plan.tables import record, show

    console = Console()
    width, source = _width(config, prompt_tokens)
    job = open_job(config, model, place, width)
    notes = [f"architecture: {where}", f"prompt length: {width} tokens, {source}"]
    with console.status("") as status:

        def say(text: str) -> None:
            console.print(text, highlight=False)
            status.update(f"{text} (a few minutes each)")

        if place.platform == "tpu":
            say(f"compiling the training step for {place.name} with the TPU's own compiler")
        plan = make_plan(job)
        change = smallest_change(plan, say) if search and not plan.fits else None
    show(console, plan, change, notes, searched=search)
    if out is not None:
        out.write_text(json.dumps(record(plan, change, notes), indent=1) + "\n")
        console.print(f"json: {out}", highlight=False)


def _check_writable(out: Path) -> None:
    """Raises UserError where it is not, before minutes of compiling. Leaves nothing behind."""
    if not out.absolute().parent.is_dir():
        raise UserError(f"--json {out}: there is no folder {out.absolute().parent}")
    is_new = not out.exists()
    try:
        out.open("a").close()
        if is_new:
            out.unlink()
    except OSError as error:
        raise UserError(f"--json {out} cannot be written: {error.strerror}") from None


def find_architecture(config: Config, config_path: Path, named: Path | None) -> tuple[Architecture, str]:
    """(the model's Architecture, where it was read): a file named, the model's folder, one beside the config, or the hub's."""
    from jaxselftrain.model.fresh import fresh_weights, is_fresh
    from jaxselftrain.model.loading import open_weights
    from jaxselftrain.model.paths import local_config

    path = config.model.path
    beside = config_path.parent / ARCHITECTURES / f"{Path(path).name}.json"
    if named is not None:
        return _read(named), str(named)
    if is_fresh(path):
        return fresh_weights(path).architecture, path
    if beside.is_file() and not Path(path).expanduser().exists():
        return _read(beside), str(beside)
    try:
        there = local_config(path, config.model.revision)
    except UserError as error:
        raise UserError(f"{error}; or name the model's config.json: --architecture FILE") from None
    if there.is_dir():
        return _read(there / "config.json"), str(there / "config.json")
    return open_weights(there).architecture, str(there)


def _read(path: Path) -> Architecture:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"architecture file {path} does not exist; give a model's config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"architecture file {path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"architecture file {path} must hold a JSON object, as a model's config.json does")
    return from_huggingface(values, str(path))


def _width(config: Config, given: int | None) -> tuple[int, str]:
    from jaxselftrain.prompts import prompt_width

    asked = config.prompt.max_tokens if given is None else given
    source = "by prompt.max_tokens, its upper bound (--prompt-tokens for less)" if given is None else "by --prompt-tokens"
    width = prompt_width(asked)
    return width, source + ("" if width == asked else f" = {asked}, rounded up as in a run")
