"""Trains the AV encoder alone on the polarity: stage 1 of the fusion curriculum. No language model is loaded.

    deepmlf pretrain-av [--config FILE] [--key value ...]
    deepmlf train --av_encoder_from runs/NAME [--freeze_av_encoder] [...]

With no options: the embedded data set with the shipped settings `demo_av_encoder`. The same command again goes on with
a run that was cut. The run's folder av_encoder/ is what stage 2 begins with; its settings of the AV encoder and its
features must be those of stage 2.
"""

import sys
from collections.abc import Sequence

from deepmlf_llm.commands.screen import VERBOSE, log_beside
from deepmlf_llm.commands.shell import print_metrics, run_recipe
from deepmlf_llm.commands.train import DRY_RUN, RESUME, TRUST_RUN, take_option
from deepmlf_llm.training.launch import detect, errors_reported_once

DEMO = "demo_av_encoder"


def main(argv: Sequence[str] | None = None) -> None:
    from deepmlf_llm.training.av_settings import says_something
    from deepmlf_llm.training.command_line import help_text, parse_settings

    argv = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(argv):
        print(help_text(__doc__ or "", says_something, several_seeds=False))
        return
    dry_run, trust_run = bool(DRY_RUN & set(argv)), bool(TRUST_RUN & set(argv))
    argv = [word for word in argv if word not in {*DRY_RUN, *TRUST_RUN, VERBOSE}]
    with errors_reported_once():
        argv, resume = take_option(argv, RESUME, "auto, never or a checkpoint's directory")
        settings = parse_settings(argv, default_config=DEMO)
        from deepmlf_llm.training.av_run import pretrain_av_encoder

        result = pretrain_av_encoder(
            settings, dry_run=dry_run, opened=log_beside, trust_run=trust_run, resume=resume or "auto"
        )
    if detect().is_main and not dry_run:
        metrics = result["metrics"]
        print_metrics("Best AV encoder by validation", {"valid": metrics["validation"], "test": metrics["test"]})


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
