"""The few exceptions a user can meet. Each message says what came, what was wanted and what to do."""


class VitaError(Exception):
    """Base of every error this package raises on purpose; the command line prints it as one line and exits with 2."""


class AnswerError(VitaError):
    """A model's answer cannot be used: it has no sound, or is chosen from numbers that are not finite."""


class AudioError(VitaError):
    """A recording cannot be read, or cannot be used as speech (empty, silent, too long, NaN)."""


class NoSpeechError(AudioError):
    """Nobody speaks in a recording."""


class CheckpointError(VitaError):
    """A checkpoint folder, its config or one of its tensors is missing, surplus, cut short or contradictory."""


class ConfigError(VitaError):
    """A recipe, mixture, mode, option or model name is unknown or contradicts another one."""


class DataError(VitaError):
    """A conversation, a training sample or a shard of them is malformed."""


class EndpointError(VitaError):
    """A server that an evaluation asks cannot be reached or does not serve; what it has answered so far is kept."""


class MissingExtraError(VitaError):
    """An optional dependency is needed and not installed; the message names the extra to install."""


class OutOfMemoryError(VitaError):
    """A model does not fit its device; the message says what it needs and which options make it smaller."""


class OutputError(VitaError):
    """An output cannot be written (full disk, no permission)."""
