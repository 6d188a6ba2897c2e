"""How often a client may ask, and how soon after wrong passwords: counts kept in memory, for some thousand clients."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

Clock = Callable[[], float]  # seconds, never going back
KEPT = 4096  # clients remembered; the one not seen for longest makes room

Value = TypeVar("Value")


def client_of(address: str) -> str:
    """Whom an address stands for: an IPv6 host owns its whole /64, so that is one client.

    >>> client_of("2001:db8::1") == client_of("2001:db8::ffff")
    True
    """
    try:
        address_found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(address_found, ipaddress.IPv4Address):
        return str(address_found)
    if address_found.ipv4_mapped:
        return str(address_found.ipv4_mapped)
    return str(ipaddress.ip_network((address_found, 64), strict=False))


class Recent(Generic[Value]):
    """A mapping that keeps the newest KEPT entries."""

    def __init__(self, kept: int = KEPT) -> None:
        self.kept, self.entries = kept, OrderedDict[str, Value]()

    def get(self, key: str) -> Value | None:
        return self.entries.get(key)

    def put(self, key: str, value: Value) -> None:
        self.entries[key] = value
        self.entries.move_to_end(key)
        while len(self.entries) > self.kept:
            self.entries.popitem(last=False)

    def drop(self, key: str) -> None:
        self.entries.pop(key, None)


class Rate:
    """A token bucket a client: `burst` requests at once, then `per_second`.

    wait(client) -> 0.0 when the request may pass (it is counted), else seconds until the next one may.
    """

    def __init__(self, per_second: float, burst: int, clock: Clock = time.monotonic, kept: int = KEPT) -> None:
        self.per_second, self.burst, self.clock = per_second, float(burst), clock
        self.buckets: Recent[tuple[float, float]] = Recent(kept)  # tokens left, and when that was

    def wait(self, client: str) -> float:
        now = self.clock()
        left, then = self.buckets.get(client) or (self.burst, now)
        left = min(self.burst, left + (now - then) * self.per_second)
        passes = left >= 1
        self.buckets.put(client, (left - 1 if passes else left, now))
        return 0.0 if passes else (1 - left) / self.per_second


class LoginTries(NamedTuple):
    """Passwords a client tried since the last right one."""

    times: int
    last: float  # seconds of the clock


class Logins:
    """Wrong passwords: `free` of them at once, then one after 30 s, one after 60 s, ... at most one every 15 min.

    A try counts when it begins, so that many at once are no way around; the right password forgets them all, and so
    does an hour without a try.
    """

    def __init__(
        self,
        clock: Clock = time.monotonic,
        free: int = 5,
        first: float = 30.0,
        longest: float = 900.0,
        forget: float = 3600.0,
        kept: int = KEPT,
    ) -> None:
        self.clock, self.free, self.first, self.longest, self.forget = clock, free, first, longest, forget
        self.tried: Recent[LoginTries] = Recent(kept)

    def wait(self, client: str) -> float:
        """0.0 when a client may try now, and the try is counted; else seconds until it may."""
        now = self.clock()
        tried = self.tried.get(client)
        if tried is None or now - tried.last >= self.forget:
            tried = LoginTries(0, now)
        if tried.times >= self.free:
            doubled = min(tried.times - self.free, 32)  # beyond that it is the longest wait anyway
            left = tried.last + min(self.longest, self.first * 2**doubled) - now
            if left > 0:
                return left
        self.tried.put(client, LoginTries(tried.times + 1, now))
        return 0.0

    def succeeded(self, client: str) -> None:
        """The password was right: forget what the client tried before."""
        self.tried.drop(client)
