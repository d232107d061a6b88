"""Schedules against the learning rates that their systems printed, and against their own limits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptbridge.errors import RunFailed, UsageError
from gptbridge.rules.schedule import learning_rate
from gptbridge.training.start import resolve
from gptbridge_specs import SpecError, load_run
from gptbridge_specs.run import ScheduleSpec

# Both systems print the rate after their scheduler has stepped: the line of step N shows step N + 1.
FLEETX_LOG = [
    *("5.55556e-09", "8.33333e-09", "1.11111e-08", "1.38889e-08", "1.66667e-08"),
    *("1.94444e-08", "2.22222e-08", "2.50000e-08", "2.77778e-08"),
]


def printed_rate(preset: str, line: int, digits: int) -> str:
    spec = load_run(preset)
    return f"{learning_rate(spec.schedule, spec.training.max_steps, line + 1):.{digits}e}"


@pytest.mark.parametrize(("line", "printed"), list(enumerate(FLEETX_LOG, start=1)))
def test_fleetx_log(line: int, printed: str) -> None:
    assert printed_rate("fleetx-345m-single-card", line, digits=5) == printed


@pytest.mark.parametrize("line", range(1471, 1476))
def test_paddlenlp_log(line: int) -> None:
    assert printed_rate("paddlenlp-gpt2-en", line, digits=1) == "4.6e-05"


def test_paddlenlp_log_is_exact_where_its_rate_is_round() -> None:
    assert printed_rate("paddlenlp-gpt2-en", 1471, digits=5) == "4.60000e-05"


def test_cosine_ends_at_min_and_halves_in_the_middle() -> None:
    schedule = ScheduleSpec(max_lr=1.0, min_lr=0.2, warmup_steps=10)
    rates = [learning_rate(schedule, 110, step) for step in range(1, 131)]
    assert rates[9] == 1.0
    assert rates[59] == pytest.approx(0.6)
    assert rates[109] == pytest.approx(0.2)
    assert set(rates[110:]) == {0.2}


def test_linear_is_not_stretched_after_the_warmup() -> None:
    """PaddleFleetX's LRScheduler has last_epoch 0 at the first update."""
    schedule = ScheduleSpec(name="linear", max_lr=2e-5, min_lr=0, warmup_rate=0.1)
    rates = [learning_rate(schedule, 105, step) for step in range(1, 120)]
    assert rates[0] == 0.0
    assert rates[5] == pytest.approx(2e-5 * 5 / 10)  # the warm-up of 10.5 steps is floored to 10
    assert rates[10] == pytest.approx(2e-5 * (1 - 10 / 105))
    assert rates[105:] == [0.0] * 14


def test_polynomial_begins_as_mindformers_does() -> None:
    """MindSpore's optimizers hand a schedule the number of updates done: 0 at the first."""
    spec = load_run("mindformers-gpt2-small")
    rates = [learning_rate(spec.schedule, spec.training.max_steps, step) for step in (1, 2, 10_000, 10_001)]
    assert rates == pytest.approx([1e-4, 1e-4 - 9e-5 / 10_000, 1e-5 + 9e-5 / 10_000, 1e-5], rel=1e-12)
    assert rates[0] != pytest.approx(rates[1], rel=1e-6)
    warm = ScheduleSpec(name="polynomial", max_lr=1e-4, min_lr=1e-5, warmup_steps=4)
    assert [learning_rate(warm, 100, step) for step in (1, 2, 5)] == pytest.approx([0.0, 2.5e-5, 1e-4])


def test_polynomial_follows_its_power() -> None:
    schedule = ScheduleSpec(name="polynomial", max_lr=1e-4, min_lr=1e-5, warmup_steps=0, power=2)
    assert learning_rate(schedule, 100, 51) == pytest.approx(1e-5 + 9e-5 * 0.25)
    assert learning_rate(schedule, 100, 101) == 1e-5


def test_noam_peaks_at_the_warmup() -> None:
    schedule = ScheduleSpec(name="noam", max_lr=3e-4, warmup_steps=100)
    rates = [learning_rate(schedule, 1000, step) for step in range(1, 1000)]
    assert rates.index(max(rates)) == 99
    assert max(rates) == pytest.approx(3e-4 / math.sqrt(100))
    assert rates[399] == pytest.approx(3e-4 / math.sqrt(400))


def test_constant_warms_up_and_stays() -> None:
    schedule = ScheduleSpec(name="constant", max_lr=0.5, warmup_steps=4)
    assert [learning_rate(schedule, 9, s) for s in (1, 2, 4, 9, 99)] == [0.125, 0.25, 0.5, 0.5, 0.5]


@example(name="noam", max_steps=1, warmup=7.916907709832193e-309, step=1)
@given(
    name=st.sampled_from(["cosine", "linear", "polynomial", "noam", "constant"]),
    max_steps=st.integers(1, 50),
    warmup=st.one_of(st.integers(0, 60), st.floats(0, 1)),
    step=st.integers(1, 100),
)
def test_every_rate_lies_within_the_limits(name: str, max_steps: int, warmup: float, step: int) -> None:
    where = {"warmup_steps": warmup} if isinstance(warmup, int) else {"warmup_rate": warmup}
    schedule = ScheduleSpec.model_validate({"name": name, "max_lr": 1e-3, "min_lr": 1e-5, **where})
    rate = learning_rate(schedule, max_steps, step)
    first = name in ("linear", "polynomial") and step == 1
    assert (0 if first else 1e-300) <= rate <= 1e-3 * (1 + 1e-12)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that registers schedules."""
    (tmp_path / "my_schedules.py").write_text(
        "def sawtooth(schedule, max_steps, step):\n"
        "    (period,) = schedule.arguments\n"
        "    return schedule.max_lr * (1 - step % period / period)\n"
        "def below(schedule, max_steps, step):\n"
        "    return -1.0\n"
    )
    info = tmp_path / "my_schedules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-schedules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[gptbridge.schedules]\nsawtooth = my_schedules:sawtooth\nbelow = my_schedules:below\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_a_schedule_of_a_package(plugin: None) -> None:
    words = [
        "schedule.name=plugin",
        "schedule.plugin=sawtooth",
        "schedule.arguments=[4]",
        "schedule.max_lr=1",
    ]
    schedule = load_run("gpt2-tiny", words).schedule
    assert [learning_rate(schedule, 100, step) for step in (1, 2, 3, 4, 5)] == [0.75, 0.5, 0.25, 1.0, 0.75]
    below = ScheduleSpec(name="plugin", plugin="below")
    with pytest.raises(
        RunFailed, match=r"schedule.plugin=below: failed at step 3: .*-1.0 is no learning rate"
    ):
        learning_rate(below, 100, 3)
    with pytest.raises(RunFailed, match="not enough values to unpack"):
        learning_rate(ScheduleSpec(name="plugin", plugin="sawtooth"), 100, 3)


def test_a_schedule_that_no_package_has(plugin: None, tmp_path: Path) -> None:
    words = ["schedule.name=plugin", "schedule.plugin=sawtoth"]
    with pytest.raises(
        UsageError, match=r"schedule.plugin: 0 packages have a schedule 'sawtoth' \(allowed: below, saw"
    ):
        resolve(None, words, tmp_path / "run", None)
    for wrong in (["schedule.name=plugin"], ["schedule.plugin=sawtooth"]):
        with pytest.raises(SpecError, match="go together"):
            load_run("gpt2-tiny", wrong)
