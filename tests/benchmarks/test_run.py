"""The comparison runs to the end on toys and writes figures that agree with each other."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from run import QUICK, Bench
from tables import PAGE, RESULTS, TABLES, rewrite
from variants import GAMMA, LOOPS, SHARED_TEXT, YARDSTICKS
from workload import Geometry, make_utterances

from deepmlf_llm.errors import ConfigError


@pytest.fixture(scope="module")
def quick(repository, tmp_path_factory):
    """One quick run of two cells: what it printed and what it wrote. Of the variants, one of each kind: the memory of
    each takes a process of its own."""
    out = tmp_path_factory.mktemp("benchmark") / "run.json"
    command = [sys.executable, "benchmarks/run.py", "--quick", "--details", "--output", str(out), "--cells", *CELLS]
    command += ["--variants", *NAMES]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


CELLS = ("8-44:50", "mosi:spoken")
NAMES = ("joint", GAMMA, "fusion", "fusion_cached", "fusion_cached_bf16")
ASKED = {SHARED_TEXT[name] for name in NAMES if name in SHARED_TEXT}


@pytest.mark.slow
@pytest.mark.timeout(960)
def test_ratios_follow_from_the_figures_beside_them(quick):
    _, result = quick
    assert set(result["cells"]) == set(CELLS)
    for cell in result["cells"].values():
        for part in ("training", "inference"):
            steps = {name: facts["step_seconds"]["values"] for name, facts in cell[part].items()}
            for name, facts in cell[part].items():
                beside = "yardstick_gamma" if name in ("joint_gamma", "yardstick_gamma") else "yardstick"
                pairs = list(zip(steps[beside], steps[name], strict=True))
                assert facts["ratio"]["values"] == pytest.approx([one / other for one, other in pairs])
                assert facts["ratio"]["low"] <= facts["ratio"]["median"] <= facts["ratio"]["high"]
                assert facts["step_seconds"]["n"] == QUICK.rounds
        assert set(cell["training"]) == {*NAMES, *YARDSTICKS}
        assert set(cell["inference"]) == {"yardstick", *ASKED}
    for facts in result["memory"].values():
        assert facts["peak_bytes"] >= facts["interpreter_bytes"]


@pytest.mark.slow
@pytest.mark.timeout(960)
def test_report_says_how_and_where_it_was_measured(quick):
    printed, result = quick
    details = result["cells"][CELLS[0]]["details"]
    assert "details" not in result["cells"][CELLS[1]]
    assert "| x yardstick (quartiles), s a step | goal | 8-44:50 | mosi:spoken |" in printed
    assert "| training, joint | >= 3 | " in printed
    assert "| inference, shared_text_bf16 | >= 15 | " in printed
    assert set(result["memory"]) == {*YARDSTICKS, *NAMES}
    assert all(facts["share_of_matmul_rate"] > 0 for facts in details["building"].values())
    assert set(details["arithmetic"]["training"]) == {"yardstick", *NAMES}
    assert set(details["arithmetic"]["inference"]) == {"yardstick", *ASKED}
    assert "median over rounds" in result["method"]
    assert {"cpu", "threads", "packages", "git"} <= set(result["environment"])
    assert result["cells"][CELLS[0]]["setting"]["frames"] == 50


@pytest.mark.slow
@pytest.mark.timeout(960)
def test_pages_are_made_again_from_the_figures(quick, tmp_path):
    _, result = quick
    (tmp_path / "cpu.json").write_text(json.dumps(result))
    names = [name for name in TABLES if name not in ("latency", "growth")]
    page = "\n".join(f"# {name}\n<!-- table {name} of cpu.json -->\nold\n<!-- end of table -->" for name in names)
    gone = "<!-- table ratios of gone.json -->\nkept\n<!-- end of table -->"
    made = rewrite(f"{page}\n{gone}\n", tmp_path)
    assert "old" not in made
    assert gone in made
    assert made.count("threads, torch") == len(names)
    median = result["cells"][CELLS[0]]["training"]["fusion"]["ratio"]["median"]
    assert f"| training, fusion | >= 5 | {median:.2f} (" in made
    assert rewrite(made, tmp_path) == made


@pytest.mark.parametrize("cell", ["8-44", "mosi:many", "long:50", ":50"])
def test_a_cell_that_cannot_be_is_refused(cell):
    with pytest.raises(ConfigError, match=r"expected TEXTS:FRAMES, of mosi, 8-44 and a number or 'spoken'"):
        QUICK.of(cell)


def test_a_cell_sets_texts_and_frames():
    bench = Bench(replace(QUICK, rounds=3).of("8-44:7"))
    assert len(bench.batches) == 3
    frames = {len(u[name]) for batch in bench.batches for u in batch for name in ("audio", "vision")}
    assert frames == {7}
    assert bench.setting.geometry.frames == 7
    words = sorted(len(u["text"].split()) for u in make_utterances(340, Geometry(frames=2), texts="8-44", frames=2))
    assert (words[0], words[-1], words[169]) == (8, 41, 24)


def test_every_variant_trains_as_many_weights_on_the_same_utterances():
    bench = Bench(QUICK)
    yardstick = bench.loop("yardstick")
    loops = {name: bench.loop(name) for name in LOOPS}
    counts = {name: sum(p.numel() for p in loop.trainable()) for name, loop in loops.items()}
    counts["yardstick"] = sum(p.numel() for p in yardstick.trainable())
    own = {
        name: counts.pop(name) for name in LOOPS if name.startswith(("cached_frozen", "cached_recipe", "cached_four"))
    }
    assert len(set(counts.values())) == 1
    tokens = yardstick.model.num_tokens * yardstick.model.lm.config.hidden_size
    assert own["cached_frozen"] == counts["yardstick"] - tokens
    assert own["cached_four"] == own["cached_frozen"]  # neither trains its tokens
    assert own["cached_recipe"] <= own["cached_four"]  # the toy has room for fewer MM Blocks than five
    texts = sorted(u["text"] for batch in bench.batches for u in batch)
    assert sorted(yardstick.batches.texts) == texts
    ids = {w.data_ptr() for loop in (yardstick, *loops.values()) for w in loop.trainable()}
    assert len(ids) == sum(len(loop.trainable()) for loop in (yardstick, *loops.values()))  # nothing trains twice


def test_cached_text_changes_no_prediction():
    bench = Bench(QUICK)
    torch.manual_seed(0)
    plain = bench.loop("fusion")
    torch.manual_seed(0)
    cached = bench.loop("fusion_cached")
    for loop in (plain, cached):
        loop.model.eval()
    batch = plain.batch(1)
    torch.testing.assert_close(plain.model(**batch).polarity, cached.model(**batch).polarity)


@pytest.mark.parametrize(
    ("file", "tables"),
    [
        ("table.json", ("ratios", "memory", "arithmetic", "reading")),
        ("inference.json", ("latency",)),
        ("cpu-scaling.json", ("growth",)),
    ],
)
def test_files_that_were_measured_before_are_still_read(file, tables):
    """Of docs/speed.md: each table there is what its file says."""
    page, result = PAGE.read_text(encoding="utf-8"), json.loads((RESULTS / file).read_text(encoding="utf-8"))
    for name in tables:
        assert f"<!-- table {name} of {file} -->\n{TABLES[name](result)}\n" in page
