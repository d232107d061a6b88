"""Every way in which a backend can be absent or broken is one line with what to do about it."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from gptbridge.errors import BackendBroken, BackendMissing, BridgeError, UsageError
from gptbridge.plugins.backend import load_backend, load_plugin
from gptbridge.plugins.finding import backend_names, missing_framework
from gptbridge.plugins.survey import survey
from gptbridge_specs import RunSpec
from tests.plugins.conftest import TOY, Gptbridge, WritePlugin

BROKEN = {
    "module does not import": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_mod"),
    "module exits": ("raise SystemExit('bye')", "SystemExit: bye"),
    "module is not Python": ("def", "SyntaxError"),
    "misspelt hook": (
        TOY + "\n@hookimpl\ndef gptbridge_chekc(spec): return []\n",
        "unknown hook 'gptbridge_chekc'",
    ),
    "wrong argument": (
        TOY + "\n@hookimpl\ndef gptbridge_probe(extra): return {}\n",
        "Argument(s) {'extra'} are declared in the hookimpl",
    ),
    "unmarked hook": (
        TOY + "\ndef gptbridge_check(spec, device): return []\n",
        "gptbridge_check lacks @hookimpl",
    ),
    "no info": (
        TOY.replace("return BackendInfo(**INFO)", "return None"),
        "gptbridge_backend_info returns no BackendInfo",
    ),
    "info fails": (
        TOY.replace('install="pip install toy"', 'instal="pip"'),
        "gptbridge_backend_info failed: TypeError",
    ),
    "other API": (
        TOY.replace("requires=()", "requires=(), api_version=99"),
        "speaks plugin API 99; this gptbridge",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_plugins_are_one_line(case: str, write_plugin: WritePlugin) -> None:
    source, reason = BROKEN[case]
    write_plugin("toy", source)
    with pytest.raises(BackendBroken) as caught:
        load_backend("toy")
    message = str(caught.value)
    assert reason in message
    assert "toy" in message
    assert "\n" not in message
    assert caught.value.exit_code == 4
    (report,) = (report for report in survey() if report.name == "toy")
    assert report.state == "broken"
    assert reason in report.detail


def test_the_listing_survives_broken_plugins(write_plugin: WritePlugin, gptbridge: Gptbridge) -> None:
    write_plugin("bad", "import no_such_module")
    write_plugin("worse", "raise SystemExit(7)")
    result = gptbridge("backends")
    assert result.returncode == 0, result.stderr
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "broken" in lines["bad"]
    assert "pip uninstall gptbridge-bad" in lines["bad"]
    assert "broken" in lines["worse"]
    assert "ready" in lines["torch"]
    assert result.stderr == ""


def test_unknown_name_gets_a_guess_and_the_list(gptbridge: Gptbridge) -> None:
    with pytest.raises(BackendMissing, match="Did you mean 'paddle'"):
        load_backend("padle")
    with pytest.raises(BackendMissing, match=r"Registered: .*mindspore, paddle, torch"):
        load_backend("zzz")
    result = gptbridge("parity", "--backends", "padle")
    assert result.returncode == 3
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("requires", "reason"),
    [
        ("no-such-framework>=2", "needs no-such-framework>=2, which is not installed. Run: pip install toy"),
        ("pluggy>=999", "needs pluggy>=999, but 1."),
    ],
)
def test_missing_framework_names_the_command(
    requires: str, reason: str, write_plugin: WritePlugin, gptbridge: Gptbridge
) -> None:
    write_plugin("toy", TOY.replace("requires=()", f"requires=({requires!r},)"))
    with pytest.raises(BackendMissing) as caught:
        load_backend("toy")
    assert reason in str(caught.value)
    result = gptbridge("backends", "--json")
    assert '"state": "not installed"' in result.stdout


def test_a_build_under_a_longer_name_counts(write_plugin: WritePlugin, tmp_path: Path) -> None:
    toy = TOY.replace("requires=()", 'requires=("toyframe>=2",)')
    write_plugin("toy", toy.replace("modules=()", 'modules=("toyframe",)'))
    info = tmp_path / "toyframe_gpu-2.5.dist-info"
    info.mkdir()
    (info / "top_level.txt").write_text("toyframe\n")
    for version, reason in (("2.5", None), ("1.9", "needs toyframe>=2, but 1.9 is installed")):
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toyframe_gpu\nVersion: {version}\n")
        assert missing_framework(load_plugin("toy").info) == reason


def test_two_packages_may_not_claim_one_name(write_plugin: WritePlugin) -> None:
    write_plugin("toy", TOY, package="toy-one")
    write_plugin("toy", TOY, package="toy-two")
    with pytest.raises(BackendBroken, match=r"registered by toy-one and toy-two\. Uninstall one"):
        load_backend("toy")


def test_every_problem_is_listed(write_plugin: WritePlugin) -> None:
    check = """
@hookimpl
def gptbridge_check(spec, device):
    return [Problem("parallel.tensor", "one device"), Problem("training.compile", "no compiler")]
"""
    write_plugin("toy", TOY + check)
    with pytest.raises(UsageError) as caught:
        load_backend("toy").open_trainer(RunSpec())
    assert str(caught.value).splitlines() == [
        "parallel.tensor=1: one device (backend toy)",
        "training.compile=False: no compiler (backend toy)",
    ]


def test_a_device_that_the_backend_lacks_is_refused(write_plugin: WritePlugin) -> None:
    write_plugin("toy", TOY)
    spec = RunSpec.model_validate({"training": {"device": "gpu"}})
    with pytest.raises(UsageError, match=r"training\.device=gpu: Toy runs on cpu"):
        load_backend("toy").check(spec)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("return Device", "import no_such_framework; return Device"), "ModuleNotFoundError"),
        (
            ('return Device("cpu", "toy cpu", None)', "return None"),
            "no plugin answers gptbridge_setup_hardware",
        ),
        (('return Device("cpu", "toy cpu", None)', "return 'cpu'"), "returns str, not a Device"),
        (("def nothing", ""), "no plugin answers gptbridge_open_trainer"),
    ],
)
def test_opening_a_broken_backend_is_one_line(
    change: tuple[str, str], reason: str, write_plugin: WritePlugin
) -> None:
    write_plugin("toy", TOY.replace(*change))
    with pytest.raises(BackendBroken) as caught:
        load_backend("toy").open_trainer(RunSpec())
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ("Reinstall Toy: pip install toy" in str(caught.value)) == (reason == "ModuleNotFoundError")


@pytest.mark.parametrize(("module", "loaded"), [("json", True), ("no_such_framework", False)])
def test_a_device_that_fails_asks_for_no_new_framework(
    module: str, loaded: bool, write_plugin: WritePlugin
) -> None:
    toy = TOY.replace("modules=()", f"modules=({module!r},)")
    write_plugin("toy", toy.replace("return Device", "raise OSError('no answer'); return Device"))
    with pytest.raises(BackendBroken, match="OSError: no answer") as caught:
        load_backend("toy").open_trainer(RunSpec())
    assert ("Reinstall" in str(caught.value)) != loaded


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("model", "not a LanguageModel; it lacks decoder, logits, shards"),
        ("trainer", "not a Trainer; it lacks"),
    ],
)
def test_what_is_opened_must_have_every_method(kind: str, lacking: str, write_plugin: WritePlugin) -> None:
    source = f"""
class Half:
    def token_losses(self, inputs, labels, at=None): ...
    def step(self, batch, learning_rate): ...
    def close(self): ...

@hookimpl
def gptbridge_open_{kind}(spec, device):
    return Half()
"""
    write_plugin("toy", TOY + source)
    with pytest.raises(BackendBroken, match=lacking):
        getattr(load_backend("toy"), f"open_{kind}")(RunSpec())


def test_a_backend_that_knows_no_ranks_is_the_only_one(write_plugin: WritePlugin) -> None:
    write_plugin("toy", TOY + OPENED_AMONG)
    with pytest.raises(BridgeError, match="rank 0 of 1"):
        load_backend("toy").open_trainer(RunSpec())


def test_a_backend_may_meet_other_ranks(write_plugin: WritePlugin) -> None:
    join = """
@hookimpl
def gptbridge_join(spec, device):
    from gptbridge.process.place import Place
    from gptbridge.process.world import World
    from gptbridge_specs.run import ParallelSpec
    return World(Place(ParallelSpec(data=2), rank=1))
"""
    write_plugin("toy", TOY + OPENED_AMONG + join)
    with pytest.raises(BridgeError, match="rank 1 of 2"):
        load_backend("toy").open_trainer(RunSpec())


OPENED_AMONG = """
@hookimpl
def gptbridge_open_trainer(spec, world):
    from gptbridge.errors import RunFailed
    raise RunFailed(f"rank {world.rank} of {world.size}")
"""


HARDWARE = """
from gptbridge.hookspecs import hookimpl

@hookimpl
def gptbridge_setup_hardware(spec):
    if spec.training.device != "ascend":
        return None
    from gptbridge.session import Device
    return Device("ascend", "npu:0", None)
"""
TRAINER_NAMES_ITS_DEVICE = """
@hookimpl
def gptbridge_open_trainer(spec, device):
    from gptbridge.errors import RunFailed
    raise RunFailed(f"opened on {device.name}")
"""


def test_hardware_plugins_answer_first(write_plugin: WritePlugin) -> None:
    write_plugin("toy", TOY + TRAINER_NAMES_ITS_DEVICE)
    write_plugin("toy:ascend", HARDWARE, group="gptbridge.hardware")
    for device, name in (("ascend", "npu:0"), ("cpu", "toy cpu"), ("auto", "toy cpu")):
        with pytest.raises(BridgeError, match=f"opened on {name}"):
            load_backend("toy").open_trainer(RunSpec.model_validate({"training": {"device": device}}))
    (report,) = (report for report in survey() if report.name == "toy")
    assert report.hardware == ("cpu", "ascend")


def test_a_broken_hardware_plugin_stops_only_who_asks_for_it(
    write_plugin: WritePlugin, caplog: pytest.LogCaptureFixture
) -> None:
    write_plugin("toy", TOY + TRAINER_NAMES_ITS_DEVICE)
    write_plugin("toy:ascend", "import no_such_driver", group="gptbridge.hardware")
    with pytest.raises(BackendBroken, match=r"toy:ascend: .*no_such_driver"):
        load_backend("toy").open_trainer(RunSpec.model_validate({"training": {"device": "ascend"}}))
    with caplog.at_level(logging.WARNING), pytest.raises(BridgeError, match="opened on toy cpu"):
        load_backend("toy").open_trainer(RunSpec())
    assert "no_such_driver" in caplog.text
    (report,) = (report for report in survey() if report.name == "toy")
    assert report.state == "ready"
    assert "no_such_driver" in report.detail


def test_two_frameworks_never_share_a_process(write_plugin: WritePlugin) -> None:
    write_plugin("toy", TOY.replace("modules=()", 'modules=("colorsys",)'))
    write_plugin(
        "other", TOY.replace("modules=()", 'modules=("this",)').replace('name="toy"', 'name="other"')
    )
    code = "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()): import this\n"
    code += "from gptbridge.plugins.backend import load_backend\nfrom gptbridge_specs import RunSpec\n"
    code += "load_backend('toy').open_trainer(RunSpec())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "toy: cannot share a process with other: this is already imported. Start a new" in result.stderr


def test_a_failing_observer_ends_nothing(write_plugin: WritePlugin, caplog: pytest.LogCaptureFixture) -> None:
    write_plugin("toy", TOY + "\n@hookimpl\ndef gptbridge_event(event): raise OSError('no network')\n")
    with caplog.at_level(logging.WARNING):
        load_backend("toy").notify({"event": "step"})
    assert "gptbridge_event failed: OSError: no network" in caplog.text


def test_discovery_imports_no_framework() -> None:
    code = (
        "import sys\nfrom gptbridge.plugins.survey import survey\n"
        "names = [report.name for report in survey()]\n"
        "heavy = {'torch', 'paddle', 'mindspore', 'numpy'} & set(sys.modules)\n"
        "print(names, heavy)\nsys.exit(len(heavy) + (len(names) < 3))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_built_in_backends_are_registered() -> None:
    assert {"torch", "paddle", "mindspore"} <= set(backend_names())
