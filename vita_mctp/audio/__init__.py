"""Waves: reading, checking, resampling, writing."""

from vita_mctp.audio.io import check_target, read_wave, resample, wave_from_array, write_wave

__all__ = ["check_target", "read_wave", "resample", "wave_from_array", "write_wave"]
