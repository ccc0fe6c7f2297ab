"""The error tree. Knows nothing of the rest of the package; imports nothing.

ChatterboxOptError            exit 1   the root: the command line catches it in one place
├── InputError                exit 2   what was asked cannot be done as asked
│   ├── TextError                      nothing to speak, or not text at all
│   ├── VoiceError                     a reference recording or a voice name that cannot be used
│   └── ProfileError                   unknown profile, key or value
├── WeightsError              exit 1   weights missing, damaged or of other shapes
├── OutputError               exit 1   the sound could not be written
├── DeviceError               exit 1   the device is missing or out of memory
├── NumericsError             exit 1   numbers that are not numbers, even in float32
├── SilenceError              exit 1   the model said nothing, however often it was asked
└── WorkerError               exit 1   processes that speak for a batch died

Every message is one line and ends with what to do.
"""


class ChatterboxOptError(Exception):
    """Something went wrong that the person can act on; ``str()`` is one line with the remedy."""

    exit_code = 1


class InputError(ChatterboxOptError):
    """A wrong argument, option or input file."""

    exit_code = 2


class TextError(InputError):
    """The text holds nothing that can be spoken."""


class VoiceError(InputError):
    """The reference recording or the voice name cannot be used."""


class ProfileError(InputError):
    """A profile, or one of its keys or values, is not known."""


class WeightsError(ChatterboxOptError):
    """The model's files are missing, damaged, or do not fit each other."""


class OutputError(ChatterboxOptError):
    """The sound could not be written."""


class DeviceError(ChatterboxOptError):
    """The device is not there, or has not enough memory."""


class NumericsError(ChatterboxOptError):
    """A stage produced NaN or infinity."""


class SilenceError(ChatterboxOptError):
    """The model ended its speech before it began."""


class WorkerError(ChatterboxOptError):
    """Processes that speak for a batch died."""


def in_words(error: Exception) -> str:
    """An error for people; one that is not ours needs its kind to be understood."""
    ours = isinstance(error, ChatterboxOptError)
    return str(error) if ours else f"{type(error).__name__}: {error}"


def first_line(error: Exception) -> str:
    """What an error says, or its kind if it says nothing, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
