"""Takes a YAML file and dotted overrides, gives one frozen, validated Config.

The settings themselves, with their defaults and units, are in `sections.py`; here they are put together and checked against
each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from jaxselftrain.config_file import apply_override, read_settings, sentence
from jaxselftrain.errors import UserError
from jaxselftrain.sections import (
    CONFIDENCE_KINDS,
    NEED_REFERENCE,
    Alarm,
    Answer,
    Checkpoint,
    Evaluate,
    Label,
    Log,
    Mesh,
    Model,
    Optimizer,
    Probe,
    Prompt,
    Questions,
    Reference,
    Reward,
    Rollout,
    Runtime,
    Section,
    Stage,
    Supervised,
    Train,
    Update,
    Vote,
)


class Config(Section):
    """One run. Read it with `load_config`; print it with `jaxselftrain train CONFIG --print-config`."""

    model: Model = Model()
    questions: Questions
    prompt: Prompt = Prompt()
    rollout: Rollout = Rollout()
    answer: Answer = Answer()
    vote: Vote = Vote()
    supervised: Supervised = Supervised()
    label: Label = Label()
    reward: Reward = Reward()
    reference: Reference = Reference()
    update: Update = Update()
    optimizer: Optimizer = Optimizer()
    mesh: Mesh = Mesh()
    probe: Probe = Probe()
    alarm: Alarm = Alarm()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    runtime: Runtime = Runtime()
    train: Train = Train()
    stages: tuple[Stage, ...] = Field(
        (), description="runs one after the other, each from the best checkpoint of the one before; see stages.py"
    )

    @property
    def samples_trained(self) -> int:
        """M: samples per question that the update sees."""
        return self.update.samples or self.vote.samples

    @property
    def micro_batches(self) -> int:
        """The parts of each gradient, once `auto` is decided: see memory.fit_memory."""
        if self.update.micro_batches == "auto":
            raise ValueError("update.micro_batches is not decided yet")
        return self.update.micro_batches

    @property
    def charges_kl_in_reward(self) -> bool:
        """Whether advantages depend on log-probs."""
        return self.update.kl_coefficient > 0 and self.update.kl_in == "reward"

    @property
    def is_supervised(self) -> bool:
        """Whether the policy learns to say gold answers, and samples nothing."""
        return self.supervised.response is not None

    @property
    def keeps_teacher(self) -> bool:
        """Whether a teacher that follows the policy is held on device, and answers every question as well."""
        return self.label.source == "ema"

    @property
    def measures_confidence(self) -> bool:
        """Whether the sampler measures each token's distribution, because a reward is made of it."""
        return any(kind in CONFIDENCE_KINDS for kind in self.reward.parts)

    @property
    def reward_name(self) -> str:
        """What rewards this run, in two words at most, for titles and file cards."""
        return {"agreement": self.label.source, "soft": "soft vote"}.get(self.reward.kind, self.reward.kind)

    @property
    def is_decided(self) -> bool:
        """Whether nothing that the compiled step depends on is left to `auto`."""
        return "auto" not in (self.update.micro_batches, self.model.remat)

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run: several a step of training, with inner epochs or minibatches."""
        return self.train.steps * self.update.epochs * self.update.minibatches

    @property
    def keeps_reference(self) -> bool:
        """Whether a frozen copy of the initial policy is held on device."""
        acts = self.alarm.action in ("stop", "rollback", "teacher") and bool(NEED_REFERENCE & self.alarm.signals.keys())
        return self.reference.keep == "always" or (self.reference.keep == "auto" and (self.update.kl_coefficient > 0 or acts))

    @model_validator(mode="after")
    def _possible(self):
        if self.samples_trained > self.vote.samples:
            raise ValueError(f"update.samples = {self.update.samples} is more than vote.samples = {self.vote.samples}")
        self._check_supervised()
        if self.reference.keep == "never" and self.update.kl_coefficient > 0:
            raise ValueError("update.kl_coefficient above 0 needs the initial policy: reference.keep must not be never")
        if self.update.kl_cov_fraction > 0 and self.update.epochs * self.update.minibatches == 1:
            raise ValueError(
                "update.kl_cov_fraction needs several inner steps: with one, the policy is still the one it is compared with; "
                "set update.epochs or update.minibatches above 1"
            )
        if "agreement" not in self.reward.parts and self.label != Label():
            raise ValueError(f"reward.kind = {self.reward.kind} reads no label: leave label.source at vote and label.noise at 0")
        devices = self.mesh.samples
        for name, samples in {"vote.samples": self.vote.samples, "update.samples": self.samples_trained}.items():
            if samples % devices:
                raise ValueError(f"mesh.samples = {devices} does not divide {name} = {samples}")
        rows, least, most = self.rollout.rows, self.rollout.questions * devices, self.rollout.questions * self.vote.samples
        if rows is not None and (rows % least or rows > most):
            split = "" if devices == 1 else f" x mesh.samples = {devices}"
            raise ValueError(
                f"rollout.rows = {rows} must be a multiple of rollout.questions = {self.rollout.questions}{split}, and at most "
                f"rollout.questions x vote.samples = {most}"
            )
        questions, minibatches, micro = self.rollout.questions, self.update.minibatches, self.update.micro_batches
        if questions % minibatches:
            raise ValueError(f"update.minibatches = {minibatches} does not divide rollout.questions = {questions}")
        per_step, samples = questions // minibatches, self.samples_trained // devices
        if micro != "auto" and per_step % micro and (micro % per_step or samples % (micro // per_step)):
            raise ValueError(
                f"update.micro_batches = {micro} must divide the {per_step} questions of an optimizer step, "
                f"or be a multiple of them that splits the {samples} samples {'' if devices == 1 else 'of a device '}evenly"
            )
        if self.probe.questions > self.rollout.questions:
            raise ValueError(
                f"probe.questions = {self.probe.questions} is more than rollout.questions = {self.rollout.questions}: the probe "
                "questions are sampled in one call"
            )
        if self.evaluate.patience is not None and not (self.evaluate.questions and self.evaluate.every):
            raise ValueError("evaluate.patience needs evaluate.questions, and evaluate.every above 0 to measure on the way")
        if self.rollout.temperature == 0:
            raise ValueError("rollout.temperature = 0 gives equal samples and nothing to vote on; use a value above 0")
        return self

    def _check_supervised(self) -> None:
        if not self.is_supervised:
            for name, samples in {"vote.samples": self.vote.samples, "update.samples": self.samples_trained}.items():
                if samples < 2:
                    raise ValueError(f"{name} = {samples} leaves nothing to compare; use 2 or more")
            return
        for name, now, needed in (
            ("vote.samples", self.vote.samples, 1),
            ("update.estimator", self.update.estimator, "no_baseline"),
            ("reward", self.reward, Reward()),
            ("label", self.label, Label()),
            ("probe.questions", self.probe.questions, 0),
        ):
            if now != needed:
                what = f"= {needed}" if isinstance(needed, (int, str)) else "left as it is"
                raise ValueError(f"supervised.response learns one given answer a question: {name} must be {what}")


def load_config(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """The Config in a YAML file, after dotted overrides such as `vote.samples=32`.

    Raises UserError with one sentence that names the file, the field, the value and the nearest valid name.
    """
    values = read_settings(Path(path))
    for override in overrides:
        apply_override(values, override)
    return parse_config(values, str(path))


def parse_config(values: dict[str, Any], where: str = "the config") -> Config:
    """A validated Config from nested dicts; `where` names their origin in errors (UserError)."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: " + sentence(error, Config)) from None


def override_config(config: Config, overrides: tuple[str, ...] | list[str]) -> Config:
    """The Config after dotted overrides. Raises UserError as `load_config` does."""
    values = config.model_dump()
    for override in overrides:
        apply_override(values, override)
    return parse_config(values)


def to_yaml(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal Config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def changed_fields(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """(fixed, free): the dotted names of fields that differ, each as 'name: old -> new'."""
    fixed: list[str] = []
    free: list[str] = []

    def walk(a, b, prefix):
        for name, field in type(a).model_fields.items():
            x, y = getattr(a, name), getattr(b, name)
            if x == y:
                continue
            if isinstance(x, Section) and isinstance(y, Section):
                walk(x, y, f"{prefix}{name}.")
                continue
            extra = field.json_schema_extra
            kind = free if isinstance(extra, dict) and extra.get("free") else fixed
            kind.append(f"{prefix}{name}: {x!r} -> {y!r}")

    walk(old, new, "")
    return fixed, free
