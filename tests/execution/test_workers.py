"""Several processes on one machine: which GPUs each is shown, and what becomes of a failure."""

from __future__ import annotations

import time

import pytest

from factory.errors import Interrupted, RecipeError, StageError
from factory.execution import workers
from factory.execution.workers import WorkerPool, assigned_gpus, gpu_environments, read_part


@pytest.mark.parametrize(("text", "part"), [("0/1", (0, 1)), ("7/8", (7, 8))])
def test_a_part_is_counted_from_nought(text, part):
    assert read_part(text) == part


@pytest.mark.parametrize("text", ["8/8", "1", "a/b", "-1/2", "0/0", "1/2/3", ""])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(RecipeError, match="not a part"):
        read_part(text)


def test_each_process_is_shown_gpus_of_its_own():
    assert [shown["CUDA_VISIBLE_DEVICES"] for shown in gpu_environments(3, 2, {})] == [
        "0,1",
        "2,3",
        "4,5",
    ]
    asked = {"HIP_VISIBLE_DEVICES": "4,5,6,7", "HOME": "/home"}
    assert [shown["HIP_VISIBLE_DEVICES"] for shown in gpu_environments(2, 2, asked)] == [
        "4,5",
        "6,7",
    ]
    assert all(shown["HOME"] == "/home" for shown in gpu_environments(2, 2, asked))
    assert all(len(set(shown.values())) == 1 for shown in gpu_environments(2, 1, {}))


@pytest.mark.parametrize(
    ("rocr", "above", "names"),
    [
        ("4,5", None, ["4", "5"]),  # as SLURM gives them on ROCm
        ("4,5", "4,5", ["4", "5"]),  # said twice: HIP would look for a fifth among two
        ("4,5,6,7", "1,3", ["5", "7"]),  # HIP numbers what ROCR left
        ("0,1,2,3", "2,3", ["2", "3"]),
        (None, "1", ["1"]),
        (None, None, None),
        ("", "", None),
        ("GPU-a,GPU-b", "GPU-b", ["GPU-b"]),
    ],
)
@pytest.mark.parametrize("variable", ["HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
def test_what_slurm_and_rocm_say_of_gpus_is_put_together_once(rocr, above, names, variable):
    said = {"ROCR_VISIBLE_DEVICES": rocr, variable: above, "GPU_DEVICE_ORDINAL": rocr}
    environment = {key: value for key, value in said.items() if value is not None}
    assert assigned_gpus(environment) == names
    for shown in gpu_environments(1, 2, environment):
        assert "ROCR_VISIBLE_DEVICES" not in shown and "GPU_DEVICE_ORDINAL" not in shown
        if names and len(names) == 2:
            assert shown["HIP_VISIBLE_DEVICES"] == ",".join(names)


@pytest.fixture
def child(monkeypatch):
    """Makes the processes run this code in place of the factory; argv ends in the part."""

    def runs(code: str) -> tuple[WorkerPool, list[str]]:
        monkeypatch.setattr(workers, "_COMMAND", ("-c", code))
        said: list[str] = []
        return WorkerPool(["run", "recipe"], said.append), said

    return runs


def test_every_process_makes_its_part_and_is_heard(child):
    made, said = child("import sys; print(*sys.argv[1:])")
    made("generate", 3, 1)
    lines = sorted(line for line in said if line.startswith("  ["))
    assert lines == [f"  [{n}] run recipe --only generate --shard {n}/3" for n in range(3)]


def test_one_that_fails_stops_the_others(child):
    made, said = child(
        "import sys, time\nif sys.argv[-1] == '1/2': sys.exit('no memory')\ntime.sleep(600)"
    )
    started = time.monotonic()
    with pytest.raises(StageError, match="a worker of generate failed with exit code 1"):
        made("generate", 2, 1)
    assert time.monotonic() - started < 60
    assert any("no memory" in line for line in said)


def test_one_that_was_told_to_stop_stops_the_run(child):
    made, _ = child("import sys; sys.exit(75)")
    with pytest.raises(Interrupted):
        made("generate", 2, 1)
