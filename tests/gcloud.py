"""A stand-in for the gcloud CLI: checks its arguments against the documented ones, records them, and plays a small Cloud TPU.

Run as a program, in the folder that STAND_IN names: calls.jsonl gets every command line, state.json holds what was asked for, and
workers/N is the home folder of a worker, where `ssh --command` really runs. It starts often, so that it imports little, and late.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

# Flags with their number of values, from the pages https://cloud.google.com/sdk/gcloud/reference/compute/tpus/ + the command;
# the last ones from the section "GCLOUD WIDE FLAGS" of any of them.
WIDE = {
    **dict.fromkeys(["--access-token-file", "--account", "--billing-project", "--configuration", "--flags-file", "--flatten"], 1),
    **dict.fromkeys(["--format", "--impersonate-service-account", "--project", "--trace-token", "--verbosity"], 1),
    **dict.fromkeys(["--help", "--log-http", "--quiet", "--user-output-enabled"], 0),
}
LIST = dict.fromkeys(["--zone", "--filter", "--limit", "--page-size", "--sort-by"], 1) | {"--uri": 0}
SSH = {
    **dict.fromkeys(["--dry-run", "--force-key-file-overwrite", "--internal-ip", "--plain"], 0),
    **dict.fromkeys(["--ssh-key-file", "--strict-host-key-checking", "--worker", "--zone"], 1),
    **dict.fromkeys(["--ssh-key-expiration", "--ssh-key-expire-after"], 1),
}
CREATE = {
    **dict.fromkeys(["--runtime-version", "--accelerator-type", "--topology", "--type", "--node-id", "--node-count"], 1),
    **dict.fromkeys(["--node-prefix", "--boot-disk", "--data-disk", "--description", "--labels", "--metadata", "--zone"], 1),
    **dict.fromkeys(
        ["--metadata-from-file", "--network", "--range", "--scopes", "--service-account", "--subnetwork", "--tags"], 1
    ),
    **dict.fromkeys(["--valid-after-duration", "--valid-after-time", "--valid-until-duration", "--valid-until-time"], 1),
    **dict.fromkeys(["--reservation-host-folder", "--reservation-host-organization", "--reservation-host-project"], 1),
    **dict.fromkeys(["--async", "--guaranteed", "--internal-ips", "--reserved", "--shielded-secure-boot", "--spot"], 0),
}
# Command: its flags, the groups of which exactly one must be there, and how many other arguments it takes. --zone may be left out
# where gcloud has a default zone; scripts cannot count on that, so it is required here.
COMMANDS = {
    "queued-resources create": (
        CREATE,
        [["--runtime-version"], ["--accelerator-type", "--topology"], ["--node-id", "--node-count"]],
        (1, 1),
    ),
    "queued-resources delete": ({"--zone": 1, "--async": 0, "--force": 0}, [], (1, 1)),
    "queued-resources describe": ({"--zone": 1}, [], (1, 1)),
    "queued-resources list": (LIST, [], (0, 0)),
    "tpu-vm delete": ({"--zone": 1, "--async": 0}, [], (1, 1)),
    "tpu-vm describe": ({"--zone": 1}, [], (1, 1)),
    "tpu-vm list": (LIST, [], (0, 0)),
    "tpu-vm scp": (SSH | {"--compress": 0, "--recurse": 0, "--scp-flag": 1}, [], (2, 1000)),
    "tpu-vm ssh": (SSH | {"--ssh-flag": 1, "--command": 1, "--output-directory": 1}, [], (1, 1)),
}


def check(arguments: list[str]) -> tuple[str, dict[str, str], list[str]]:
    """The command, its flags and its other arguments; SystemExit with a sentence when gcloud would not take them."""
    command = " ".join(arguments[2:4])
    if arguments[:2] != ["compute", "tpus"] or command not in COMMANDS:
        raise SystemExit(f"no such command: {' '.join(arguments)}")
    known, groups, (least, most) = COMMANDS[command]
    flags: dict[str, str] = {}
    others = []
    rest = arguments[4:]
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("--"):
            others.append(flag + equals + value)
            continue
        values = (known | WIDE).get(flag)
        if values is None:
            raise SystemExit(f"{command}: unrecognized argument {flag}")
        if flag in flags:
            raise SystemExit(f"{command}: {flag} twice")
        if values == 0 and equals:
            raise SystemExit(f"{command}: {flag} takes no value")
        if values and not equals:
            value = rest.pop(0) if rest else ""
        if values and not value:
            raise SystemExit(f"{command}: {flag} needs a value")
        flags[flag] = value
    for group in [["--zone"], *groups]:
        if sum(flag in flags for flag in group) != 1:
            raise SystemExit(f"{command}: exactly one of {group} is needed")
    if not least <= len(others) <= most:
        raise SystemExit(f"{command}: {others}")
    if command.endswith(" delete") and "--quiet" not in flags:
        raise SystemExit(f"{command}: asks before it deletes, and nobody is there to answer")
    return command, flags, others


def listed(resources: list[dict], form: str) -> None:
    """Print them as --format=value(...) does, with the projections that `gcloud topic projections` documents."""
    keys = re.fullmatch(r"value\((.*)\)", form)
    for resource in resources:
        row = []
        for key in keys[1].split(",") if keys else [form]:
            path, _, transform = key.strip().partition(".basename()")
            value = resource
            for part in path.split("."):
                value = value[part]
            row.append(value.rpartition("/")[2] if ".basename()" in key else value)
            assert isinstance(value, str) and not transform, key
        print("\t".join(row))


class Cloud:
    """Requests and VMs by name; a request gets on by one state whenever it is listed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "state.json"
        state = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.requests: dict[str, str] = state.get("requests", {})
        self.vms: dict[str, str] = state.get("vms", {})

    def save(self) -> None:
        self.file.write_text(json.dumps({"requests": self.requests, "vms": self.vms}))

    def homes(self) -> list[Path]:
        return [self.folder / "workers" / str(number) for number in range(int(os.environ.get("STAND_IN_WORKERS", "2")))]

    def drop_workers(self) -> None:
        import shutil

        for home in self.homes():
            file = home / "jaxselftrain-run" / "pid"
            pid = file.read_text().strip() if file.exists() else "none"
            command = Path("/proc", pid, "cmdline")
            if command.exists() and str(home) in command.read_text():  # nobody else's
                os.kill(int(pid), signal.SIGKILL)
            shutil.rmtree(home, ignore_errors=True)

    def advance(self) -> None:
        after = {"WAITING_FOR_RESOURCES": "PROVISIONING", "PROVISIONING": os.environ.get("STAND_IN_OUTCOME", "ACTIVE")}
        for name, state in self.requests.items():
            self.requests[name] = after.get(state, state)
            if self.requests[name] == "ACTIVE" and name not in self.vms:
                self.vms[name] = "READY"
                for home in self.homes():
                    home.mkdir(parents=True)
        if (self.folder / "preempt").exists():
            (self.folder / "preempt").unlink()
            self.drop_workers()
            self.requests = dict.fromkeys(self.requests, "SUSPENDED")
            self.vms = dict.fromkeys(self.vms, "PREEMPTED")

    def on_workers(self, flags: dict[str, str], name: str) -> list[Path]:
        if self.vms.get(name) != "READY":
            raise SystemExit(f"no VM {name}")
        wanted = flags.get("--worker", "0")
        return self.homes() if wanted == "all" else [self.homes()[int(wanted)]]

    def act(self, command: str, flags: dict[str, str], others: list[str]) -> int:
        where = f"projects/{flags.get('--project', 'p')}/locations/{flags['--zone']}"
        if command == "queued-resources create":
            if others[0] in self.requests:
                raise SystemExit("ALREADY_EXISTS")
            if os.environ.get("STAND_IN_OUTCOME") == "REFUSED":
                raise SystemExit("RESOURCE_EXHAUSTED: quota")
            self.requests[others[0]] = "WAITING_FOR_RESOURCES"
        elif command == "queued-resources list":
            self.advance()
            rows = [{"name": f"{where}/queuedResources/{n}", "state": {"state": s}} for n, s in self.requests.items()]
            listed(rows, flags["--format"])
        elif command == "tpu-vm list":
            listed([{"name": f"{where}/nodes/{n}", "state": s} for n, s in self.vms.items()], flags["--format"])
        elif command.endswith(" delete") and not os.environ.get("STAND_IN_KEEPS"):
            request = command.startswith("queued-resources")
            if request and others[0] in self.vms and "--force" not in flags:
                raise SystemExit("FAILED_PRECONDITION: the request has nodes")  # what the REST page says of force=false
            if request:
                del self.requests[others[0]]
                self.vms.pop(others[0], None)
            else:
                del self.vms[others[0]]
            self.drop_workers()
        elif command == "tpu-vm scp":
            import shutil

            *files, target = others
            name, colon, place = target.partition(":")
            assert colon and not place, target
            for home in self.on_workers(flags, name):
                for file in files:
                    shutil.copy(file, home)
        elif command == "tpu-vm ssh":
            import subprocess

            codes = []
            for home in self.on_workers(flags, others[0]):
                given = os.environ | {"HOME": str(home), "STAND_IN_WORKER": home.name}
                for private in os.environ.get("STAND_IN_PRIVATE", "").split():  # the machine there has none of our variables
                    given.pop(private, None)
                codes.append(subprocess.run(["bash", "-c", flags["--command"]], cwd=home, env=given, check=False).returncode)
            return max(codes)
        return 0


def main() -> int:
    folder = Path(os.environ["STAND_IN"])
    with (folder / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    command, flags, others = check(sys.argv[1:])
    cloud = Cloud(folder)
    code = cloud.act(command, flags, others)
    cloud.save()
    return code


if __name__ == "__main__":
    sys.exit(main())
