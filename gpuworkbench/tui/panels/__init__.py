"""The panels of the live screen. A panel is one file and its line here; the order is the reading order."""

from __future__ import annotations

# "module:class"; their keys are 1, 2, 3 ... in this order.
LIVE_PANELS = (
    "gpuworkbench.tui.panels.loss:LossPanel",
    "gpuworkbench.tui.panels.memory:MemoryPanel",
    "gpuworkbench.tui.panels.throughput:ThroughputPanel",
    "gpuworkbench.tui.panels.training:TrainingPanel",
    "gpuworkbench.tui.panels.hybrid:HybridPanel",
    "gpuworkbench.tui.panels.offload:OffloadPanel",
    "gpuworkbench.tui.panels.gradient:GradientPanel",
    "gpuworkbench.tui.panels.messages:MessagesPanel",
)
