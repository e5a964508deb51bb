"""A run that will not fit what is free now is refused in one line with a way out, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuworkbench import cli
from gpuworkbench.config.loader import parse_set
from gpuworkbench.config.presets import configure, load_preset
from gpuworkbench.errors import DoesNotFitError
from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.fit import DeviceChoice
from gpuworkbench.gpu.host import Host
from gpuworkbench.launch import create as creation
from gpuworkbench.launch.unfit import refuse_unfit
from gpuworkbench.plan.analytic import estimate
from gpuworkbench.units import GIB

pytestmark = pytest.mark.usefixtures("surroundings")

HOST = Host(memory_total_bytes=64 * GIB, memory_available_bytes=60 * GIB, cpu_name="a", physical_cores=8, is_wsl=False)


def choice(free_gib: float, total_gib: float = 16) -> DeviceChoice:
    card = Card(
        index=0, name="RTX 5080", memory_total_bytes=int(total_gib * GIB), memory_free_bytes=int(free_gib * GIB)
    )
    return DeviceChoice(kind="cuda", index=0, card=card)


def test_a_full_card_is_refused_and_the_way_out_fits_it(tmp_path: Path) -> None:
    config = configure(load_preset("rtx5080_1b"))
    refuse_unfit(config, choice(15.5), HOST, tmp_path)
    with pytest.raises(DoesNotFitError, match=r"of card memory; here: 10\.00 GiB free now") as refused:
        refuse_unfit(config, choice(10), HOST, tmp_path)
    line = refused.value.line()
    assert "\n" not in line
    assert "--force" in line
    sets = [word for word in line.replace("(", " ").split() if "=" in word and "." in word]
    again = configure(load_preset("rtx5080_1b"), sets=[parse_set(text) for text in sets])
    refuse_unfit(again, choice(10), HOST, tmp_path)  # does not raise


def test_a_queued_run_is_held_against_the_whole_card(tmp_path: Path) -> None:
    refuse_unfit(configure(load_preset("rtx5080_1b")), choice(1), HOST, tmp_path, is_free_only=False)


def test_the_edge_is_the_byte(tmp_path: Path) -> None:
    config = configure(load_preset("rtx5080_1b"))
    predicted = estimate(config, kind="cuda")
    assert predicted is not None
    exact = predicted.total_bytes / GIB
    refuse_unfit(config, choice(exact), HOST, tmp_path)
    with pytest.raises(DoesNotFitError):
        refuse_unfit(config, choice(exact - 1 / GIB), HOST, tmp_path)


def test_too_little_host_memory_for_a_streamed_state(tmp_path: Path) -> None:
    small = Host(
        memory_total_bytes=16 * GIB, memory_available_bytes=12 * GIB, cpu_name="a", physical_cores=8, is_wsl=False
    )
    with pytest.raises(DoesNotFitError, match="host memory"):
        refuse_unfit(configure(load_preset("rtx5080_1b_exact")), choice(15.5), small, tmp_path)


def test_an_unknown_size_is_not_refused(tmp_path: Path) -> None:
    config = configure(load_preset("quickstart"), sets=[parse_set("data.tokenizer=my/tokenizer.json")])
    refuse_unfit(config, choice(0.001), HOST, tmp_path)


def test_the_command_refuses_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_data(*_: object, **__: object) -> None:
        raise AssertionError("the data was prepared for a run that is refused")

    monkeypatch.setattr(creation, "prepare", no_data)
    words = ["--headless", "--preset", "quickstart", "--set", "model.n_embd=32768", "--set", "model.n_head=64"]
    assert cli.main(words) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is predicted to need" in error
    assert not (tmp_path / "runs").exists()


def test_forced_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        pass

    def reached(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr(creation, "prepare", reached)
    request = creation.LaunchRequest(
        preset="quickstart", runs_dir=tmp_path, sets=(parse_set("model.n_embd=32768"),), force=True
    )
    with pytest.raises(Reached):
        creation.check(request)
