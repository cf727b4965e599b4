"""A live relay that keeps serving when servers die: RTMP in, a replicated live log, RTMP and HTTP-FLV out."""

__version__ = "0.1.0"
