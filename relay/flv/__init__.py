"""FLV tags and the HTTP-FLV head: pure bytes."""
