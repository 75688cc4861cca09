"""What is handed in, in which order and after what, with a queue that only remembers."""

from __future__ import annotations

import pytest

from factory.artifacts.manifest import Cost
from factory.artifacts.workdir import Home
from factory.errors import RecipeError, WorkError
from factory.planning.estimate import estimate
from factory.planning.plan import ArtifactRef, Inventory, plan
from factory.planning.recipe import load
from factory.slurm import site as sites
from factory.slurm import submission
from factory.slurm.queue import Queue, Queued
from factory.slurm.script import render
from factory.slurm.site import Family, Site, TaskLimits
from factory.slurm.submission import Alive, job_prefix, on_all_gpus
from tests.support.builders import demo, lock_of, walked


class Remembered:
    """Answers as SLURM does, with rising ids; may fail at one of them."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.handed_in: list[list[str]] = []
        self.fails_at = fails_at

    def __call__(self, command):
        if command[0] == "sbatch":
            if len(self.handed_in) == self.fails_at:
                raise WorkError("sbatch: no", "try again")
            self.handed_in.append(list(command))
            return f"{len(self.handed_in)};cluster\n"
        raise WorkError("not here", "none")

    def after(self, number: int) -> str:
        found = [w for w in self.handed_in[number - 1] if w.startswith("--dependency=")]
        return found[0].partition("=")[2] if found else ""


@pytest.fixture
def lab(tmp_path):
    def write(**limits):
        said = ", ".join(f"{key}: {value}" for key, value in {"array": 4, **limits}.items())
        each = "partition: p, time: '60'"
        (tmp_path / "lab.yaml").write_text(
            f"limits: {{{said}}}\ngenerate: {{{each}, tasks: 6, gpus: 2}}\n"
            f"train: {{{each}, gpus: 4}}\ncpu: {{{each}}}\n"
        )
        return sites.load(str(tmp_path / "lab.yaml"), tmp_path)

    return write


def checked_slices(tmp_path, the_site, alive=None, wanted=None, held=None, queued=0):
    loaded = load("smoke")
    recipe, home = loaded.recipe, Home(tmp_path / "home")
    held = held or Inventory()
    steps = plan(recipe, lock_of(recipe), held)
    names = wanted or [step.name for step in steps]
    parts = submission.cut(
        steps, names, alive or Alive(), estimate(steps, held), the_site, home, recipe.org, queued
    )
    return recipe, home, steps, parts


def handed_in(tmp_path, the_site, remembered, **more):
    recipe, home, steps, parts = checked_slices(tmp_path, the_site, **more)
    made = submission.begin(home.root, recipe, the_site)
    made = submission.submit(
        made, parts, more.get("alive") or Alive(), the_site, home.root, Queue(remembered), False
    )
    return made, steps


def test_each_step_waits_for_the_seals_of_what_it_reads(tmp_path, lab):
    remembered = Remembered()
    made, steps = handed_in(tmp_path, lab(), remembered)
    assert [one.step for one in made.steps] == [step.name for step in steps]
    jobs = {one.step: one.jobs for one in made.steps}
    assert [job.kind for job in jobs["generate"]] == ["array", "array", "seal"]  # 6 tasks of 4
    first, second, seal = jobs["generate"]
    assert remembered.after(int(seal.id)) == f"afterany:{first.id}:{second.id}"
    assert (first.tasks, first.offset, second.tasks, second.offset) == (4, 0, 2, 4)
    assert f"afterok:{jobs['prompts'][0].id}" == remembered.after(int(first.id))
    assert seal.id in remembered.after(int(jobs["score"][0].id)).split(":")
    for command in remembered.handed_in:
        waits = any(word.startswith("--dependency") for word in command)
        assert waits == ("--kill-on-invalid-dep=yes" in command)


def test_what_is_in_the_queue_is_waited_for_and_not_handed_in_again(tmp_path, lab):
    _, home, steps, _ = checked_slices(tmp_path, lab())
    generate = next(step for step in steps if step.name == "generate")
    start = job_prefix(home.root, generate.name, generate.fingerprint)
    queued = [
        Queued("90", "90", None, "PENDING", "Dependency", "", "N/A", f"{start}seal"),
        Queued("89_1", "89", 1, "RUNNING", "None", "n1", "N/A", f"{start}array"),
        Queued("88", "88", None, "RUNNING", "None", "n1", "N/A", "somebody-elses"),
    ]
    alive = Alive.of(home.root, steps, [], queued)
    assert list(alive.jobs) == ["generate"] and alive.last("generate") == ["90"]
    remembered = Remembered()
    made, _ = handed_in(tmp_path, lab(), remembered, alive=alive)
    assert "generate" not in {one.step for one in made.steps}
    score = next(one for one in made.steps if one.step == "score")
    assert "90" in remembered.after(int(score.jobs[0].id)).split(":")
    other = Alive.of(tmp_path / "another-home", steps, [], queued)
    assert not other.jobs


def test_the_record_says_what_is_in_the_queue_when_handing_in_breaks_off(tmp_path, lab):
    with pytest.raises(WorkError):
        handed_in(tmp_path, lab(), Remembered(fails_at=3))
    [record] = submission.read_submissions(tmp_path / "home", load("smoke").recipe)
    assert len(record.ids()) == 3


def test_a_step_whose_input_nobody_makes_is_refused(tmp_path, lab):
    with pytest.raises(RecipeError, match="score needs generate"):
        checked_slices(tmp_path, lab(), wanted=["score"])


def test_fewer_tasks_where_the_queue_may_not_hold_more(tmp_path, lab):
    def sizes(**limits):
        _, _, _, parts = checked_slices(tmp_path, lab(**limits))
        return {part.step.name: part.size.tasks for part in parts}

    assert sizes()["generate"] == 6
    assert sizes(submitted=30)["generate"] < 6
    with pytest.raises(RecipeError, match="--until"):
        sizes(submitted=10)


def test_a_training_gets_a_process_for_each_gpu_unless_the_recipe_says(tmp_path, lab):
    loaded = load("smoke")
    said: list[str] = []
    dpo = on_all_gpus(loaded, lab(), said.append).recipe.steps()["dpo"]
    assert dpo.how.processes == 4 or said
    assert (dpo.batch // dpo.how.micro_batch) % (dpo.how.processes or 1) == 0
    pins = lock_of(loaded.recipe)
    changed = on_all_gpus(loaded, lab(), said.append)
    assert [step.fingerprint for step in plan(changed.recipe, pins, Inventory())] == [
        step.fingerprint for step in plan(loaded.recipe, pins, Inventory())
    ]
    own = load("smoke", ["stages.dpo.how.processes=1"])
    assert on_all_gpus(own, lab(), said.append).recipe.steps()["dpo"].how.processes == 1


def test_the_time_asked_for_is_that_of_a_pilot_on_this_site(tmp_path):
    each = Family(partition="p", time="24:00:00", gpus=4, shards=1)
    cpu = Family(partition="p", time="24:00:00")
    lab = Site(name="lab", generate=each, train=each, cpu=cpu)
    pilot = demo()
    cost = Cost(
        wall_seconds=84, gpu_hours=80 / 3600, engines=1, working_seconds=60, loading_seconds=20
    )
    made = [
        one.manifest.model_copy(update={"cost": cost})
        for one in walked(pilot, lock_of(pilot)).found
    ]
    pilots = Inventory([ArtifactRef(manifest, tag=manifest.tag) for manifest in made])
    recipe = demo("stages.generate.n=1200", "stages.generate.how.shard=1")
    steps = plan(recipe, lock_of(recipe), pilots)

    def minutes(pilots, **limits):
        there = lab.model_copy(update={"limits": TaskLimits(**limits)})
        parts = submission.cut(
            steps, [step.name for step in steps], Alive(), estimate(steps, pilots), there,
            Home(tmp_path), recipe.org, 0, pilots,
        )  # fmt: skip
        of_step = {part.step.name: part for part in parts}
        made = submission.new(tmp_path, recipe, there)
        generate = of_step["generate"]
        works = submission.works(generate, made, tmp_path)
        assert [work.minutes for work in works] == [generate.minutes, None]  # array, seal
        return generate.minutes, render(works[0], there)

    # 36 engines: 60 s · 1,199 / 36 and 24 s around it are 2,022 s, then half of that and 300 s
    asked, script = minutes(pilots)
    assert asked == 75 and "#SBATCH --time=75\n" in script
    assert minutes(pilots, warn=3600)[0] == 135
    assert minutes(pilots, requeue=0)[0] is None  # nobody would put it back
    assert "#SBATCH --time=24:00:00\n" in minutes(Inventory())[1]
