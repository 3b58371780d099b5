"""What ffmpeg, where it is installed, reads and writes beyond libsndfile.

It is given a file of ours and demuxers that open nothing else, so that no recording can name a path or an address.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from typing import IO

from vita_mctp.errors import AudioError, ConfigError

_DEMUXERS = "mov,matroska,webm,aac,mp3,ogg,flac,wav,amr,asf,caf,aiff"
_CONVERSION_SECONDS = 60


def ffmpeg(what: str) -> str:
    """The program. Raises ConfigError, which says what needs it."""
    found = shutil.which("ffmpeg")
    if found is None:
        raise ConfigError(f"{what} needs ffmpeg, which is not installed here; take wav, pcm, mp3, opus or flac")
    return found


def as_wav(recording: IO[bytes], limit_seconds: float, limit_bytes: int) -> bytes:
    """The bytes of a WAV, a little longer than allowed at most; none where ffmpeg is not installed or cannot read it.

    recording: of which no more than `limit_bytes` are looked at. Raises AudioError where it takes ffmpeg too long.
    """
    if shutil.which("ffmpeg") is None:
        return b""
    recording.seek(0)
    with tempfile.NamedTemporaryFile() as file:
        file.write(recording.read(limit_bytes))
        file.flush()
        safe = ["-protocol_whitelist", "file,pipe", "-format_whitelist", _DEMUXERS]
        target = ["-map", "0:a:0", "-t", str(limit_seconds + 1), "-f", "wav", "pipe:1"]
        command = [ffmpeg("such files"), "-v", "error", "-nostdin", *safe, "-i", file.name, *target]
        try:
            made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_CONVERSION_SECONDS)
        except subprocess.TimeoutExpired:
            raise AudioError("the recording takes ffmpeg too long to read; send it as wav, flac, ogg or mp3") from None
    return made.stdout
