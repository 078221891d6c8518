"""Makes features of a folder of clips: files of sound or video become what models are trained on.

deepmlf extract-features --data DIR --out features --audio_encoder whisper-base --vision_encoder models/clip-vit-b32

DIR has label.csv (video_id, clip_id, text, and label, mode and more where there are any) and Raw/VIDEO/CLIP.mp4, or any
other place and ending; without label.csv every file in it is a clip. An encoder is packaged (prosody, whisper-base,
outline), a directory that transformers can read, or a hub id. Clips without a text are listened to (faster-whisper); a
text that is given stays.

Writes one file a clip, the recipe (features.json), label.csv with the texts, and extract_report.json with the status of
every clip. The same command again goes on after a cut. Next: deepmlf prepare --source features --dataset NAME --out
DATA; the recipe travels with the data, the adapter and the merged model, and `deepmlf predict --video` extracts by it.

Exit codes: 0 every clip has features, 3 some have none, 2 none has, or nothing could be done.
"""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from deepmlf_llm.commands.shell import RecipeParser, count, device, one_of, print_table, program, run_recipe
from deepmlf_llm.errors import ConfigError, DataError

NONE = "none"
LONGEST = 600.0


def build_parser() -> RecipeParser:
    parser = RecipeParser(
        prog=program("extract-features"), description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder of clips, see above")
    add("--out", type=Path, required=True, help="folder of features to make, or to go on with")
    add("--audio_encoder", default=NONE, metavar="ENCODER", help="of sound: prosody, whisper-base, path, hub id, none")
    add("--vision_encoder", default=NONE, metavar="ENCODER", help="of sight: outline, path, hub id, none")
    add("--audio_rate", type=float, default=10.0, metavar="HZ", help="frames of sound a second (default: 10)")
    add("--fps", type=float, default=2.0, metavar="HZ", help="pictures a second (default: 2)")
    add("--audio_layer", default="last", metavar="last|mean|N", help="hidden states of which layer (default: last)")
    add("--vision_layer", default="last", metavar="last|mean|N", help="the same of sight (default: last)")
    add(
        "--face",
        default=NONE,
        metavar="centerface|lbp|none",
        help="what finds the face that is cut out; none: the middle of the picture (default)",
    )
    add("--margin", type=float, default=1.3, help="side of the square that is cut out, in sizes of the face")
    add(
        "--transcribe",
        type=one_of("missing", "always", "never"),
        default="missing",
        metavar="missing|always|never",
        help="clips that are listened to: those without a text (default), all (for the times of words), none",
    )
    add_listening(parser)
    add("--on_error", type=one_of("stop", "skip"), default="skip", metavar="stop|skip", help="default: skip")
    add("--max_seconds", type=float, default=LONGEST, metavar="S", help=f"longest clip (default: {LONGEST:g})")
    add("--limit", type=count, metavar="N", help="the first N clips only")
    return parser


def add_listening(parser: RecipeParser) -> None:
    """Options that every command has which reads clips."""
    add = parser.add_argument
    add("--asr_model", default="whisper-base", metavar="MODEL", help="speech to text: packaged, path or name")
    add("--language", default="auto", metavar="auto|CODE", help="that is spoken (default: heard from the clip)")
    add("--allow_damaged", action="store_true", help="take what can be read of files that are cut off or damaged")
    add(
        "--device", type=device, default="cpu", metavar="cpu|cuda", help="of encoders and speech to text (default: cpu)"
    )
    add("--threads", type=count, metavar="N", help="of the CPU (default: as PyTorch has it)")


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    import torch

    from deepmlf_llm.media.asr import FasterWhisper
    from deepmlf_llm.media.extract import Extractor
    from deepmlf_llm.media.folder import extract_folder
    from deepmlf_llm.media.listing import list_clips
    from deepmlf_llm.media.recipe import AudioSettings, RecipeSettings, VisionSettings

    if options.audio_encoder == options.vision_encoder == NONE:
        raise ConfigError("nothing to extract: give --audio_encoder, --vision_encoder or both")
    if options.threads:
        torch.set_num_threads(options.threads)
    audio = AudioSettings(options.audio_encoder, options.audio_rate, options.audio_layer)
    vision = VisionSettings(options.vision_encoder, options.fps, options.vision_layer, options.face, options.margin)
    settings = RecipeSettings(
        None if options.audio_encoder == NONE else audio,
        None if options.vision_encoder == NONE else vision,
        options.device,
    )
    settings.check()
    silent = [clip for clip in list_clips(options.data).clips[: options.limit] if not clip.text.strip()]
    listens = options.transcribe == "always" or (options.transcribe == "missing" and silent)
    transcriber = None
    if listens:
        transcriber = FasterWhisper(options.asr_model, options.language, options.device, options.threads or 0)
    extractor = Extractor(settings, transcriber, options.max_seconds, options.allow_damaged)
    report = extract_folder(
        extractor, options.data, options.out, options.transcribe, options.on_error == "stop", options.limit
    )
    for note in report.notes:
        print(f"note: {note}")
    print_table(f"{len(report.clips)} clips, {report.found} found from an earlier run", [*report.counts().items()])
    speed = report.speed()
    if speed:
        told = ", ".join(f"{stage} {rate:.1f}x" for stage, rate in speed.items() if stage not in ("all", "open"))
        took = f"{report.took:.0f} s, {report.cpu:.0f} of CPU"
        print(f"{speed['all']:.1f} times as fast as the clips last ({told}); {took}")
    if report.failed and len(report.failed) == len(report.clips):
        raise DataError(f"{options.data}: none of its clips gave features; see {options.out / 'extract_report.json'}")
    print(f"features: {options.out}; next: deepmlf prepare --source {options.out} --dataset NAME --out DATA")
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
