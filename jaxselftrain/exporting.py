"""Takes a run folder, gives a Hugging Face folder of one of its checkpoints, with a card that tells how it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxselftrain import __version__
from jaxselftrain.assembly import open_parts
from jaxselftrain.checkpoints import METRIC, checkpoint_params
from jaxselftrain.config import Config, override_config, to_yaml
from jaxselftrain.errors import UserError
from jaxselftrain.metrics import METRICS_FILE, read_alarms, read_metrics
from jaxselftrain.model.export import export_folder
from jaxselftrain.run_folder import read_config
from jaxselftrain.sections import Mesh

REWARDED_BY = {  # Config.reward_name -> what a model card says
    "vote": "its own majority votes",
    "soft vote": "the shares of its own votes",
    "teacher": "the votes of a frozen teacher",
    "ema": "the votes of a teacher that followed it",
    "gold": "gold answers",
    "mixed": "gold answers where there were any, and its own majority votes",
    "incorrect": "incorrect answers, as a control",
    "self_certainty": "how certain it is of its tokens (self-certainty)",
    "entropy": "how certain it is of its tokens (low entropy)",
    "log_prob": "how likely its tokens are to itself (log-probability)",
    "sum": "a weighted sum of rewards",
    "format": "stating any answer, as a control",
    "random": "random rewards, as a control",
}


def export_run(*, run: Path, out: Path, step: int | None, newest: bool, overrides: tuple[str, ...]) -> None:
    """`jaxselftrain export`: the checkpoint of a step, or the best, or the newest, read on a mesh of its own.

    The best has the highest held-out avg@k of those that were evaluated while the run trained. Where none was, it is the newest,
    or the newest healthy one of a run whose alarm was raised.

    Raises UserError for a missing run, step or free folder, and when the model is not the run's.
    """
    if newest and step is not None:
        raise UserError("--step and --newest name two checkpoints; give one of them")
    trained = read_config(run)
    config = override_config(trained.model_copy(update={"mesh": Mesh()}), overrides)
    parts = open_parts(config, cache=None)
    lines = read_metrics(run) if (run / METRICS_FILE).is_file() else []
    # The beginning is saved only where a run was stopped there, and the best must not depend on that: it is taken by --step 0.
    scores = {} if newest else {int(line["step"]): line[METRIC] for line in lines if METRIC in line and line["step"] > 0}
    alarmed = bool(read_alarms(run)) and not newest
    healthy = {int(line["step"]) for line in lines if line.get("alarm_score", 0.0) == 0} if alarmed else set()
    params, chosen = checkpoint_params(parts, run, step=step, scores=scores, healthy=healthy)
    export_folder(
        params,
        parts.weights.config,
        parts.weights.generation,
        parts.tokenizer,
        out,
        dtype=config.model.weights_dtype,
        card=model_card(trained, chosen, lines),
    )
    why = ""
    if step is None and chosen in scores:
        why = f", the best checkpoint that was evaluated (held-out avg@{trained.evaluate.samples} {scores[chosen]:.3f}),"
    elif step is None and chosen in healthy:
        why = ", the newest checkpoint at which no signal of the alarm was past its threshold,"
    print(f"step {chosen} of {run}{why} exported to {out}")


def model_card(config: Config, step: int, lines: Sequence[dict[str, float]]) -> str:
    """README.md of an exported model, from the metrics of its run."""
    source = REWARDED_BY[config.reward_name]
    measured = [line for line in lines if METRIC in line and line["step"] <= step]
    rows = [f"| {int(line['step'])} | {line['heldout/avg']:.3f} | {line['heldout/maj']:.3f} |" for line in measured]
    table = ["| step | avg@k | maj@k |", "| --- | --- | --- |", *rows] if rows else ["It was not evaluated while it trained."]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [self-rewarded-training, reinforcement-learning]",
            "---",
            f"# {config.model.path}, trained on {source}",
            "",
            f"Trained for {step} steps by jaxselftrain {__version__} with Self-Rewarded Training (arXiv 2505.21444), "
            f"{config.update.estimator}, {config.vote.samples} samples a question; rewards came from {source}.",
            "",
            f"Held-out results, k = {config.evaluate.samples}:",
            "",
            *table,
            "",
            "The licence of the initial weights applies. The settings:",
            "",
            "```yaml",
            to_yaml(config).rstrip(),
            "```",
            "",
        ]
    )
