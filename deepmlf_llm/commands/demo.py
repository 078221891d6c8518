"""Shows a page on this machine: a clip in, its polarity over time out.

deepmlf demo --adapter runs/demo-clip/run/adapter --example runs/demo-clip/unseen.mp4

The page takes a file, a recording or the example, one at a time and two minutes at most; it can leave words, sound or
sight out. It listens on this machine alone (127.0.0.1), and sends nothing anywhere. Needs: pip install
'deepmlf_llm[demo]'.
"""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from deepmlf_llm.commands.clip_prediction import add_reader_options, check_takes_clips
from deepmlf_llm.commands.shell import RecipeParser, device, program, run_recipe
from deepmlf_llm.errors import DataError


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog=program("demo"), description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--adapter", required=True, help="directory of an adapter, of a run or of a merged model, or a hub id")
    add("--example", type=Path, metavar="FILE", help="a clip to begin with")
    add("--base_model", help="hub id or path of the base model (default: the one the adapter names)")
    add("--port", type=int, default=7860, help="where the page is served (default: 7860)")
    add("--max_seconds", type=float, default=120.0, metavar="S", help="longest clip (default: 120)")
    add_reader_options(add, "listen where no words are given (default), or never")
    add("--device", type=device, default="cpu", metavar="cpu|cuda", help="of the encoders (default: cpu)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    if options.example is not None and not options.example.is_file():
        raise DataError(f"--example {options.example}: no such file")
    from deepmlf_llm.extras import require

    require("gradio", "the page of `deepmlf demo`")
    from deepmlf_llm.adapters.hub import local_directory
    from deepmlf_llm.commands.demo_page import build_page, serve
    from deepmlf_llm.inference.clip_view import ClipViewer
    from deepmlf_llm.inference.clips import ClipReader
    from deepmlf_llm.inference.predictor import SentimentPredictor
    from deepmlf_llm.media.asr import FasterWhisper

    adapter = local_directory(options.adapter)
    check_takes_clips(adapter, dict(options.encoder))
    predictor = SentimentPredictor.from_pretrained(adapter, base=options.base_model)
    listens = options.transcribe == "missing"
    transcriber = FasterWhisper(options.asr_model, options.language, options.device) if listens else None
    reader = ClipReader(predictor, dict(options.encoder), transcriber, options.device)
    page = build_page(ClipViewer(reader, options.max_seconds), options.example, Path(adapter))
    serve(page, options.port)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
