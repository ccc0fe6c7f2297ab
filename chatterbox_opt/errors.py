"""The exceptions of the package.

Responsible for their hierarchy and for errors as text. Not responsible for exit codes
(cli/application.py) or for recovery. Imports nothing.

ChatterboxOptError            the root: callers catch it in one place
├── InputError                an argument, option or input file is wrong
│   ├── TextError             nothing to synthesize, not text at all, or wrong markup
│   ├── VoiceError            unusable reference recording or unknown voice name
│   └── ProfileError          unknown profile, key or value
├── WeightsError              weights missing, damaged or of the wrong shape
├── OutputError               the audio could not be written
├── DeviceError               the device is missing or out of memory
├── NumericsError             NaN or Inf, even in float32
├── SilenceError              the model generated no speech after several seeds
├── QueueFullError            too many requests wait for the engine
├── RequestCancelledError     the request was cancelled before it was done
└── WorkerError               worker processes of a batch crashed

Every message is one line and ends with a remedy.
"""


class ChatterboxOptError(Exception):
    """An error that the caller can act on; ``str()`` is one line with the remedy."""


class InputError(ChatterboxOptError):
    """A wrong argument, option or input file."""


class TextError(InputError):
    """The text holds nothing that can be synthesized, or its markup is wrong."""


class VoiceError(InputError):
    """The reference recording or the voice name cannot be used."""


class ProfileError(InputError):
    """A profile, or one of its keys or values, is unknown."""


class WeightsError(ChatterboxOptError):
    """The model's files are missing, damaged, or do not belong together."""


class OutputError(ChatterboxOptError):
    """The audio could not be written."""


class DeviceError(ChatterboxOptError):
    """The device is missing, or out of memory."""


class NumericsError(ChatterboxOptError):
    """A stage produced NaN or Inf."""


class SilenceError(ChatterboxOptError):
    """The model ended the sequence before generating any speech."""


class QueueFullError(ChatterboxOptError):
    """Too many requests wait for the engine."""


class RequestCancelledError(ChatterboxOptError):
    """The request was cancelled, or its handle was dropped."""


class WorkerError(ChatterboxOptError):
    """Worker processes of a batch crashed."""


def without_frames(error: Exception) -> Exception:
    """The error without tracebacks, its causes' included: frames keep their variables alive."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def in_words(error: Exception) -> str:
    """An error as a message for users; foreign exceptions are prefixed with their class name."""
    ours = isinstance(error, ChatterboxOptError)
    return str(error) if ours else f"{type(error).__name__}: {error}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
