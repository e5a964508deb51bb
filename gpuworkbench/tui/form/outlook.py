"""What a draft would take on this machine: its device, the predicted bytes, the verdict, and what the changes did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpuworkbench.config.schema import RunConfig
from gpuworkbench.errors import ConfigError, DoesNotFitError
from gpuworkbench.gpu.card import Card
from gpuworkbench.gpu.fit import DeviceChoice, select_device
from gpuworkbench.gpu.host import Host
from gpuworkbench.plan.analytic import Estimate, Verdict, estimate, verdict
from gpuworkbench.runs.turns import Ticket, device_of
from gpuworkbench.text import safe_text
from gpuworkbench.tui.home_data import limit_bytes
from gpuworkbench.units import format_bytes


@dataclass(frozen=True)
class Machine:
    """One reading: cards, host, and who uses or waits for each device (by its key)."""

    cards: tuple[Card, ...]
    host: Host
    users: Mapping[str, tuple[Ticket, ...]]


@dataclass(frozen=True)
class Outlook:
    """A configuration on a machine. Predicted, not measured; unknown is None."""

    config: RunConfig
    base: RunConfig
    kind: str  # cuda or cpu
    predicted: Estimate | None
    before: Estimate | None  # of the preset without the changes
    limit_bytes: int | None = None
    verdict: Verdict | None = None
    refusal: str = ""  # why no device here will do
    users: tuple[Ticket, ...] = ()

    @property
    def needed_bytes(self) -> int | None:
        """Bytes where the run computes."""
        return needed(self.predicted, self.kind)


def look(config: RunConfig, base: RunConfig, machine: Machine, *, has_cpu_twin: bool) -> Outlook:
    """Everything about `config` here, in well under a millisecond."""
    choice: DeviceChoice | None = None
    refusal = ""
    try:
        choice = select_device(config, machine.cards, has_cpu_twin=has_cpu_twin)
        kind: str = choice.kind
    except (DoesNotFitError, ConfigError) as error:
        refusal, kind = error.message, "cuda" if config.device.kind != "cpu" else "cpu"
    predicted, before = estimate(config, kind=kind), estimate(base, kind=kind)
    limit = limit_bytes(config, choice, machine.host) if choice is not None else None
    size = needed(predicted, kind)
    users: tuple[Ticket, ...] = ()
    if choice is not None:
        users = machine.users.get(device_of(choice.kind, choice.uuid, choice.index).key, ())
    return Outlook(
        config=config,
        base=base,
        kind=kind,
        predicted=predicted,
        before=before,
        limit_bytes=limit,
        verdict=verdict(size, limit) if size is not None and limit is not None else None,
        refusal=refusal,
        users=users,
    )


def needed(predicted: Estimate | None, kind: str) -> int | None:
    """Bytes of a prediction where the run computes."""
    if predicted is None:
        return None
    return predicted.total_bytes if kind == "cuda" else predicted.host_bytes


def doubt(outlook: Outlook | None, *, has_cards: bool) -> str:
    """What a person is to be asked before the start; empty where nothing is."""
    if outlook is None:
        return ""
    if outlook.refusal and has_cards:
        return f"{safe_text(outlook.refusal)}.\nStart it all the same?"
    if outlook.verdict is not Verdict.DOES_NOT_FIT:
        return ""
    sizes = f"{format_bytes(outlook.needed_bytes)}; {format_bytes(outlook.limit_bytes)} are here"
    return f"It is predicted to need {sizes}.\nStart it all the same?"
