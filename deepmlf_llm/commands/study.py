"""Runs a scale study: every cell of a grid through the training recipe, then one report.

  deepmlf study                                                        # the default grid, on the embedded set
  deepmlf study --grid scale/mosi --output runs/mosi-study --slots 2
  deepmlf study report runs/mosi-study                                 # its report again, from what is stored
  deepmlf study compare runs/mosi-study runs/another                   # --help says more

The same command again goes on: finished cells are skipped, cut ones resume, failed ones are tried again. Ctrl-C is
safe, and so is a kill. Several machines share one folder: each runs the command with --join, or all are started by

  deepmlf study --grid FILE --output DIR --executor slurm --nodes 4 --sbatch=--gpus=1 --sbatch=--time=12:00:00
  deepmlf study --grid FILE --output DIR --executor hostfile --hostfile hosts        # --dry-run shows what would start
"""

import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepmlf_llm import shipped
from deepmlf_llm.commands import train
from deepmlf_llm.commands.shell import RecipeParser, one_of, program, run_recipe
from deepmlf_llm.errors import ConfigError, Problems
from deepmlf_llm.files import make_directory, write_aside
from deepmlf_llm.paths import shown

if TYPE_CHECKING:
    from deepmlf_llm.study.elsewhere import Elsewhere
    from deepmlf_llm.study.executors import Executor

DEFAULT = "scale/default"
TRAIN = Path(train.__file__)
FAILED_CELLS = 1


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog=program("study"), description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--grid", type=Path, help=f"YAML of the study, or the name of a shipped one (default: {DEFAULT})")
    add("--output", type=Path, metavar="DIR", help="folder of the study (default: runs/scale-NAME)")
    add(
        "--slots",
        type=_positive,
        metavar="N",
        help="cells at a time (default: one a core, at most 4; GPUs / processes)",
    )
    add("--seeds", metavar="LIST", help="in the place of the grid's, as 5-8 or 1,3: the same study again")
    add(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="run the cells whose name fits, as *135m*-text-*; again for more (default: all)",
    )
    add(
        "--finished",
        type=Path,
        metavar="DIR",
        help="another folder of the study, put away or not: what is finished there is not run again",
    )
    add("--join", action="store_true", help="work with others in --output: take cells that no other process holds")
    add(
        "--executor",
        type=one_of("local", "slurm", "hostfile"),
        default="local",
        help="local: this process; slurm: an array of jobs; hostfile: one process a host, by ssh (default: local)",
    )
    add("--nodes", type=_positive, metavar="N", help="of slurm: jobs of the array")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="=OPTION",
        help="of slurm: an option for sbatch; again for more",
    )
    add(
        "--hostfile", type=Path, metavar="FILE", help="of hostfile: a host a line, with slots=N for its cells at a time"
    )
    add(
        "--lease",
        type=float,
        default=90.0,
        metavar="SECONDS",
        help="a node whose heartbeat does not change for so long is dead, and its cells are taken over (default: 90)",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--plan", action="store_true", help="list the cells with parameters and FLOPs of a step, and stop"
    )
    mode.add_argument("--dry-run", action="store_true", help="say what this start would run in --output, and stop")
    mode.add_argument("--report-only", action="store_true", help="write the report of --output again, and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["compare"]:
        from deepmlf_llm.commands import study_compare

        study_compare.main(words[1:])
        return 0
    if words[:1] == ["report"]:
        words = ["--report-only", *(["--output"] if words[1:] and not words[1].startswith("-") else []), *words[1:]]
    args = build_parser().parse_args(words)
    from deepmlf_llm.study.directory import StudyDirectory

    if args.report_only:
        if args.output is None or args.grid is not None or args.finished is not None:
            raise ConfigError(
                "--report-only reads what is stored in the study's folder: give --output DIR, and no --grid nor "
                "--finished"
            )
        return _report_again(StudyDirectory(args.output))

    from deepmlf_llm.commands.study_listing import print_plan, print_state
    from deepmlf_llm.study.grid import Grid
    from deepmlf_llm.study.node import Node
    from deepmlf_llm.study.plan import make_plan
    from deepmlf_llm.training.seeds import parse_seeds

    executor = _executor(args, lambda: _run(plan, directory, args, found))
    source = shipped.locate(shipped.CONFIGS, args.grid or DEFAULT)
    grid = Grid.from_yaml(source)
    if args.seeds is not None:
        grid = replace(grid, seeds=parse_seeds(args.seeds))
    directory = StudyDirectory(args.output or Path("runs") / f"scale-{grid.name}")
    directory.check(grid.name)
    plan = make_plan(grid, TRAIN)
    chosen = plan.only(args.only)
    found = _elsewhere(args.finished, plan)
    if args.plan:
        print_plan(chosen)
        return 0
    if args.dry_run:
        print_state(chosen, directory, found.records if found else {})
        if args.executor != "local":
            print(executor.shown(_node_command(args, grid.name, directory)))
        return 0
    if args.executor != "local":
        with directory.claimed():
            directory.check(grid.name)
            directory.begin(plan, Node(directory.path, args.lease), helped=True, say=_note)
            if found:
                with Node(directory.path, args.lease) as node:
                    found.take_in(node, directory, plan)
            write_aside(_grid_of_nodes(directory), Path(source).read_bytes())
    return executor.start(_node_command(args, grid.name, directory))


def _executor(args: Any, work: Callable[[], int]) -> "Executor":
    """Where the study runs.

    Args:
        args: of the command line.
        work: runs it in this process.

    Raises:
        ConfigError: options that do not go together, all at once.
    """
    from deepmlf_llm.study.executors import Host, Hosts, Local, Slurm, read_hostfile
    from deepmlf_llm.study.node import SHORTEST_LEASE

    problems = Problems(ConfigError, f"--executor {args.executor}")
    check, kind = problems.check, args.executor
    check(
        SHORTEST_LEASE <= args.lease <= 86400, f"--lease {args.lease:g}: expected {SHORTEST_LEASE:g} to 86400 seconds"
    )
    check(kind == "local" or not args.join, "--join is for the processes that it starts; leave it out")
    check(
        kind == "slurm" or (args.nodes is None and not args.sbatch), "--nodes and --sbatch belong to --executor slurm"
    )
    check(kind != "slurm" or args.nodes is not None, "give --nodes N")
    check((kind == "hostfile") == (args.hostfile is not None), "--executor hostfile and --hostfile FILE go together")
    problems.raise_if_any()
    if kind == "slurm":
        return Slurm(args.nodes, args.sbatch)
    if kind == "hostfile":
        return Hosts([Host(host.name, host.slots or args.slots) for host in read_hostfile(args.hostfile)])
    return Local(work)


def _grid_of_nodes(directory: Any) -> Path:
    """A copy: nodes may begin long after the file was edited again."""
    from deepmlf_llm.study.node import NODES

    make_directory(directory.path / NODES)
    return Path(directory.path) / NODES / "grid.yaml"


def _node_command(args: Any, name: str, directory: Any) -> Any:
    import deepmlf_llm
    from deepmlf_llm.study.executors import NodeCommand, passed_on
    from deepmlf_llm.study.node import NODES

    folder = Path(os.path.abspath(directory.path))  # a link stays one: it may lead elsewhere on another machine
    words = [sys.executable, "-m", "deepmlf_llm.commands.study", "--grid", str(folder / NODES / "grid.yaml")]
    words += ["--output", str(folder), "--join", "--lease", f"{args.lease:g}"]
    words += [word for pattern in args.only for word in ("--only", pattern)]
    words += ["--seeds", args.seeds] if args.seeds else []
    words += ["--slots", str(args.slots)] if args.slots and args.executor == "slurm" else []
    return NodeCommand(words, folder, name, Path.cwd(), passed_on(Path(deepmlf_llm.__file__).resolve().parents[1]))


def _elsewhere(source: Path | None, plan: Any) -> "Elsewhere | None":
    """What --finished has of the plan; says how much."""
    from deepmlf_llm.study.directory import StudyDirectory
    from deepmlf_llm.study.elsewhere import Elsewhere

    if source is None:
        return None
    found = Elsewhere.of(StudyDirectory(source), plan)
    print(f"--finished {shown(source)}: has {len(found.records)} of {len(plan.cells)} cells of this study")
    return found


def _run(plan: Any, directory: Any, args: Any, found: "Elsewhere | None") -> int:
    from deepmlf_llm.study.claims import turn
    from deepmlf_llm.study.live import make_view
    from deepmlf_llm.study.lm_measuring import measure
    from deepmlf_llm.study.node import NODES, REPORT, Node
    from deepmlf_llm.study.runner import Runner, Stopped

    part = plan.only(args.only)
    chosen, memory = _places(part, args.slots)
    for note in plan.notes:
        _note(note)
    print(f"{len(part.cells)} cells in {shown(directory.path)}, {len(chosen)} at a time", flush=True)
    with nullcontext() if args.join else directory.claimed(), Node(directory.path, args.lease) as node:
        directory.check(plan.grid.name)
        if args.join:
            directory.join(plan, node.name)
        else:
            directory.begin(plan, node, say=_note)
        if found:
            found.take_in(node, directory, plan)
        try:
            Runner(part, directory, chosen, TRAIN, make_view(plan.grid.metric), node=node, memory=memory).run()
        except Stopped as stopped:
            print(f"{stopped}; what is finished is kept, and the same command goes on", file=sys.stderr)
            return 128 + stopped.number
        with turn(node, directory.path / NODES / REPORT):
            measure(directory)
            return _report(directory)


def _note(text: str) -> None:
    print(f"note: {text}", flush=True)


def _places(plan: Any, slots: int | None) -> tuple[Any, Any]:
    """Slots, and what is known of the GPUs' memory."""
    import torch

    from deepmlf_llm.study.cell_memory import memory_needs
    from deepmlf_llm.study.cell_process import default_slots, make_slots
    from deepmlf_llm.study.gpu_memory import GpuMemory, free_memory

    processes = plan.grid.processes
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    free = free_memory(gpus) if gpus else {}
    memory = GpuMemory(free, memory_needs(plan.cells) if free else {})
    return make_slots(slots or default_slots(processes, memory.most(processes, gpus)), processes), memory


def _report_again(directory: Any) -> int:
    """In its turn, so that the one that has read the most is the one that stays."""
    from deepmlf_llm.study.claims import turn
    from deepmlf_llm.study.node import NODES, REPORT, Node

    directory.check_results()
    if directory.put_away:  # nothing changes there, and nobody works there
        return _report(directory)
    # A report takes seconds, so its node needs no heartbeat; with one it would seem to run cells.
    with turn(Node(directory.path), directory.path / NODES / REPORT, say=_note):
        return _report(directory)


def _report(directory: Any) -> int:
    from deepmlf_llm.study.report import write_report
    from deepmlf_llm.study.results import read_all

    paths = write_report(directory)
    failed = [r["cell"] for r in read_all(directory, directory.planned()) if r["status"] == "failed"]
    print("report: " + ", ".join(shown(path) for path in paths))
    if failed:
        print(f"{len(failed)} cells failed, see the report: {', '.join(failed)}", file=sys.stderr)
    return FAILED_CELLS if failed else 0


def _positive(text: str) -> int:
    from argparse import ArgumentTypeError

    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r}: expected an integer >= 1")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
