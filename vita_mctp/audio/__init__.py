"""Waves: reading, checking, resampling, writing."""

from vita_mctp.audio.io import check_target, read_wave, wave_from_array, write_wave
from vita_mctp.audio.resample import resample

__all__ = ["check_target", "read_wave", "resample", "wave_from_array", "write_wave"]
