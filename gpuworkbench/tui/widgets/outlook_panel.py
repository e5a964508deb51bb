"""What a draft would take here: verdict, size, tokens a step, and the waterfall with what the changes did to it."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from gpuworkbench.plan.analytic import Verdict
from gpuworkbench.tui.form.outlook import Outlook
from gpuworkbench.tui.widgets.preset_list import VERDICT_STYLES
from gpuworkbench.tui.widgets.rows import Part, lines
from gpuworkbench.tui.widgets.waterfall import format_change, waterfall
from gpuworkbench.units import NOT_AVAILABLE, format_bytes, format_count


class OutlookPanel(Static):
    """Redrawn whenever the draft or the machine changes."""

    def __init__(self) -> None:
        super().__init__("", id="takes", markup=False)
        self.border_title = "What it takes"
        self.border_subtitle = "predicted, not measured"
        self.outlook: Outlook | None = None

    def show(self, outlook: Outlook, *, is_stale: bool) -> None:
        """Take another outlook; `is_stale`: a field is wrong, and this is without it."""
        self.set_class(is_stale, "stale")
        self.border_subtitle = "without the wrong fields" if is_stale else "predicted, not measured"
        if outlook != self.outlook:
            self.outlook = outlook
            self.redraw()

    def on_resize(self) -> None:
        """Bars have another length."""
        self.redraw()

    def redraw(self) -> None:
        """See the class."""
        width = self.content_size.width
        if self.outlook is not None and width:
            self.update(_content(self.outlook, width), layout=False)


def _content(outlook: Outlook, width: int) -> Content:
    rows: list[Part | list[Part]] = [verdict_parts(outlook), *_refusal(outlook), _size(outlook), _batch(outlook)]
    if outlook.predicted is None:
        rows.append([("n/a: the vocabulary is known once the data is prepared", "$foreground-muted")])
        return lines(*rows)
    bars = waterfall(
        outlook.predicted,
        is_cuda=outlook.kind == "cuda",
        limit_bytes=outlook.limit_bytes,
        width=width,
        before=outlook.before,
    )
    return lines(*rows, "", *bars)


def summary(outlook: Outlook, *, is_stale: bool) -> Content:
    """The verdict and the sizes in one line, for terminals without room for the panel."""
    change = _change(outlook)
    parts: list[Part] = [*verdict_parts(outlook), (f"  {change}" if change else "", "$text-warning")]
    n_params = format_count(outlook.predicted.n_params) if outlook.predicted else NOT_AVAILABLE
    parts.append((f"  {n_params} parameters, {outlook.config.tokens_per_step:,} tokens a step", "$foreground-muted"))
    return lines([("not valid; without it: ", "$text-error"), *parts] if is_stale else parts)


def verdict_parts(outlook: Outlook) -> list[Part]:
    """`fits  5.25 of 15.50 GiB on the card`, in the verdict's colour."""
    where = f"on the {outlook.config.simulated_card or 'card'}" if outlook.kind == "cuda" else "free on this host"
    if outlook.verdict is None:
        text = "no device here will do" if outlook.refusal else "size not known yet"
        return [(text, "bold $text-error" if outlook.refusal else "$foreground-muted")]
    words = {Verdict.FITS: "fits", Verdict.TIGHT: "tight", Verdict.DOES_NOT_FIT: "does not fit"}[outlook.verdict]
    sizes = f"  {format_bytes(outlook.needed_bytes)} of {format_bytes(outlook.limit_bytes)} {where}"
    return [(words, f"bold {VERDICT_STYLES[outlook.verdict]}"), sizes]


def _refusal(outlook: Outlook) -> list[Part | list[Part]]:
    rows: list[Part | list[Part]] = [[(outlook.refusal, "$text-error")]] if outlook.refusal else []
    if outlook.users:
        using = [ticket.run_id for ticket in outlook.users if not ticket.is_waiting]
        waiting = sum(ticket.is_waiting for ticket in outlook.users)
        words = [f"in use by {', '.join(using[:2])}" + (" and others" if len(using) > 2 else "")] if using else []
        words += [f"{waiting} waiting"] if waiting else []
        rows.append([("; ".join(words), "$text-warning")])
    return rows


def _size(outlook: Outlook) -> list[Part]:
    now, then = outlook.predicted, outlook.before
    text = f"{format_count(now.n_params) if now else NOT_AVAILABLE} parameters"
    if now is None or then is None or now.n_params == then.n_params:
        return [text]
    change = now.n_params - then.n_params
    return [text, (f"  {'+' if change > 0 else '-'}{format_count(abs(change))}", "$text-warning")]


def _batch(outlook: Outlook) -> list[Part]:
    train, config = outlook.config.train, outlook.config
    steps = f", {train.max_steps:,} steps" if train.max_steps is not None else ""
    shape = f"{train.micro_batch_size} x {train.grad_accum_steps} x {config.train_seq_len}"
    text = f"{config.tokens_per_step:,} tokens a step ({shape}){steps}"
    then = outlook.base.tokens_per_step
    return [text] if then == config.tokens_per_step else [text, (f"  was {then:,}", "$text-warning")]


def _change(outlook: Outlook) -> str:
    before = outlook.before
    if before is None or outlook.predicted is None:
        return ""
    key = "total_bytes" if outlook.kind == "cuda" else "host_bytes"
    return format_change(getattr(outlook.predicted, key) - getattr(before, key))
