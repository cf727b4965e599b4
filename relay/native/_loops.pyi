from collections.abc import Mapping
from typing import Any

from relay.native import Behind, PumpReady

def send_each(members: Mapping[int, Any], file: int, offset: int, count: int) -> list[Behind]: ...
def write_each(members: Mapping[int, Any], data: bytes) -> list[Behind]: ...

pump_ready: PumpReady
