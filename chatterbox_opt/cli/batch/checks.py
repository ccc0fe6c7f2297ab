"""What a job asks of its model: checked by the model's name, before anything is loaded.

Responsible for languages, sampling parameters and the length of recordings, with the row. Not
responsible for what is wrong in the file itself (batch/job_file.py); a recording that cannot be
used for another reason is an error of its item.
"""

from __future__ import annotations

import dataclasses

from chatterbox_opt.audio import decoders
from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.batch.job_file import Item, Job
from chatterbox_opt.cli.batch.options import FileOptions, JoinOptions
from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError, VoiceError
from chatterbox_opt.sampling import for_model
from chatterbox_opt.text import languages
from chatterbox_opt.words.support import check_timestamps


def check_captions(files: FileOptions, joining: JoinOptions, config: ModelConfig) -> None:
    """Check that captions can be written, if they are asked for.

    Raises:
        InputError: the model has no word times, or the joined file is a stream.
    """
    if files.timestamps is None:
        return
    check_timestamps(config)
    if joining.joined_file is not None and audio_files.is_stream(joining.joined_file):
        raise InputError("--timestamps writes captions next to the joined file: --join a file")


def fitted(job: Job, config: ModelConfig, *, timestamps: bool = False) -> Job:
    """The job with the model's own sampling parameters and language where it has none.

    Args:
        timestamps: word times are asked for.

    Raises:
        InputError: a row has a parameter or a language that the model does not have, or one
            without word times.
    """
    lines = [
        _fitted(line, config, timestamps=timestamps) if isinstance(line, Item) else line
        for line in job.lines
    ]
    return dataclasses.replace(job, lines=lines)


def _fitted(item: Item, config: ModelConfig, *, timestamps: bool) -> Item:
    try:
        sampling = for_model(item.sampling, config.sampling_defaults, config.missing_knobs)
        languages.check_model(item.language, config)
        if timestamps:
            check_timestamps(config, languages.chosen(item.language, config))
    except InputError as error:
        raise InputError(f"row {item.row}: {error}") from error
    # a pack's own language is part of what is compared with earlier runs
    language = languages.chosen(item.language, config) if config.languages else item.language
    return dataclasses.replace(item, sampling=sampling, language=language)


def check_lengths(job: Job, spec: EngineSpec, config: ModelConfig, shipped: set[str]) -> None:
    """Check the recordings of all rows for a model that needs some seconds; reads only headers.

    Args:
        shipped: names of the voices that come with the model.

    Raises:
        InputError: one is too short.
    """
    if not config.reference.longer_than:
        return
    rows = {item.voice: item.row for item in reversed(job.items) if item.voice}
    for voice, row in sorted(rows.items(), key=lambda found: found[1]):
        if voice in shipped:
            continue
        try:
            path = spec.store.find(voice)
        except VoiceError:
            continue  # of its item
        seconds = decoders.declared_seconds(path) if path.is_file() else None
        if seconds is not None and seconds <= config.reference.longer_than:
            try:
                audio_files.check_reference(path, config=config.reference)  # a header may be wrong
            except VoiceError as error:
                raise InputError(f"row {row}: {error}") from error
