"""Waves: reading, checking, resampling, finding the speech in them, writing."""

from vita_mctp.audio.io import check_target, read_wave, wav_bytes, wave_from_array, write_wave
from vita_mctp.audio.resample import resample
from vita_mctp.audio.vad import cut_question, cut_to_speech, speech_span

__all__ = [
    "check_target",
    "cut_question",
    "cut_to_speech",
    "read_wave",
    "resample",
    "speech_span",
    "wav_bytes",
    "wave_from_array",
    "write_wave",
]
