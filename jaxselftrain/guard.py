"""Takes the metrics of each step, gives what a run does about its alarm: say so, stop, go back, or take a teacher's labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from jaxselftrain.alarm import Raised, Watch, event
from jaxselftrain.metrics import ALARMS_FILE
from jaxselftrain.run_folder import replace_text
from jaxselftrain.sections import NEED_REFERENCE, Alarm
from jaxselftrain.start import Host


class Guard:
    """The alarm of one run; what it has seen and done stands in the Host, which checkpoints keep."""

    def __init__(self, settings: Alarm, folder: Path, *, say: Callable[[str], None]):
        self.settings, self.folder, self.say = settings, folder, say

    def tell_of_blindness(self, *, keeps_reference: bool) -> None:
        """Says which of its signals the alarm will not have."""
        blind = sorted(NEED_REFERENCE & self.settings.signals.keys())
        if blind and not keeps_reference and self.settings.action != "off":
            self.say(
                f"the alarm goes without {', '.join(blind)}: reference.keep=always keeps the initial policy to measure against"
            )

    def watch(self, host: Host, line: Mapping[str, float]) -> tuple[dict[str, float], Raised | None]:
        """(the trends and the score of a step's metrics, the alarm if it is raised at this step)."""
        state = Watch(**host.watch)
        found, raised = state.step({**line, "step": host.step}, self.settings)
        host.watch = asdict(state)
        host.is_healthy = found.get("alarm_score", 0.0) == 0
        host.calm = calm(state, host.step, self.settings)
        return found, raised

    def act(self, host: Host, raised: Raised, *, is_last: bool) -> str:
        """Takes down what is done about the alarm, and says it; gives the action: one rollback too many is a stop.

        Where the last rollback has put the alarm off by less than a window, one to the same checkpoint would not help, and it
        goes to the beginning. At the last step of a run there is nothing to do but to say it.
        """
        action, healthy = "warn" if is_last else self.settings.action, host.healthy_step
        back = f"the healthiest checkpoint is that of step {healthy}" if healthy else "there is no healthy checkpoint yet"
        why = ""
        if action == "rollback" and host.rollbacks >= self.settings.rollbacks:
            action, why = "stop", f": alarm.rollbacks = {self.settings.rollbacks} are used up"
        if action == "rollback" and host.alarms and host.alarms[-1].get("to") == healthy:
            if raised.step < host.alarms[-1]["step"] + self.settings.window:
                healthy = None  # the same batches lead from there to the alarm whatever the learning rate
        rate = host.rate * self.settings.rate
        does = {
            "warn": back,
            "stop": f"stopping{why}; {back}. Give alarm.action=warn to go on all the same",
            "rollback": f"back to {f'step {healthy}' if healthy else 'the beginning'}, and on with {rate:g} of the learning rate",
            "teacher": "from here on the labels are the frozen teacher's (alarm.labels)",
        }[action]
        told = f"step {raised.step}: the alarm is raised: {raised.reasons}; {does}"
        self.say(told)
        more = {"to": healthy or 0, "rate": rate} if action == "rollback" else {}
        host.alarms = [*host.alarms, event(raised, action=action, told=told, healthy=healthy, **more)]
        write_alarms(self.folder, host.alarms)
        if action == "stop":
            host.is_stopped = True
        if action == "teacher":
            host.label_source = "teacher"
        return action

    def stopped(self, host: Host) -> bool:
        """Whether an alarm has ended the run; one may go on by another action."""
        return host.is_stopped and self.settings.action in ("stop", "rollback")


def calm(state: Watch, step: int, settings: Alarm) -> float | None:
    """How healthy a step is beside others of its run, more is better; None while that cannot be told.

    Where the alarm goes by the rise of the surprise, the step with the lowest mean surprise is where the policy was at its
    best: by the time that the rise stands out, the newest checkpoints have had their part of it. Elsewhere it is the newest.
    """
    surprise = state.recent.get("surprise", [])
    if "surprise_rise" not in settings.signals or not surprise:
        return float(step)
    return None if len(surprise) < settings.window else -sum(surprise[-settings.window :]) / settings.window


def write_alarms(folder: Path, alarms: list[dict]) -> None:
    """alarms.jsonl, in one move; none where no alarm was ever raised."""
    file = folder / ALARMS_FILE
    if alarms:
        replace_text(file, "".join(json.dumps(line) + "\n" for line in alarms))
    else:
        file.unlink(missing_ok=True)
