"""The RTMP wire, without Twisted, clock or random: bytes in, events out; calls in, bytes out."""
