"""Takes a config with stages, gives the runs they stand for, one after the other: each starts from the model of the one before.

    FOLDER/1-gold             the run of the first stage
    FOLDER/1-gold.model       its best checkpoint, which the next stage starts from
    FOLDER/2-srt.labels.jsonl what that model votes on the questions of the second stage, where it asks for labels
    FOLDER/2-srt              ...

A stage that has a model is done. So a command that was stopped anywhere is simply given again.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxselftrain.config import Config, changed_fields, parse_config, to_yaml
from jaxselftrain.errors import UserError
from jaxselftrain.run_folder import is_run_folder, read_config, replace_text
from jaxselftrain.sections import Label, Questions


@dataclass(frozen=True)
class Planned:
    """One stage: the config of its run, and where everything lies."""

    config: Config
    run: Path
    model: Path
    labels: Path | None  # where they are to be made
    votes: int | None  # samples a question, for these


def plan(config: Config, folder: Path) -> list[Planned]:
    """The stages of a config in their order. Raises UserError that names the stage for settings that cannot be."""
    base = config.model_copy(update={"stages": ()}).model_dump()
    planned: list[Planned] = []
    for number, stage in enumerate(config.stages, 1):
        name, where = f"{number}-{stage.name}", f"stages.{number - 1} ({stage.name})"
        _check_settings(base, stage.settings, where=where, first=not planned)
        values = _merged(base, stage.settings)
        if planned:
            values["model"] |= {"path": str(planned[-1].model), "revision": None, "tokenizer": None}
        labels = None if stage.labels is None else folder / f"{name}.labels.jsonl"
        if labels is not None:
            _read_labels(values, labels, where=where)
        values["train"]["folder"] = str(folder / name)
        own = parse_config(values, where)
        planned.append(Planned(own, folder / name, folder / f"{name}.model", labels, stage.labels))
    return planned


def run_stages(config: Config, folder: Path) -> None:
    """`jaxselftrain train` on a config with stages. What is done already is passed over."""
    from jaxselftrain.exporting import export_run
    from jaxselftrain.label_file import run_label
    from jaxselftrain.processes import several_by
    from jaxselftrain.training import run

    by = several_by(os.environ)
    if by is not None:
        raise UserError(
            f"{by} = {os.environ[by]}: a config with stages is trained by one process so far; train its stages one by one, each "
            "with a config of its own"
        )
    stages = plan(config, folder)
    if is_run_folder(folder):
        raise UserError(f"{folder} holds a run without stages; choose another train.folder")
    for number, stage in enumerate(stages, 1):
        title = f"stage {number} of {len(stages)}, {stage.run.name}"
        if stage.model.is_dir():
            _same_settings(stage)
            print(f"{title}: done, its model is {stage.model}")
            continue
        print(title)
        folder.mkdir(parents=True, exist_ok=True)
        if stage.labels is not None:
            questions = stage.run.with_name(f"{stage.run.name}.labels.yaml")
            replace_text(questions, to_yaml(_asking(stage.config)))
            run_label(
                target=stage.config.model.path,
                questions=questions,
                out=stage.labels,
                samples=stage.votes,
                overrides=(),
                config_path=None,
            )
        run(stage.config, stage.run.name)
        export_run(run=stage.run, out=stage.model, step=None, newest=False, overrides=())


def _check_settings(base: dict[str, Any], settings: dict[str, Any], *, where: str, first: bool) -> None:
    """Refuses what a stage cannot set."""
    if "stages" in settings:
        raise UserError(f"{where}: a stage has no stages of its own")
    for name, section in settings.items():
        if isinstance(base.get(name), dict) and not isinstance(section, dict):
            raise UserError(f"{where}: {name} = {section!r}: must be a section, with fields of its own")
    if "folder" in settings.get("train", {}):
        raise UserError(f"{where}: train.folder is given by the stage's name; set it above, for all stages")
    if not first and {"path", "revision", "tokenizer"} & settings.get("model", {}).keys():
        raise UserError(f"{where}: a stage starts from the model of the one before; remove model.path, revision and tokenizer")


def _merged(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings over the base: sections field by field, everything else as a whole."""
    merged = copy.deepcopy(base)
    for name, value in settings.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merged(merged[name], value)
        else:
            merged[name] = copy.deepcopy(value)
    return merged


def _read_labels(values: dict[str, Any], labels: Path, *, where: str) -> None:
    """Names the labels that the stage makes wherever it reads some and names none."""
    readers = []
    if values["label"].get("source") == "teacher" and values["label"].get("file") is None:
        readers.append((values["label"], "file"))
    if values["questions"].get("easiest", 1) != 1 and values["questions"].get("labels") is None:
        readers.append((values["questions"], "labels"))
    if not readers:
        raise UserError(f"{where}: labels are made and nothing reads them; set label.source=teacher or questions.easiest")
    for section, field in readers:
        section[field] = str(labels)


def _asking(config: Config) -> Config:
    """The config by which a stage's questions are voted on: all of them, and no labels yet."""
    everything = {"easiest": 1.0, "labels": None, "easiest_by": Questions.model_fields["easiest_by"].default}
    return config.model_copy(update={"questions": config.questions.model_copy(update=everything), "label": Label()})


def _same_settings(stage: Planned) -> None:
    if not is_run_folder(stage.run):
        return  # the run was taken away to save room; its model is what counts
    fixed, _ = changed_fields(read_config(stage.run), stage.config)
    if fixed:
        raise UserError(
            f"{stage.run} is a finished stage with other settings: {'; '.join(fixed)}. Set them back, or choose another "
            "train.folder"
        )
