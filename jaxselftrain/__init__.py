"""jaxselftrain: a language model teaches itself to reason without labels (Self-Rewarded Training, arXiv 2505.21444).

The path of the data, in the order of the modules:

    questions.py   files, tfds, reasoning-gym -> Question            host
    prompts.py     Question -> prompt tokens                         host
    rollouts.py    prompts -> responses, behaviour log-probs         device
    answers/       response text -> answer -> key                    host (voter.py: in worker processes)
    votes.py       keys of N samples -> classes, majority, share     host
    rewards.py     votes -> reward_QN                                host
    advantages.py  reward_QN -> advantage_QN                         device
    update.py      rollouts, advantages -> new state                 device
    step.py        update, then sample: the one compiled program     device
    loop.py        the host loop; checkpoints.py and metrics.py keep what it leaves behind
    plan/          what the step needs on devices that are not here: lowering.py and counts.py tell
    training.py    the loop for programs (`train`), and for the command line, which shows progress.py

Arrays end in their dimension letters:

    Q questions   N samples a question   M samples trained on   B = Q*N rows
    C prompt (context) tokens   T response tokens   S cache slots
    D model   F mlp   H heads   G kv heads   R = H/G heads a kv head   K head size   V vocabulary   L layers

Importing this package imports no JAX: answers, votes and rewards run in processes that must not take the accelerator.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what EXPORTS says, for type checkers
    from jaxselftrain.answers import answer_key as answer_key
    from jaxselftrain.config import Config as Config
    from jaxselftrain.config import load_config as load_config
    from jaxselftrain.config import override_config as override_config
    from jaxselftrain.config import parse_config as parse_config
    from jaxselftrain.config import to_yaml as to_yaml
    from jaxselftrain.errors import Resumable as Resumable
    from jaxselftrain.errors import UserError as UserError
    from jaxselftrain.frames import load_runs as load_runs
    from jaxselftrain.frames import load_samples as load_samples
    from jaxselftrain.frames import load_votes as load_votes
    from jaxselftrain.loop import Report as Report
    from jaxselftrain.metrics import read_alarms as read_alarms
    from jaxselftrain.metrics import read_metrics as read_metrics
    from jaxselftrain.metrics import read_responses as read_responses
    from jaxselftrain.plots import plot_run as plot_run
    from jaxselftrain.training import Training as Training
    from jaxselftrain.training import train as train
    from jaxselftrain.votes import Vote as Vote
    from jaxselftrain.votes import vote as vote

__version__ = "0.1.0"

EXPORTS = {  # public name -> the module that has it, imported when it is asked for: some of them import JAX
    "Config": "config",
    "load_config": "config",
    "override_config": "config",
    "parse_config": "config",
    "to_yaml": "config",
    "Report": "loop",
    "Training": "training",
    "train": "training",
    "load_runs": "frames",
    "load_samples": "frames",
    "load_votes": "frames",
    "read_alarms": "metrics",
    "read_metrics": "metrics",
    "read_responses": "metrics",
    "plot_run": "plots",
    "Vote": "votes",
    "vote": "votes",
    "answer_key": "answers",
    "UserError": "errors",
    "Resumable": "errors",
}


def __getattr__(name: str):
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS})
