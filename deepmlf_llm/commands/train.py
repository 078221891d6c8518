"""Trains a DeepMLF adapter on a LLaMA-class decoder (any supported family), or goes on with the run that was cut.

    deepmlf train [--config FILE] [--key value ...]
    torchrun --nproc_per_node 2 --module deepmlf_llm.commands.train [...]
    deepspeed --module deepmlf_llm.commands.train --ds zero2 [...]

With no options: the embedded data set with the shipped settings `demo`. The same command again goes on with a run
that was cut, or says that it is finished.
"""

import sys
from collections.abc import Sequence

from deepmlf_llm.commands.screen import VERBOSE, log_beside
from deepmlf_llm.commands.shell import print_metrics, run_recipe
from deepmlf_llm.training.launch import detect, errors_reported_once

DEMO = "demo"
DRY_RUN, TRUST_RUN = {"--dry-run", "--dry_run"}, {"--trust-run", "--trust_run"}


def main(argv: Sequence[str] | None = None) -> None:
    from deepmlf_llm.training.command_line import help_text, parse_settings

    argv = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(argv):
        print(help_text(__doc__ or ""))
        return
    dry_run, trust_run = bool(DRY_RUN & set(argv)), bool(TRUST_RUN & set(argv))
    argv = [word for word in argv if word not in {*DRY_RUN, *TRUST_RUN, VERBOSE}]
    with errors_reported_once():
        settings = parse_settings(argv, default_config=DEMO)
        from deepmlf_llm.training.run import run_training

        result = run_training(settings, dry_run=dry_run, opened=log_beside, trust_run=trust_run)
    if detect().is_main and not dry_run:
        metrics = result["metrics"]
        print_metrics("Best adapter by validation", {"valid": metrics["validation"], "test": metrics["test"]})


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
