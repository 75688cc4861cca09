"""FSDP on CPU processes, which accelerate knows for accelerators alone: everything else is real.

python -m tests.support.sharded TASK PID    one process, as factory/training/worker.py is
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import yaml

from factory.training import launch
from factory.training.loop import RESULT
from factory.training.settings import Task


def train(task: Task) -> dict[str, Any]:
    """Train in as many processes as the task says, spread by the config that the factory writes
    for so many GPUs. Raises AssertionError with what the processes said."""
    told, settings = task.work / "task.json", task.work / "accelerate.yaml"
    told.write_text(task.model_dump_json())
    count = task.how.processes
    settings.write_text(yaml.safe_dump(launch.config(task, "cuda", count)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={count}", "-m", "tests.support.sharded", str(told),
               str(os.getpid())]  # fmt: skip
    ended = subprocess.run(command, env=environment(str(settings)), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    found: dict[str, Any] = json.loads((task.work / RESULT).read_text())
    return found


def environment(config: str) -> dict[str, str]:
    """What `accelerate launch` makes of a config file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    asked = launch_command_parser().parse_args(["--config_file", config, "a-program"])
    asked, _, _ = _validate_launch_command(asked)
    if not asked.use_fsdp:
        return {**os.environ, "OMP_NUM_THREADS": "1"}
    return {**os.environ, **prepare_multi_gpu_env(asked), "OMP_NUM_THREADS": "1"}


def allow() -> None:
    """Let accelerate take CPU processes for devices that a model can be spread over."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    begin = AcceleratorState.__init__

    def begun(self: Any, *given: Any, fsdp_plugin: Any = None, **named: Any) -> None:
        begin(self, *given, fsdp_plugin=fsdp_plugin, **named)
        plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin

    AcceleratorState.__init__ = begun


if __name__ == "__main__":
    from factory.training import worker

    allow()
    sys.exit(worker.main(sys.argv[1], sys.argv[2]))
