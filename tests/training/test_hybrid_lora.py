"""Low-rank adapters and the comparison on them: against the paper's formula, and once from end to end, very small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch.nn import functional as F

from benchmarks import hybrid_lora
from benchmarks.hybrid_lora import RATES, Scale, adapted, analysed, compare
from benchmarks.hybrid_lora_page import PAGE, page_with
from benchmarks.lora import LoraLinear, add_adapters
from gpuworkbench.errors import UsageError
from gpuworkbench.plan.hybrid_bench import BenchPlan, Trial, Tuned

STORED = Path(hybrid_lora.__file__).parent / "results" / f"{hybrid_lora.NAME}.json"
MODEL = {**hybrid_lora.MODEL, "model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16, "eval.tokens": 2048}
SCALE = Scale(
    seeds=(1, 2), tuning_seeds=(11,), budgets=(3, 6, 9, 18), reference=9, rates=(1e-3, 1e-2), base_steps=5, model=MODEL
)


def test_an_adapter_is_the_papers_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.nn.Linear(6, 4, dtype=torch.float64)
    layer = LoraLinear(base, 2, 16.0, generator).double()
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    assert torch.equal(layer(x), base(x))  # B = 0
    with torch.no_grad():
        layer.up.normal_(generator=generator)
    merged = base.weight + 16.0 / 2 * layer.up @ layer.down
    torch.testing.assert_close(layer(x), F.linear(x, merged, base.bias))


def texts(folder: Path) -> tuple[str, str]:
    one, two = folder / "one.txt", folder / "two.txt"
    one.write_text("".join(f"{n} plus {n} is {2 * n}. " for n in range(4000)))
    two.write_text("".join(f"line {n}: {n * n} squared!\n" for n in range(4000)))
    return str(one), str(two)


def test_a_comparison_goes_on_where_it_was_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_text, text = texts(tmp_path)
    root = tmp_path / "lora"
    result = compare(base_text, text, root, SCALE)
    assert set(result["arms"]) == {f"{rate} {arm.name}" for rate in RATES for arm in hybrid_lora.ARMS}
    assert all(row["n_seeds"] == 2 for row in result["arms"].values())
    assert result["arms"]["tuned line_jump"]["counts"]["accepted"] + result["arms"]["tuned null"]["counts"]["accepted"]
    assert result["arms"]["tuned baseline"]["cost_per_step"] == 1.0 < result["arms"]["tuned null"]["cost_per_step"]
    assert "no measurable benefit" in page_with(result, PAGE.read_text())

    lost = next(root.glob("trial-line_jump-18-*-2.json"))
    before = json.loads(lost.read_text())
    lost.unlink()
    finetune, done = hybrid_lora.finetune, []

    def noted(task: Any, arm: Any, work: Any, budgets: Any) -> list[Trial]:
        done.append(work.stem)
        return finetune(task, arm, work, budgets)

    monkeypatch.setattr(hybrid_lora, "finetune", noted)
    monkeypatch.setattr(hybrid_lora.RunLock, "acquire", lambda self: None)  # this process holds it already
    again = compare(base_text, text, root, SCALE)
    assert [f"trial-{stem}.json" for stem in done if not stem.startswith("-")] == [lost.name]
    after = json.loads(lost.read_text())
    for clock in ("seconds", "cpu_seconds"):
        del before[clock], after[clock]
    assert after == before
    assert again["arms"]["tuned line_jump"]["ratios"] == result["arms"]["tuned line_jump"]["ratios"]

    with pytest.raises(UsageError, match="holds another comparison"):
        compare(base_text, text, root, SCALE._replace(seeds=(1, 2, 3)))


def test_only_the_adapters_train() -> None:
    config, _ = hybrid_lora.prepared({**MODEL, "data.source": "stdlib"}, 10)
    cpu = torch.device("cpu")
    base = hybrid_lora.make_model(config, cpu)
    model = adapted(base.state_dict())(config, cpu)
    trainable = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"down", "up"}
    n_embd, rank = 16, hybrid_lora.RANK
    widths = [(n_embd, 3 * n_embd), (n_embd, n_embd), (n_embd, 4 * n_embd), (4 * n_embd, n_embd)]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(rank * (a + b) for a, b in widths)
    x = torch.arange(32)[None]
    assert torch.equal(model.hidden(x), base.hidden(x))
    same, other = (add_adapters(hybrid_lora.make_model(config, cpu), rank, 16.0, seed) for seed in (1, 2))
    assert not torch.equal(same.blocks[0].mlp.c_fc.down, other.blocks[0].mlp.c_fc.down)


@pytest.mark.skipif(not STORED.exists(), reason="no stored comparison on adapters")
def test_the_page_and_the_figures_are_those_of_the_stored_trials() -> None:
    result = json.loads(STORED.read_text())
    assert page_with(result, PAGE.read_text()) == PAGE.read_text()
    plan = msgspec.convert(result["preregistration"]["plan"], BenchPlan)
    trials = msgspec.convert(result["trials"], list[Trial])
    tuned = Tuned("constant", result["rates"]["tuned"], None)
    for found, key in zip(analysed(plan, tuned, trials), ("arms", "against_tuned"), strict=True):
        again = json.loads(msgspec.json.encode(found))
        assert again.keys() == result[key].keys()
        for arm, row in again.items():
            assert row["ratios"] == pytest.approx(result[key][arm]["ratios"])
            assert row["verdict"] == result[key][arm]["verdict"]
    assert not {trial.seed for trial in trials if trial.arm.startswith("tuning.")} & set(plan.seeds)
    assert len(plan.seeds) >= 5
    assert len(plan.budgets) >= 4
