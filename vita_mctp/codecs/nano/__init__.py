"""The nano codec: one codebook of 1,000 codes at 12.5 per second, small enough to ship inside the package."""

from vita_mctp.codecs.nano.codec import NanoDecoder, NanoTokenizer
from vita_mctp.codecs.nano.config import NanoCodecConfig

__all__ = ["NanoCodecConfig", "NanoDecoder", "NanoTokenizer"]
