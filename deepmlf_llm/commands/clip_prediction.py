"""What ``deepmlf predict`` does with a clip, or with one text."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepmlf_llm.commands.shell import RecipeParser, device, key_value, one_of, print_columns
from deepmlf_llm.errors import ConfigError, DataError, suggest

if TYPE_CHECKING:
    from deepmlf_llm.inference.clips import ClipResult, ClipRow
    from deepmlf_llm.inference.predictor import SentimentPredictor

_FILES = ("json", "csv", "srt", "plot")
_OF_A_CLIP = ("window", "hop", *_FILES, "encoder", "transcribe", "asr_model", "language", "allow_damaged")
_LONGEST = 48  # letters of a row's text on the screen


def add_clip_options(parser: RecipeParser) -> None:
    """``--video`` and what belongs to it."""
    add = parser.add_argument_group("a clip").add_argument
    add("--video", type=Path, metavar="FILE", help="a file of sound or video, instead of --input")
    add("--window", default="speech", metavar="speech|S", help="a row for each span of speech (default), or each S s")
    add("--hop", type=float, metavar="S", help="from one window of S s to the next (default: the window)")
    add("--json", type=Path, metavar="FILE", help="all that is known of the clip")
    add("--csv", type=Path, metavar="FILE", help="a line for the clip and one for each row")
    add("--srt", type=Path, metavar="FILE", help="subtitles coloured by polarity")
    add("--plot", type=Path, metavar="FILE", help="the curves with the transcript below: .svg or .png, by matplotlib")
    add_reader_options(add, "listen where no --text is given (default), or never")
    add("--allow_damaged", action="store_true", help="take what can be read of a file that is cut off or damaged")
    add(
        "--device",
        type=device,
        metavar="cpu|cuda",
        help="of the model (default: cuda where there is one), and of what reads a clip (default: cpu)",
    )


def refuse_clip_options(options: Namespace, parser: RecipeParser) -> None:
    """Where there is no clip, nothing that is for one is silently left out.

    Raises:
        ConfigError: one was given.
    """
    for name in _OF_A_CLIP:
        if options.video is None and getattr(options, name) != parser.get_default(name):
            raise ConfigError(f"--{name}: is for a clip, and there is no --video")


def add_reader_options(add: Callable[..., Any], transcribe: str) -> None:
    """What a clip is read with: encoders and speech to text.

    Args:
        add: ``add_argument`` of a parser.
        transcribe: help of ``--transcribe``.
    """
    add(
        "--encoder",
        type=key_value,
        nargs="+",
        default=[],
        metavar="NAME=PLACE",
        help="where an encoder lies now, as vision=models/clip (default: where it was in training)",
    )
    one = one_of("missing", "never")
    add("--transcribe", type=one, default="missing", metavar="missing|never", help=transcribe)
    add("--asr_model", default="whisper-base", metavar="MODEL", help="speech to text: packaged, path or name")
    add("--language", default="auto", metavar="auto|CODE", help="that is spoken (default: heard from the clip)")


def predict_clip(options: Namespace) -> int:
    """Predicts ``--video``, or ``--text`` alone; prints a table and writes the files that were asked for."""
    given = {name: path for name in _FILES if (path := getattr(options, name)) is not None}
    _check(options, given)
    from deepmlf_llm.adapters.hub import local_directory
    from deepmlf_llm.inference.predictor import SentimentPredictor

    adapter = local_directory(options.adapter)
    if options.video is not None:
        check_takes_clips(adapter, dict(options.encoder))
    predictor = SentimentPredictor.from_pretrained(
        adapter,
        base=options.base_model,
        dtype=options.dtype,
        quantization=options.quantization,
        device=options.device,
    )
    if options.video is None:
        (said,) = predictor.predict([options.text])
        print_columns("from the text alone", [(name, _shown(value)) for name, value in said.to_dict().items()])
        return 0
    result = _read(predictor, options)
    _print(result)
    _write(result, given, predictor)
    return 0


def _check(options: Namespace, given: dict[str, Path]) -> None:
    from deepmlf_llm.inference.clips import check_window

    if options.input is not None or options.output is not None:
        raise ConfigError("--video and --text stand alone: leave --input and --output out, and name --json or --csv")
    if options.video is not None and not options.video.is_file():
        raise DataError(f"--video {options.video}: no such file")
    check_window(window_of(options.window), options.hop)
    for name, path in given.items():
        if not path.parent.is_dir():
            raise DataError(f"--{name} {path}: its directory is not there")
    if options.plot is not None and options.plot.suffix not in (".svg", ".png"):
        raise ConfigError(f"--plot {options.plot}: expected a name that ends with .svg or .png")


def check_takes_clips(adapter: Path | str, encoders: dict[str, str]) -> None:
    """What cannot be says so before a model is loaded.

    Args:
        adapter: directory of an adapter, of a run or of a merged model.
        encoders: what ``--encoder`` was given: modality -> place.

    Raises:
        ConfigError: an encoder for a modality that the model does not have.
        DataError: its features were not made of clips.
    """
    from deepmlf_llm.media.recipe import settings_of
    from deepmlf_llm.model.merged import read_settings

    modalities = read_settings(adapter).modalities
    for name in encoders:
        if name not in modalities:
            known = ", ".join(modalities) or "none"
            raise ConfigError(f"--encoder {name}={suggest(name, modalities)}: the modalities are {known}")
    settings_of(modalities)


def window_of(text: str) -> float | str:
    """Seconds where it is a number, else the word."""
    try:
        return float(text)
    except ValueError:
        return text


def _read(predictor: SentimentPredictor, options: Namespace) -> ClipResult:
    from deepmlf_llm.inference.clips import ClipReader
    from deepmlf_llm.media.asr import FasterWhisper

    place = options.device or "cpu"
    listens = options.transcribe == "missing" and not (options.text and options.text.strip())
    transcriber = FasterWhisper(options.asr_model, options.language, place) if listens else None
    reader = ClipReader(predictor, dict(options.encoder), transcriber, place, options.allow_damaged)
    return reader.read(options.video, options.text, window_of(options.window), options.hop)


def _write(result: ClipResult, given: dict[str, Path], predictor: SentimentPredictor) -> None:
    from deepmlf_llm.inference import clip_files

    if "json" in given:
        clip_files.write_json(given["json"], result)
    if "csv" in given:
        clip_files.write_csv(given["csv"], result)
    if "srt" in given:
        clip_files.write_srt(given["srt"], result, predictor.task)
    if "plot" in given:
        clip_files.write_plot(given["plot"], result, predictor.task)
    if given:
        print(f"written: {', '.join(map(str, given.values()))}")


def _print(result: ClipResult) -> None:
    record = result.record
    heads = {"polarity": "fused", "text_polarity": "text", "av_polarity": "sound+sight"}
    known = [name for name in heads if hasattr(result.whole.prediction, name)]
    lines = [["from", "to", *(heads[name] for name in known), "label", "present", "words"]]
    for row in (result.whole, *result.rows):
        numbers = [_shown(getattr(row.prediction, name)) for name in known]
        lines.append(
            [
                f"{row.start:.1f}",
                f"{row.end:.1f}",
                *numbers,
                _label(row),
                "+".join(row.present) or "-",
                _brief(row.text),
            ]
        )
    print_columns(f"{result.clip}: {record.status}, {record.duration:.1f} s; the whole clip, then its rows", lines)
    for note in result.notes:
        print(f"note: {note}")
    spent = sum(record.seconds.values())
    print(f"read in {spent:.1f} s ({record.duration / max(spent, 1e-6):.1f} times as fast as it lasts)")


def _label(row: ClipRow) -> str:
    said = row.prediction.label
    return ", ".join(said) if isinstance(said, list) else str(said)


def _shown(value: Any) -> str:
    return f"{value:+.2f}" if isinstance(value, float) else "-" if value is None else str(value)


def _brief(text: str) -> str:
    text = " ".join(text.split()) or "(none)"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
