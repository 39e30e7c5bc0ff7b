"""Several processes on this machine that train together over loopback, as the hosts of a pod do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from runs import environment, lines

PROGRAM = (sys.executable, "-m", "jaxselftrain.cli")


class Pod:
    """The processes of one start; on leaving, none is left."""

    def __init__(
        self,
        count: int,
        *arguments: str,
        devices: int,
        logs: Path,
        program: Sequence[str] = PROGRAM,
        variables: Mapping[str, str] | None = None,
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.began = time.time()
        self.logs = [logs.with_name(f"{logs.name}.{number}.log") for number in range(count)]
        self.processes = []
        for number, log in enumerate(self.logs):
            own = {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
            }
            with log.open("a") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*program, *arguments],
                        env={**environment(), **own, **(variables or {})},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def signal(self, number: int, which: signal.Signals) -> None:
        os.kill(self.processes[number].pid, which)

    def wait(self, seconds: float = 600) -> list[int]:
        """The exit codes of all."""
        end = time.monotonic() + seconds
        return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]

    def wait_for_step(self, run: Path, step: int, seconds: float = 400) -> None:
        """Returns once these processes, and none before them, have written the step."""
        end = time.monotonic() + seconds
        metrics = run / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_mtime > self.began and any(row["step"] >= step for row in lines(run))):
            ended = [process.poll() for process in self.processes]
            assert ended == [None] * len(ended), (ended, self.told())
            assert time.monotonic() < end, self.told()
            time.sleep(0.02)

    def told(self, number: int | None = None) -> str:
        """What a process has printed, or all of them."""
        logs = self.logs if number is None else [self.logs[number]]
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in logs)
